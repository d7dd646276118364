"""The networks as a whole: whether they are ready, what nobody owns, making and removing one."""

import errno
import math
import os
import time
from collections.abc import Callable, Collection
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import msgspec

from sampan.errors import AlreadyExists, InvalidInput, SampanError, WrongState
from sampan.network import config, conflist, execution, firewalld, foreign, forwarding, masquerade, names, nft, plugins
from sampan.network.attach import detach, read_cache, refuse_dhcp
from sampan.network.call import Session
from sampan.network.config import Networks
from sampan.network.conflist import NetworkList
from sampan.network.interface import MADE_BRIDGE, MADE_LINK
from sampan.network.plugins import tuning
from sampan.network.rtnl import Rtnl
from sampan.network.state import Owner, State
from sampan.wire import rtnetlink
from sampan.wire.nfnetlink import NFPROTO_BRIDGE, NFPROTO_INET


class Status(msgspec.Struct, frozen=True):
    """Whether pods can be given a network."""

    ready: bool
    reason: str = ""
    message: str = ""


class Reconciled(msgspec.Struct, frozen=True):
    """What a reconcile did."""

    #: Containers that no longer live and were made to leave.
    attachments: tuple[str, ...] = ()
    leases: int = 0
    #: Elements that the kernel had and nobody owned.
    rules_removed: int = 0
    #: Elements that somebody owns and the kernel had lost.
    rules_restored: int = 0
    errors: tuple[str, ...] = ()


def status(networks: Networks) -> Status:
    """Whether the default network can be joined; never raises."""
    try:
        network = networks.default()
        if network is None:
            why = f"no CNI configuration in {networks.conf_dir} yet, and the built-in network is off"
            return Status(False, "NetworkPluginNotReady", why)
        for index, plugin in enumerate(network.plugins):
            _check_available(networks, plugin, index)
        foreign.status(networks, network)
        obstacles = forwarding.obstacles()
    except SampanError as error:
        return Status(False, "NetworkPluginNotReady", str(error))
    except OSError as error:
        return Status(False, "NetworkPluginNotReady", f"{networks.conf_dir}: {error.strerror}")
    return Status(True, message="; ".join(f"{what} (let the bridge through: {mend})" for what, mend in obstacles))


def _check_available(networks: Networks, plugin: dict[str, Any], index: int) -> None:
    """See that the programs which a plugin and its IPAM need are there.

    Raises:
        NotFound: One is not.
        Unsupported: It is of no use.
    """
    outside = conflist.external(plugin)
    kinds = [(str(plugin["type"]), outside)]
    ipam = plugin.get("ipam") or {}
    if ipam.get("type"):
        kinds.append((str(ipam["type"]), outside or conflist.external(ipam)))
    try:
        for kind, asked in kinds:
            refuse_dhcp(kind, outside=asked)
            if asked or plugins.find(kind) is None:
                execution.find(kind, networks.bin_dirs)
    except SampanError as error:
        error.message = f"plugins[{index}]: {error.message}"
        raise


class Member(msgspec.Struct, frozen=True):
    """A container on a network."""

    container: str
    interface: str
    addresses: tuple[str, ...]


def members(networks: Networks, name: str) -> tuple[Member, ...]:
    """Who is on a network, as the cached results say it."""
    found = []
    for owner in networks.state.attachments():
        if owner.network == name:
            cached = read_cache(networks, owner)
            ips = (cached.result if cached is not None else {}).get("ips") or []
            found.append(Member(owner.container, owner.ifname, tuple(ip["address"] for ip in ips)))
    return tuple(found)


def reconcile(networks: Networks, live: Collection[str] | Callable[[], Collection[str]]) -> Reconciled:
    """Free what no live container owns, and put back the rules that somebody has flushed.

    Args:
        networks: The networks.
        live: Ids of the containers that live, or how to ask for them: a function is called after those attached have
            been listed, so that a container which is added meanwhile is never taken for a dead one. Containers of other
            runtimes, which call ``sampan-cni``, are left to their runtime.
    """
    state = networks.state
    gone, errors, count = [], list[str](), 0
    for container in dead(networks, live):
        count += state.database.execute("SELECT count(*) FROM leases WHERE container = ?", (container,)).fetchone()[0]
        try:
            free(networks, container)
            gone.append(container)
        except SampanError as error:
            errors.append(f"{container}: {error}")
    mended = mend(networks)
    errors += mended.errors
    return msgspec.structs.replace(mended, attachments=tuple(gone), leases=count, errors=tuple(errors))


def dead(networks: Networks, live: Collection[str] | Callable[[], Collection[str]]) -> list[str]:
    """Containers that are attached and live no longer; ``live`` as :func:`reconcile` has it."""
    attached = networks.state.attached()
    return sorted(attached.difference(live() if callable(live) else live))


def free(networks: Networks, container: str) -> None:
    """Free all that a dead container holds.

    Raises:
        SampanError: A plugin did not let go; the next call asks it again.
    """
    detach(networks, container)
    for owner in networks.state.owners_left(container):
        forget(networks.state, owner)


def mend(networks: Networks, patience: float = math.inf) -> Reconciled:
    """Make rules and names on the machine those that are recorded; have plugins collect what they know nobody of.

    Nobody may join a network meanwhile whose external plugins collect: they might take it for garbage.

    Args:
        networks: The networks.
        patience: Seconds that external plugins get in all, besides the deadline that each call has.
    """
    until = time.monotonic() + patience
    removed, restored = _reconcile_rules(networks)
    errors = []
    for others in (firewalld.restore, forwarding.restore):
        try:
            restored += others(networks.state)
        except SampanError as error:
            errors.append(str(error))
    names.refresh(networks.state)
    for network in networks.all():
        errors += foreign.collect(networks, network, until)
    return Reconciled(rules_removed=removed, rules_restored=restored, errors=tuple(errors))


def forget(state: State, owner: Owner) -> None:
    """Free an owner's leases and rules."""
    with Session(state, "") as session, state.transaction() as database:
        elements = state.rules(owner)
        if elements:
            session.nft.delete(elements)
            state.forget_rules(database, elements)
        database.execute(
            "DELETE FROM leases WHERE container = ? AND ifname = ? AND network = ?",
            (owner.container, owner.ifname, owner.network),
        )
        state.drop_fact(database, tuning.fact(owner))
    firewalld.shut(state, owner)
    forwarding.shut(state, owner)


def _reconcile_rules(networks: Networks) -> tuple[int, int]:
    """Make the kernel's elements those that are recorded; nobody changes either meanwhile."""
    state = networks.state
    with Session(state, "") as session, state.transaction():
        recorded = {(e.family, e.set_name, e.key): e for e in state.rules()}
        removed = restored = 0
        for family, sets in ((NFPROTO_INET, nft.SETS), (NFPROTO_BRIDGE, nft.BRIDGE_SETS)):
            present = {
                (family, set_name, element.key): element
                for set_name in sets
                for element in session.nft.elements(set_name, family)
            }
            stray = [element for key, element in present.items() if key not in recorded]
            lost = [element for key, element in recorded.items() if key not in present and key[0] == family]
            if stray:
                session.nft.delete(stray)
            if lost:
                session.put_elements(lost)
            removed, restored = removed + len(stray), restored + len(lost)
        return removed, restored


def tidy(networks: Networks) -> bool:
    """Remove our tables and the bridges that we made, when nobody is on any network; the next attach makes them anew.

    For the end of a daemon's life, and of a command's that ended the last pod: while pods come and go it would make
    each pay for the table again.

    Returns:
        Whether there was nobody.
    """
    state = networks.state
    with Session(state, "") as session, state.transaction() as database:
        if state.in_use():
            return False
        state.forget_rules(database, state.rules())
        masquerade.forget(state, database)
        for family in (NFPROTO_INET, NFPROTO_BRIDGE):
            session.nft.delete_table(family)
        for fact in state.facts(MADE_LINK):
            name = fact.removeprefix(MADE_LINK)
            session.host.do(f"delete {name}", rtnetlink.delete_link(name=name), tolerate=(errno.ENODEV,))
            state.drop_fact(database, fact)
        ports = {link.master for link in session.host.links()}
        for fact in state.facts(MADE_BRIDGE):
            link = session.host.find_link(fact.removeprefix(MADE_BRIDGE))
            if link is not None and link.kind == "bridge":
                if link.index in ports:
                    continue  # somebody else's, or of a namespace whose end is under way: the next time, then
                session.host.do(f"delete bridge {link.name}", rtnetlink.delete_link(link.index))
            state.drop_fact(database, fact)
        forwarding.tidy()
        return True


# Making and removing networks.


def create(
    networks: Networks,
    name: str,
    *,
    subnet: str = "",
    gateway: str = "",
    ipv6: bool = False,
    internal: bool = False,
    mtu: int = 0,
    bridge: str = "",
) -> str:
    """Write the conflist of a new bridge network; the bridge itself comes with its first container.

    Args:
        networks: Where it is put.
        name: Its name.
        subnet: Its addresses, IPv4, IPv6 or both by comma; empty: a free private one.
        gateway: The bridge's address; empty: the subnet's first.
        ipv6: Also give it an IPv6 subnet.
        internal: No way out of it.
        mtu: 0: the kernel's.
        bridge: Name of the bridge; empty: one that follows from the name.

    Returns:
        The conflist's path.

    Raises:
        AlreadyExists: The name or the subnet is taken.
    """
    if name in (config.BUILT_IN, "none", "host", "default") or name in networks.names():
        raise AlreadyExists(f"network {name} exists")
    known = networks.all()
    own = _subnets(networks, subnet, name, ipv6=ipv6)
    for network in known:
        for other in subnets(network):
            for mine in own:
                if mine.version == other.version and mine.overlaps(other):
                    raise AlreadyExists(f"subnet {mine} overlaps {other} of network {network.name}")
    document = config.bridge_document(
        name,
        bridge or _bridge_name(name),
        [str(mine) for mine in own],
        gateways=[gateway] if gateway else None,
        internal=internal,
        mtu=mtu,
    )
    conflist.parse(document)
    os.makedirs(networks.conf_dir, mode=0o755, exist_ok=True)
    # Behind what an administrator or a cluster's installer put there: a new network does not become the default one.
    if not any(entry.endswith(config.SUFFIXES) for entry in os.listdir(networks.conf_dir)):
        _write(networks, config.BUILT_IN, networks.get(config.BUILT_IN).document, "80")
    return _write(networks, name, document, "90")


def _write(networks: Networks, name: str, document: dict[str, object], rank: str) -> str:
    path = os.path.join(networks.conf_dir, f"{rank}-{name}.conflist")
    staged = f"{path}.tmp"
    with open(staged, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    os.rename(staged, path)
    return path


def _subnets(networks: Networks, text: str, name: str, *, ipv6: bool) -> list[IPv4Network | IPv6Network]:
    try:
        found = [ip_network(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidInput(str(error), field="subnet") from None
    if not found:
        taken = [str(network) for entry in networks.all() for network in subnets(entry)]
        found = [config.free_subnet(networks.built_in_bridge, taken)]
    if ipv6 and all(network.version == 4 for network in found):
        import hashlib

        tag = hashlib.sha256(name.encode()).hexdigest()
        found.append(IPv6Network(f"fd{tag[:2]}:{tag[2:6]}:{tag[6:10]}::/64"))
    return found


def _bridge_name(name: str) -> str:
    if len(name) <= 11 and name.isascii() and name.replace("-", "").isalnum():
        return f"sp-{name}"
    import hashlib

    return f"sp-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def subnets(network: NetworkList) -> list[IPv4Network | IPv6Network]:
    """Subnets that a network's host-local hands out."""
    found: list[IPv4Network | IPv6Network] = []
    for plugin in network.plugins:
        ipam = plugin.get("ipam") or {}
        entries = [entry for entries in ipam.get("ranges") or [] for entry in entries]
        found += [ip_network(entry["subnet"], strict=False) for entry in [*entries, ipam] if entry.get("subnet")]
    return found


def remove(networks: Networks, name: str) -> None:
    """Remove a network's conflist and its bridge.

    Raises:
        NotFound: There is none of that name.
        WrongState: A container is on it, or it is the built-in one.
    """
    network = networks.get(name)
    if not network.path:
        raise WrongState(f"network {name} is built in", hint="a conflist in the directory takes its place")
    users = sorted({owner.container for owner in networks.state.attachments() if owner.network == network.name})
    if users:
        raise WrongState(f"network {name} has containers: {', '.join(users[:5])}")
    os.unlink(network.path)
    with networks.state.transaction() as database:
        database.execute("DELETE FROM cursors WHERE network = ?", (network.name,))
    with Rtnl() as host:
        for plugin in network.plugins:
            link = host.find_link(str(plugin.get("bridge"))) if plugin.get("type") == "bridge" else None
            if link is None or link.kind != "bridge" or not link.name.startswith("sp-"):
                continue
            if not any(other.master == link.index for other in host.links()):
                host.do(f"delete bridge {link.name}", rtnetlink.delete_link(link.index))

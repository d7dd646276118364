"""Joining a container to its networks and leaving them: the chains of plugins, their cached results, undoing.

libcni's work. A type that is built in runs here, in process, on sockets that the whole attachment shares; any other is
executed. What was attached, with which configuration and result, is cached before anything relies on it, so that
leaving needs nothing but the container's id: not the namespace, not the configuration as it is now.
"""

import hashlib
import os
import threading
from contextlib import suppress
from typing import Any

import msgspec

from sampan.errors import InvalidInput, NotFound, SampanError, Unsupported, write_failed
from sampan.network import leases, names, plugins
from sampan.network.call import Call, Session, decode
from sampan.network.config import Networks
from sampan.network.conflist import NetworkList, external
from sampan.network.state import SHARED, Owner
from sampan.spec import cni
from sampan.spec.cni import Result
from sampan.wire.nfnetlink import NFPROTO_INET

_LOOPBACK: dict[str, Any] = {"type": "loopback", "name": "loopback", "cniVersion": cni.VERSIONS[-1]}
_MAX_ID = 256


class PortMapping(msgspec.Struct, frozen=True):
    """A port of the machine that leads to one of the container."""

    container_port: int
    host_port: int
    protocol: str = "tcp"
    host_ip: str = ""


class Bandwidth(msgspec.Struct, frozen=True):
    """Rates in bits a second and bursts in bits; 0: unlimited."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class Dns(msgspec.Struct, frozen=True):
    """What the container's resolver shall use."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A container that joins networks.

    Args:
        container_id: Whose the addresses and rules will be; of a pod, the pod's id.
        netns: Path of its network namespace.
        ifname: Name of the first network's interface; the next network's has the next number.
        networks: Names of networks; an empty name is the default one. None at all: loopback only.
        args: CNI_ARGS.
        ips: Addresses asked for, on the first network.
        mac: Hardware address asked for, on the first network.
    """

    container_id: str
    netns: str
    ifname: str = "eth0"
    networks: tuple[str, ...] = ("",)
    args: dict[str, str] = {}
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    dns: Dns | None = None
    ips: tuple[str, ...] = ()
    mac: str = ""
    aliases: tuple[str, ...] = ()
    cgroup_path: str = ""


class Attached(msgspec.Struct, frozen=True):
    """What joining the networks gave: a result for each, in their order."""

    results: tuple[Result, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of the container, without prefix lengths; the first is the pod's IP."""
        return tuple(address for position in range(len(self.results)) for address in self.addresses_on(position))

    def addresses_on(self, position: int) -> tuple[str, ...]:
        """Those on one of the networks, by its position among those asked for."""
        found: list[str] = []
        result = self.results[position]
        for config in result.ips:
            at = config.interface
            inside = at is None or at >= len(result.interfaces) or result.interfaces[at].sandbox
            if inside:
                found.append(config.address.split("/")[0])
        return tuple(found)

    @property
    def dns(self) -> cni.Dns:
        """What the first network that says anything says of name resolution."""
        return next((r.dns for r in self.results if r.dns.nameservers or r.dns.search or r.dns.options), cni.Dns())

    def as_dict(self) -> dict[str, Any]:
        """The first network's result as JSON has it, the other networks' under ``others``."""
        if not self.results:
            return {"cniVersion": cni.VERSIONS[-1]}
        first, *others = (result.as_version(cni.VERSIONS[-1]) for result in self.results)
        return {**first, "others": others} if others else first


def attach(networks: Networks, attachment: Attachment) -> Attached:
    """Join a container to its networks; when one fails, all that was done is undone.

    Raises:
        SampanError: What failed; see :mod:`sampan.network`.
    """
    check_id(attachment.container_id)
    for name, value in attachment.args.items():
        if ";" in name + value or "=" in name or "\0" in name + value:
            raise InvalidInput(f"{name}={value} cannot stand among arguments that ; separates", field="args")
    lists = [networks.get(name) for name in attachment.networks]
    asked = [network.name for network in lists]
    if len(set(asked)) != len(asked):
        raise InvalidInput(f"a container joins a network once; asked for {', '.join(asked)}", field="networks")
    joined: list[Owner] = []
    results = []
    with Session(networks.state, attachment.netns, Delegation(networks)) as session:
        session.netns  # noqa: B018 - an error before anything is done
        try:
            _find("loopback").add(Call(session, dict(_LOOPBACK), attachment.container_id, "lo", {}))
            for position, network in enumerate(lists):
                ifname = _ifname(attachment.ifname, position)
                owner = Owner(attachment.container_id, ifname, network.name)
                joined.append(owner)
                capabilities = _capabilities(attachment, first=position == 0)
                results.append(_join(networks, session, network, owner, position, attachment, capabilities))
        except BaseException:
            for owner in reversed(joined):
                _leave_quietly(networks, session, owner)
            raise
    return Attached(tuple(results))


def check_id(container_id: str) -> None:
    """See that a container's id is one: CNI SPEC.md, section 2.

    Raises:
        InvalidInput: It is not.
    """
    plain = container_id.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or not plain.isascii() or len(container_id) > _MAX_ID or not container_id[0].isalnum():
        raise InvalidInput(f"{container_id!r} is no container id that CNI allows", field="container_id")


def _ifname(first: str, position: int) -> str:
    stem = first.rstrip("0123456789")
    name = f"{stem}{int(first[len(stem) :] or 0) + position}" if position else first
    check_interface(name)
    return name


def check_interface(name: str) -> None:
    """See that an interface's name is one.

    Raises:
        InvalidInput: It is not.
    """
    if not 0 < len(name) <= 15 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise InvalidInput(f"{name!r} is no interface name", field="ifname")


def _capabilities(attachment: Attachment, *, first: bool) -> dict[str, Any]:
    """Capability arguments by name (CNI CONVENTIONS.md); which a plugin gets, its configuration says."""
    found: dict[str, Any] = {}
    if attachment.port_mappings:
        found["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.lower(),
                "hostIP": port.host_ip,
            }
            for port in attachment.port_mappings
        ]
    if attachment.bandwidth is not None:
        rates = attachment.bandwidth
        found["bandwidth"] = {
            "ingressRate": rates.ingress_rate,
            "ingressBurst": rates.ingress_burst,
            "egressRate": rates.egress_rate,
            "egressBurst": rates.egress_burst,
        }
    if attachment.dns is not None:
        dns = attachment.dns
        found["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    if attachment.ips and first:
        found["ips"] = list(attachment.ips)
    if attachment.mac and first:
        found["mac"] = attachment.mac
    if attachment.aliases:
        found["aliases"] = list(attachment.aliases)
    if attachment.cgroup_path:
        found["cgroupPath"] = attachment.cgroup_path
    return found


def plugin_conf(
    network: NetworkList, plugin: dict[str, Any], capabilities: dict[str, Any], previous: dict[str, Any] | None
) -> dict[str, Any]:
    """A plugin's configuration as it is handed over: derived as CNI SPEC.md section 4 says."""
    conf = {**plugin, "name": network.name, "cniVersion": network.version}
    wanted = plugin.get("capabilities") or {}
    runtime = {name: value for name, value in capabilities.items() if wanted.get(name)}
    conf.pop("capabilities", None)
    conf.pop("runtimeConfig", None)
    if runtime:
        conf["runtimeConfig"] = runtime
    if previous is not None:
        conf["prevResult"] = previous
    return conf


def _join(
    networks: Networks,
    session: Session,
    network: NetworkList,
    owner: Owner,
    position: int,
    attachment: Attachment,
    capabilities: dict[str, Any],
) -> Result:
    args = {"IgnoreUnknown": "1", **attachment.args}
    cached = cni.CachedResult(
        container_id=owner.container,
        config=msgspec.json.encode(network.document),
        if_name=owner.ifname,
        network_name=network.name,
        netns=attachment.netns,
        cni_args=list(args.items()),
        capability_args=capabilities,
    )
    session.state.record_attachment(owner, position)
    _write_cache(networks, cached)
    previous: dict[str, Any] | None = None
    for index, plugin in enumerate(network.plugins):
        conf = plugin_conf(network, plugin, capabilities, previous)
        try:
            previous = _call(networks, session, "ADD", conf, owner, args)
        except SampanError as error:
            _place(error, network, index)
            if previous is not None:
                # Who undoes it is told what the plugins before had made.
                cached.result = previous
                _write_cache(networks, cached)
            raise
    result = decode(previous or {}, Result, at="result")
    cached.result = previous or {}
    _write_cache(networks, cached)
    return result


def _place(error: SampanError, network: NetworkList, index: int) -> None:
    """Put before an error's message which plugin of which network it is of."""
    error.message = f"network {network.name}, plugins[{index}] ({network.plugins[index]['type']}): {error.message}"


def _call(
    networks: Networks,
    session: Session,
    command: str,
    conf: dict[str, Any],
    owner: Owner,
    args: dict[str, str],
    kind: str = "",
    outside: bool = False,
) -> dict[str, Any]:
    """Run one plugin, in process or as a binary.

    Args:
        networks: Where binaries are looked for.
        session: The attachment's sockets.
        command: ADD, DEL or CHECK.
        conf: The plugin's configuration.
        owner: Whom it is for.
        args: CNI_ARGS.
        kind: Its type; of an IPAM plugin, which gets its caller's configuration, not the configuration's.
        outside: Whether the binary shall run even if the type is built in.
    """
    kind = kind or str(conf["type"])
    built_in = None if outside or external(conf) else plugins.find(kind)
    if built_in is not None:
        return plugins.run(built_in, command, Call(session, conf, owner.container, owner.ifname, args))
    return networks.call(
        kind,
        command,
        conf,
        container_id=owner.container,
        netns=session.netns_path,
        ifname=owner.ifname,
        args=args,
    )


def _find(kind: str) -> plugins.Plugin:
    found = plugins.find(kind)
    if found is None:
        raise AssertionError(kind)
    return found


def refuse_dhcp(kind: str, *, outside: bool) -> None:
    """See that an IPAM plugin is not ``dhcp``, whose daemon nobody may have started, unless it was asked for.

    Raises:
        Unsupported: With the mend.
    """
    if kind == "dhcp" and not outside:
        raise Unsupported(
            "IPAM by dhcp is not built in",
            hint='use host-local or static; or run its daemon and put "sampan": "external" into ipam',
        )


class Delegation:
    """Calls IPAM plugins for the plugins that make interfaces.

    Args:
        networks: Where binaries are looked for.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def __call__(self, command: str, call: Call, kind: str) -> Result | None:
        """Run one command of the IPAM plugin ``kind``."""
        outside = external(call.conf) or external(call.conf.get("ipam") or {})
        refuse_dhcp(kind, outside=outside)
        result = _call(self._networks, call.session, command, call.conf, call.owner, call.args, kind, outside)
        return decode(result, Result, at="ipam result") if command == "ADD" else None


# The cache.


def _cache_path(networks: Networks, owner: Owner) -> str:
    name = f"{owner.network}-{owner.container}-{owner.ifname}"
    if len(name) > 250:
        name = f"{hashlib.sha256(name.encode()).hexdigest()}-{owner.ifname}"
    return os.path.join(networks.state.results, name)


def _write_cache(networks: Networks, cached: cni.CachedResult) -> None:
    path = _cache_path(networks, Owner(cached.container_id, cached.if_name, cached.network_name))
    staged = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        with open(staged, "wb", opener=_private) as file:
            file.write(msgspec.json.encode(cached))
        os.rename(staged, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(staged)
        raise write_failed("record attachment", error, path=path) from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def read_cache(networks: Networks, owner: Owner) -> cni.CachedResult | None:
    """What was cached of an attachment, or None."""
    try:
        with open(_cache_path(networks, owner), "rb") as file:
            return msgspec.json.decode(file.read(), type=cni.CachedResult)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        # Cut short by a power cut: the configuration as it is now must do.
        return None


# Leaving.


def detach(networks: Networks, container_id: str | Attachment, *, netns_ends: bool = True, netns: str = "") -> None:
    """Leave every network; what is already left is no error.

    Args:
        networks: Where plugins are looked for.
        container_id: Who leaves, as named at :func:`attach`.
        netns_ends: The caller lets the namespace go next: links in it are left to the kernel, which destroys them
            in its own time; deleting one takes tens of milliseconds.
        netns: The namespace's path, if it is not the one that was attached.

    Raises:
        SampanError: The first thing that failed; the rest was done all the same, and a second call takes it up.
    """
    if isinstance(container_id, Attachment):
        netns = netns or container_id.netns
        container_id = container_id.container_id
    check_id(container_id)
    names.withdraw(networks.state, container_id)
    first: SampanError | None = None
    for owner in networks.state.attachments(container_id):
        cached = read_cache(networks, owner)
        path = netns or (cached.netns if cached else "")
        with Session(networks.state, path, Delegation(networks)) as session:
            session.netns_ends = netns_ends
            try:
                _leave(networks, session, owner, cached)
            except SampanError as error:
                first = first or error
    if first is not None:
        raise first


def _leave_quietly(networks: Networks, session: Session, owner: Owner) -> None:
    """Undo a failed join; the error that led here is the one to be told."""
    try:
        _leave(networks, session, owner, read_cache(networks, owner))
    except SampanError as error:
        # A plugin that can't be run, or refuses its configuration at DEL as it did at ADD, will do so for ever; what
        # may pass is left on record for reconcile.
        if not error.retriable:
            _forget(networks, session, owner)


def _leave(networks: Networks, session: Session, owner: Owner, cached: cni.CachedResult | None) -> None:
    network = _network_then(networks, owner, cached)
    first: SampanError | None = None
    if network is not None:
        previous = cached.result if cached is not None and cached.result else None
        capabilities = cached.capability_args if cached is not None else {}
        args = dict(cached.cni_args) if cached is not None else {"IgnoreUnknown": "1"}
        if network.version in ("0.3.0", "0.3.1"):
            previous = None
        for index, plugin in reversed(list(enumerate(network.plugins))):
            conf = plugin_conf(network, plugin, capabilities, previous)
            try:
                _call(networks, session, "DEL", conf, owner, args)
            except SampanError as error:
                if first is None:
                    _place(error, network, index)
                    first = error
    if first is not None:
        raise first
    _forget(networks, session, owner)


def _forget(networks: Networks, session: Session, owner: Owner) -> None:
    leases.release(session.state, owner)
    try:
        os.unlink(_cache_path(networks, owner))
    except FileNotFoundError:
        pass
    session.state.forget_attachment(owner)
    if session.state.no_attachments():
        _drop_shared(session)


def _drop_shared(session: Session) -> None:
    """Take out the elements that bridges' pods shared, when the last pod of all has left."""
    state = session.state
    with state.transaction() as database:
        elements = state.rules(SHARED)
        if elements and not state.in_use():
            state.forget_rules(database, elements)
            session.nft.delete([e for e in elements if e.family == NFPROTO_INET])


def _network_then(networks: Networks, owner: Owner, cached: cni.CachedResult | None) -> NetworkList | None:
    """The network as it was when the container joined, else as it is now, else nothing."""
    if cached is not None and cached.config:
        document = msgspec.json.decode(cached.config)
        return NetworkList(
            name=document["name"], version=document["cniVersion"], plugins=tuple(document["plugins"]), path="cache"
        )
    try:
        return networks.get(owner.network)
    except (NotFound, InvalidInput):
        return None


def check(networks: Networks, container_id: str, *, netns: str = "") -> None:
    """CNI CHECK of every network that the container is on.

    Raises:
        NotFound: It is on none.
        SampanError: Something is no longer as it was made.
    """
    owners = networks.state.attachments(container_id)
    if not owners:
        raise NotFound(f"container {container_id} is on no network")
    for owner in reversed(owners):
        cached = read_cache(networks, owner)
        network = _network_then(networks, owner, cached)
        if cached is None or network is None or network.disable_check or network.version.startswith("0.3."):
            continue
        with Session(networks.state, netns or cached.netns, Delegation(networks)) as session:
            for index, plugin in enumerate(network.plugins):
                conf = plugin_conf(network, plugin, cached.capability_args, cached.result or None)
                try:
                    _call(networks, session, "CHECK", conf, owner, dict(cached.cni_args))
                except SampanError as error:
                    _place(error, network, index)
                    raise

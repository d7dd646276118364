"""The networks there are: which files count, and the network that is built in.

As libcni and containerd do it: files ending in .conf, .conflist and .json of the directory, in lexical order; the first
one is the default network. A file that is wrong is not passed over: who asks for its network gets the error.
"""

import os
import time
from collections.abc import Collection
from ipaddress import IPv4Network, ip_network
from typing import Any, NamedTuple

from sampan.errors import Exhausted, InvalidInput, NotFound, TimedOut, Unavailable
from sampan.network import execution
from sampan.network.conflist import NetworkList, parse, read_file
from sampan.network.rtnl import Rtnl
from sampan.network.state import State
from sampan.spec import cni
from sampan.wire import rtnetlink

SUFFIXES = (".conf", ".conflist", ".json")
BUILT_IN = "sampan"
BUILT_IN_BRIDGE = "sampan0"
_FACT_SUBNET = "built-in subnet"
#: Seconds for which a plugin that hung is not asked to let go of anything.
_SILENCE = 10.0


def _stamps(folder: str, suffixes: tuple[str, ...]) -> tuple[list[tuple[str, int, int, int]], list[str]]:
    """The files of a directory that have one of the suffixes, each with what tells its versions apart; its folders."""
    stamps, folders = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    for entry in entries:
        try:
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.endswith(suffixes):
                stat = entry.stat()
                stamps.append((entry.path, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except FileNotFoundError:
            continue  # removed meanwhile, or a link to nothing
    return stamps, folders


class _Folder(NamedTuple):
    """What was read of the directory, and by what its next state is told from this one."""

    stamps: object
    files: list[str]
    lists: dict[str, NetworkList]
    errors: dict[str, InvalidInput]


class Networks:
    """The networks there are, looked at anew whenever the directory has changed.

    Args:
        conf_dir: Directory of the configurations; need not exist.
        state: The network's state.
        bin_dirs: Where external plugins are, in order.
        default: Whether a built-in network stands in when the directory has no configuration.
        ending: A descriptor that can be read once no external plugin is to be waited for any more.
    """

    def __init__(
        self, conf_dir: str, state: State, bin_dirs: tuple[str, ...], *, default: bool, ending: int = -1
    ) -> None:
        self.conf_dir = conf_dir
        self.state = state
        self.bin_dirs = bin_dirs
        self.ending = ending
        #: Seconds for one call of an external plugin.
        self.deadline = execution.DEADLINE
        self._silent: dict[str, float] = {}
        self._default = default
        self._known = _Folder(None, [], {}, {})
        self._built_in: tuple[str, NetworkList] | None = None

    def _look(self) -> "_Folder":
        seen, folders = _stamps(self.conf_dir, SUFFIXES)
        # Plugins in files of their own stand one folder further down.
        inner = [stamp for folder in folders for stamp in _stamps(folder, (".conf",))[0]]
        if (seen, inner) == self._known.stamps:
            return self._known
        lists: dict[str, NetworkList] = {}
        errors: dict[str, InvalidInput] = {}
        for path, *_stamp in seen:
            try:
                lists[path] = read_file(path)
            except InvalidInput as error:
                errors[path] = error
        # One assignment: another thread sees the old state or the new one.
        self._known = known = _Folder((seen, inner), [path for path, *_stamp in seen], lists, errors)
        return known

    def call(self, kind: str, command: str, conf: dict[str, Any], **whom: Any) -> dict[str, Any]:
        """Run an external plugin; what it prints.

        One that has just let a deadline pass is not waited for again by the next container that leaves, nor by the one
        after it: a plugin that hangs would hold up a daemon's start by a deadline for each pod that died.

        Args:
            kind: Its type.
            command: ADD, DEL, CHECK, STATUS or GC.
            conf: Its configuration.
            whom: What else :func:`sampan.network.execution.run` takes.
        """
        binary = execution.find(kind, self.bin_dirs)
        ago = time.monotonic() - self._silent.get(binary, -_SILENCE)
        if command in ("DEL", "GC") and ago < _SILENCE:
            raise TimedOut(f"CNI plugin {kind} did not answer {ago:.0f} s ago; it is asked again in a while")
        patience = {"deadline": self.deadline, **whom}
        try:
            answer = execution.run(binary, command, conf, bin_dirs=self.bin_dirs, ending=self.ending, **patience)
        except TimedOut:
            if patience["deadline"] >= self.deadline:  # who is asked in passing need not be one that hangs
                self._silent[binary] = time.monotonic()
            raise
        self._silent.pop(binary, None)
        return answer

    def all(self) -> list[NetworkList]:
        """Every network that can be read, the default one first."""
        known = self._look()
        found = [known.lists[path] for path in known.files if path in known.lists]
        if not known.files and self._default:
            found.append(self._built_in_network())
        return found

    def faults(self) -> list[InvalidInput]:
        """What is wrong with the files that can't be read."""
        return list(self._look().errors.values())

    def names(self) -> tuple[str, ...]:
        """The networks' names."""
        return tuple(network.name for network in self.all())

    def default(self) -> NetworkList | None:
        """The network that a pod joins when it asks for none.

        Raises:
            InvalidInput: The first file is wrong.
        """
        known = self._look()
        if known.files:
            first = known.files[0]
            if first in known.errors:
                raise known.errors[first]
            return known.lists[first]
        return self._built_in_network() if self._default else None

    def get(self, name: str) -> NetworkList:
        """The network of that name; the empty name is the default.

        Raises:
            NotFound: There is none of that name.
            Unavailable: There is no default one yet.
        """
        if not name:
            network = self.default()
            if network is None:
                raise Unavailable(
                    f"no network is configured in {self.conf_dir} yet",
                    hint="put a CNI conflist there, or: sampan network create NAME",
                )
            return network
        for network in self.all():
            if network.name == name:
                return network
        if name == BUILT_IN and self._default:
            return self._built_in_network()
        faults = self.faults()
        raise NotFound(f"no network {name}", hint=f"could not be read: {faults[0].message}" if faults else "")

    def _built_in_network(self) -> NetworkList:
        kept = self.state.fact(_FACT_SUBNET)
        if not kept:
            kept = str(free_subnet(self.built_in_bridge))
            self.state.set_fact(_FACT_SUBNET, kept)
        # Another process may have been told other addresses by the kubelet.
        if self._built_in is None or self._built_in[0] != kept:
            self._built_in = kept, parse(bridge_document(BUILT_IN, self.built_in_bridge, kept.split(",")))
        return self._built_in[1]

    @property
    def built_in_bridge(self) -> str:
        """Name of the built-in network's bridge."""
        return f"sp-{self.state.tag}" if self.state.tag else BUILT_IN_BRIDGE

    def set_pod_cidr(self, cidr: str, template: str = "") -> None:
        """Take up the pod addresses that the kubelet tells (CRI UpdateRuntimeConfig), IPv4 and IPv6 by comma.

        Args:
            cidr: Networks.
            template: Conflist template to be rendered into the directory; Go's ``{{.PodCIDR}}``,
                ``{{range .PodCIDRRanges}}`` and ``{{range .Routes}}`` as containerd knows them. Without one the
                built-in network gets the subnets.
        """
        try:
            networks = [ip_network(part.strip()) for part in cidr.split(",") if part.strip()]
        except ValueError as error:
            raise InvalidInput(str(error), field="pod_cidr") from None
        if not networks:
            return
        if template:
            from sampan.network.template import render_file

            render_file(template, self.conf_dir, [str(network) for network in networks])
            return
        self._move_built_in(",".join(str(network) for network in networks))

    def _move_built_in(self, subnets: str) -> None:
        """Give the built-in network other addresses; its bridge goes when nobody is on it, to get its new ones."""
        if self.state.fact(_FACT_SUBNET) == subnets:
            return
        parse(bridge_document(BUILT_IN, self.built_in_bridge, subnets.split(",")))
        self.state.set_fact(_FACT_SUBNET, subnets)
        if any(owner.network == BUILT_IN for owner in self.state.attachments()):
            return
        with Rtnl() as host:
            link = host.find_link(self.built_in_bridge)
            if link is not None and link.kind == "bridge":
                host.do(f"delete bridge {link.name}", rtnetlink.delete_link(link.index))


def bridge_document(
    name: str,
    bridge: str,
    subnets: list[str],
    *,
    gateways: list[str] | None = None,
    internal: bool = False,
    mtu: int = 0,
) -> dict[str, Any]:
    """A conflist of a bridge network: addresses of ``subnets``, masqueraded, with host ports."""
    ranges = [{"subnet": subnet} for subnet in subnets]
    for entry, gateway in zip(ranges, gateways or [], strict=False):
        if gateway:
            entry["gateway"] = gateway
    routes = [] if internal else [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
    plugin: dict[str, Any] = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": not internal,
        "capabilities": {"ips": True, "mac": True},
        "ipam": {"type": "host-local", "ranges": [[entry] for entry in ranges], "routes": routes},
    }
    if mtu:
        plugin["mtu"] = mtu
    chain = [plugin]
    if not internal:
        chain += [{"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]
    return {"cniVersion": cni.VERSIONS[-1], "name": name, "plugins": chain}


def free_subnet(bridge: str, beside: Collection[str] = ()) -> IPv4Network:
    """A private /16 that no route or address of this machine but ``bridge``'s, and none of ``beside``, overlaps.

    Raises:
        Exhausted: There is none.
    """
    used: list[IPv4Network] = [network for text in beside if isinstance(network := ip_network(text), IPv4Network)]
    with Rtnl() as host:
        own = host.find_link(bridge)
        index = own.index if own else -1
        used += [
            IPv4Network((route.destination, route.prefix))
            for route in host.routes(2)
            if route.prefix and route.destination and route.index != index
        ]
        used += [
            IPv4Network((address.address, address.prefix), strict=False)
            for address in host.addresses(family=2)
            if address.index != index
        ]
    for second in (*range(88, 128), *range(128, 256), *range(88)):
        candidate = IPv4Network(f"10.{second}.0.0/16")
        if not any(candidate.overlaps(network) for network in used):
            return candidate
    raise Exhausted("no /16 of 10.0.0.0/8 is free on this machine", hint="name a subnet in a conflist")

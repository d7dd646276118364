"""Network configurations: which files count, what they say, and the one that is built in.

As libcni and containerd do it: files ending in .conf, .conflist and .json of the directory, in lexical order; the first
one is the default network. A file that is wrong is not passed over: who asks for its network gets an error that names
file, plugin and field.
"""

import os
from collections.abc import Collection
from ipaddress import IPv4Network, ip_network
from typing import Any

import msgspec

from sampan.errors import Exhausted, InvalidInput, NotFound
from sampan.network import plugins
from sampan.network.call import decode
from sampan.network.plugins import hostlocal
from sampan.network.rtnl import Rtnl
from sampan.network.state import State
from sampan.spec import cni
from sampan.wire import rtnetlink

SUFFIXES = (".conf", ".conflist", ".json")
BUILT_IN = "sampan"
BUILT_IN_BRIDGE = "sampan0"
_MAX_FILE = 1 << 20
_MAX_PLUGINS = 64
_FACT_SUBNET = "built-in subnet"
#: A plugin's key by which a configuration says that the external binary shall run even if the type is built in.
RUN_KEY = "sampan"


class NetworkList(msgspec.Struct, kw_only=True, frozen=True):
    """A network: a name and the plugins that make it, in order."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]
    #: File it came from; empty for the one that is built in.
    path: str = ""
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """As a conflist says it."""
        return {"cniVersion": self.version, "name": self.name, "plugins": list(self.plugins)}


class _PluginHead(msgspec.Struct):
    type: str
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}


class _ListHead(msgspec.Struct, kw_only=True):
    name: str
    plugins: list[dict[str, Any]]
    cni_version: str = msgspec.field(name="cniVersion", default="")
    cni_versions: list[str] = msgspec.field(name="cniVersions", default_factory=list)
    disable_check: bool | str = msgspec.field(name="disableCheck", default=False)
    disable_gc: bool | str = msgspec.field(name="disableGC", default=False)


def read_file(path: str) -> NetworkList:
    """Read one configuration.

    Raises:
        InvalidInput: With the file, and the plugin's index and field where it is about one.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise InvalidInput(f"{path}: more than {_MAX_FILE} bytes")
    try:
        document = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{path}: not JSON: {error}") from None
    try:
        return parse(document, path)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", hint=error.hint) from None


def parse(document: Any, path: str = "") -> NetworkList:
    """Check a configuration, a list or a single plugin's, as far as can be without running it."""
    if not isinstance(document, dict):
        raise InvalidInput("a network configuration is a JSON object")
    if "plugins" not in document:
        if path.endswith(".conflist"):
            raise InvalidInput("a conflist has a list of plugins", field="plugins")
        document = {"name": document.get("name"), "cniVersion": document.get("cniVersion", ""), "plugins": [document]}
    head = decode(document, _ListHead)
    if not _is_name(head.name):
        raise InvalidInput(f"{head.name!r} is no name for a network", field="name")
    if not 0 < len(head.plugins) <= _MAX_PLUGINS:
        raise InvalidInput(f"a network has 1 to {_MAX_PLUGINS} plugins, not {len(head.plugins)}", field="plugins")
    version = _version(head)
    for index, plugin in enumerate(head.plugins):
        _check_plugin(plugin, index, head.name, version)
    return NetworkList(
        name=head.name,
        version=version,
        plugins=tuple(head.plugins),
        path=path,
        disable_check=head.disable_check in (True, "true"),
        disable_gc=head.disable_gc in (True, "true"),
    )


def _is_name(name: str) -> bool:
    """Letters, digits, ``-``, ``_`` and ``.``, the first a letter or digit: CNI SPEC.md, section 1."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return name.isascii() and plain.isalnum() and name[0].isalnum() and len(name) <= 200


def _version(head: _ListHead) -> str:
    stated = [head.cni_version or cni.UNSTATED_VERSION, *head.cni_versions]
    known = [version for version in cni.VERSIONS if version in stated]
    if not known:
        raise InvalidInput(
            f"CNI {stated[0]} is not understood", field="cniVersion", hint=f"say one of {', '.join(cni.VERSIONS)}"
        )
    return known[-1]


def _check_plugin(plugin: dict[str, Any], index: int, name: str, version: str) -> None:
    at = f"plugins[{index}]"
    head = decode(plugin, _PluginHead, at=at)
    if not head.type or "/" in head.type or head.type.startswith("."):
        raise InvalidInput(f"{head.type!r} is no plugin type", field=f"{at}.type")
    whole = {**plugin, "name": name, "cniVersion": version}
    built_in = None if external(plugin) else plugins.find(head.type)
    if built_in is not None:
        decode(whole, built_in.Conf, at=at)
    if head.ipam:
        kind = head.ipam.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise InvalidInput(f"{kind!r} is no plugin type", field=f"{at}.ipam.type")
        if kind == "host-local" and not _filled_in_later(plugin):
            decode(whole, hostlocal.Conf, at=at)


def _filled_in_later(plugin: dict[str, Any]) -> bool:
    """Whether the ranges come with each call, by the capability ``ipRanges``."""
    return bool((plugin.get("capabilities") or {}).get("ipRanges"))


def external(plugin: dict[str, Any]) -> bool:
    """Whether the plugin's configuration asks for the external binary."""
    return plugin.get(RUN_KEY) == "external"


class Networks:
    """The networks there are, looked at anew whenever the directory has changed.

    Args:
        conf_dir: Directory of the configurations; need not exist.
        state: The network's state.
        bin_dirs: Where external plugins are, in order.
        default: Whether a built-in network stands in when the directory has no configuration.
    """

    def __init__(self, conf_dir: str, state: State, bin_dirs: tuple[str, ...], *, default: bool) -> None:
        self.conf_dir = conf_dir
        self.state = state
        self.bin_dirs = bin_dirs
        self._default = default
        self._seen: tuple[object, ...] | None = None
        self._files: list[str] = []
        self._lists: dict[str, NetworkList] = {}
        self._errors: dict[str, InvalidInput] = {}
        self._built_in: tuple[str, NetworkList] | None = None

    def _look(self) -> None:
        try:
            entries = sorted(
                (entry for entry in os.scandir(self.conf_dir) if entry.name.endswith(SUFFIXES)),
                key=lambda entry: entry.name,
            )
            stamps = [(entry.path, entry.stat()) for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            stamps = []
        seen = tuple((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in stamps)
        if seen == self._seen:
            return
        lists: dict[str, NetworkList] = {}
        errors: dict[str, InvalidInput] = {}
        for path, _stat in stamps:
            try:
                lists[path] = read_file(path)
            except InvalidInput as error:
                errors[path] = error
        # One assignment each, the stamp last: another thread sees the old state or the new one.
        self._files, self._lists, self._errors = [path for path, _ in stamps], lists, errors
        self._seen = seen

    def all(self) -> list[NetworkList]:
        """Every network that can be read, the default one first."""
        self._look()
        found = [self._lists[path] for path in self._files if path in self._lists]
        if not self._files and self._default:
            found.append(self._built_in_network())
        return found

    def faults(self) -> list[InvalidInput]:
        """What is wrong with the files that can't be read."""
        self._look()
        return list(self._errors.values())

    def names(self) -> tuple[str, ...]:
        """The networks' names."""
        return tuple(network.name for network in self.all())

    def default(self) -> NetworkList | None:
        """The network that a pod joins when it asks for none.

        Raises:
            InvalidInput: The first file is wrong.
        """
        self._look()
        if self._files:
            first = self._files[0]
            if first in self._errors:
                raise self._errors[first]
            return self._lists[first]
        return self._built_in_network() if self._default else None

    def get(self, name: str) -> NetworkList:
        """The network of that name; the empty name is the default.

        Raises:
            NotFound: There is none.
        """
        if not name:
            network = self.default()
            if network is None:
                raise NotFound(
                    f"no network is configured in {self.conf_dir}",
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

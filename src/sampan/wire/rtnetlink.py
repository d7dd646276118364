"""rtnetlink, without I/O: links, addresses, routes, neighbours and queueing disciplines. rtnetlink(7), if_link.h.

Functions named after what they do return a :class:`Request`; ``parse_*`` read one answer. Import diet as in
:mod:`sampan.wire.netlink`.
"""

from __future__ import annotations

import struct

from sampan.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    BadMessage,
    attribute,
    attributes,
    nested,
    number,
    string,
    text,
    u16,
    u32,
)

#: Message type, flags, body: what :meth:`sampan.wire.netlink.Exchange.request` takes.
Request = tuple[int, int, bytes]

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_NEWRULE = 32
RTM_DELRULE = 33
RTM_GETRULE = 34
RTM_NEWQDISC = 36
RTM_DELQDISC = 37
RTM_NEWTFILTER = 44

AF_UNSPEC = 0
AF_INET = 2
AF_BRIDGE = 7
AF_INET6 = 10

IFF_UP = 0x1
IFF_PROMISC = 0x100
IFF_ALLMULTI = 0x200

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_TXQLEN = 13
IFLA_LINKINFO = 18
IFLA_NET_NS_PID = 19
IFLA_IFALIAS = 20
IFLA_EXT_MASK = 29
IFLA_AF_SPEC = 26
IFLA_NET_NS_FD = 28
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33
IFLA_BR_VLAN_FILTERING = 7
IFLA_BR_VLAN_DEFAULT_PVID = 39
IFLA_BRIDGE_FLAGS = 0
IFLA_BRIDGE_VLAN_INFO = 2
BRIDGE_FLAGS_MASTER = 1
BRIDGE_VLAN_INFO_PVID = 0x02
BRIDGE_VLAN_INFO_UNTAGGED = 0x04
BRIDGE_VLAN_INFO_RANGE_BEGIN = 0x08
BRIDGE_VLAN_INFO_RANGE_END = 0x10
VETH_INFO_PEER = 1

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_FLAGS = 8
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_METRICS = 8
RTA_TABLE = 15
RTAX_MTU = 2
RTAX_ADVMSS = 8

RT_TABLE_MAIN = 254
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
RTN_UNICAST = 1

FRA_SRC = 2
FRA_TABLE = 15
FR_ACT_TO_TBL = 1


#: Longest interface name, without its NUL (IFNAMSIZ - 1).
MAX_NAME = 15

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")


class Link:
    """A network interface as the kernel describes it."""

    __slots__ = (
        "alias",
        "flags",
        "index",
        "info",
        "kind",
        "lower",
        "mac",
        "master",
        "mtu",
        "name",
        "peer_netns",
        "txqlen",
    )

    def __init__(self, index: int, flags: int, fields: dict[int, bytes]) -> None:
        info = attributes(fields.get(IFLA_LINKINFO, b""))
        self.index = index
        self.flags = flags
        self.name = string(fields.get(IFLA_IFNAME))
        self.mac = fields.get(IFLA_ADDRESS, b"")
        self.mtu = number(fields.get(IFLA_MTU))
        self.txqlen = number(fields.get(IFLA_TXQLEN))
        self.master = number(fields.get(IFLA_MASTER))
        #: Index of the device this one stands on, or of a veth's other end; in ``peer_netns`` when that is not -1.
        self.lower = number(fields.get(IFLA_LINK))
        self.peer_netns = number(fields[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in fields else -1
        self.kind = string(info.get(IFLA_INFO_KIND))
        #: The kind's own attributes, undecoded.
        self.info = info.get(IFLA_INFO_DATA, b"")
        self.alias = string(fields.get(IFLA_IFALIAS))

    @property
    def up(self) -> bool:
        """Whether it was set up by its administrator."""
        return bool(self.flags & IFF_UP)


class Address:
    """An address on an interface."""

    __slots__ = ("address", "family", "flags", "index", "prefix", "scope")

    def __init__(self, family: int, prefix: int, flags: int, scope: int, index: int, address: bytes) -> None:
        self.family = family
        #: ``IFA_F_*``.
        self.flags = flags
        self.prefix = prefix
        self.scope = scope
        self.index = index
        self.address = address


class Route:
    """A route of a table."""

    __slots__ = (
        "destination",
        "family",
        "gateway",
        "index",
        "metric",
        "prefix",
        "protocol",
        "scope",
        "source",
        "table",
    )

    def __init__(self, header: tuple[int, ...], fields: dict[int, bytes]) -> None:
        self.family, self.prefix, _source, _tos, table, self.protocol, self.scope, _kind, _flags = header
        self.table = number(fields.get(RTA_TABLE)) or table
        self.destination = fields.get(RTA_DST, b"")
        self.gateway = fields.get(RTA_GATEWAY, b"")
        #: The address that packets get which have none yet.
        self.source = fields.get(RTA_PREFSRC, b"")
        self.index = number(fields.get(RTA_OIF))
        self.metric = number(fields.get(RTA_PRIORITY))


def name_attribute(name: str) -> bytes:
    """An interface's name, bounded as the kernel bounds it."""
    if not 0 < len(name.encode()) <= MAX_NAME:
        raise BadMessage(f"interface name {name!r} has not 1 to {MAX_NAME} bytes")
    return text(IFLA_IFNAME, name)


def link_header(index: int = 0, *, up: bool | None = None, family: int = AF_UNSPEC) -> bytes:
    """``struct ifinfomsg``; ``up`` sets the administrative state, None leaves it."""
    return flag_header(index, IFF_UP if up else 0, IFF_UP if up is not None else 0, family)


def flag_header(index: int, flags: int, mask: int, family: int = AF_UNSPEC) -> bytes:
    """``struct ifinfomsg`` that changes the flags in ``mask``."""
    return _LINK.pack(family, 0, index, flags, mask)


def get_link(name: str = "", index: int = 0) -> Request:
    """Ask for one link, by name or by index."""
    return RTM_GETLINK, 0, link_header(index) + (name_attribute(name) if name else b"")


def get_links() -> Request:
    """Ask for all links."""
    return RTM_GETLINK, NLM_F_DUMP, link_header()


def add_link(
    name: str,
    kind: str,
    data: bytes = b"",
    *,
    mac: bytes = b"",
    mtu: int = 0,
    master: int = 0,
    lower: int = 0,
    netns_fd: int = -1,
    up: bool = False,
) -> Request:
    """Make a link, set up and enslaved in the same call.

    Args:
        name: Its name.
        kind: The kernel's name of the driver: ``bridge``, ``veth``, ``macvlan``, ``vlan``, ``ifb``.
        data: The kind's own attributes.
        mac: Hardware address; empty: the kernel picks one.
        mtu: 0: the kind's default.
        master: Index of the bridge to join.
        lower: Index of the link that it stands on.
        netns_fd: Namespace to be made in; -1: the socket's.
        up: Whether it starts up.
    """
    info = text(IFLA_INFO_KIND, kind) + (nested(IFLA_INFO_DATA, data) if data else b"")
    body = link_header(up=up or None) + name_attribute(name) + nested(IFLA_LINKINFO, info)
    body += _link_settings(mac=mac, mtu=mtu, master=master)
    if lower:
        body += u32(IFLA_LINK, lower)
    if netns_fd >= 0:
        body += u32(IFLA_NET_NS_FD, netns_fd)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body


def _link_settings(*, mac: bytes, mtu: int, master: int) -> bytes:
    body = attribute(IFLA_ADDRESS, mac) if mac else b""
    if mtu:
        body += u32(IFLA_MTU, mtu)
    if master:
        body += u32(IFLA_MASTER, master)
    return body


def veth_peer(name: str, netns_fd: int, *, mac: bytes = b"", mtu: int = 0) -> bytes:
    """Data of a ``veth``: the other end, made in its namespace.

    It can't be made up: veth_newlink() configures it before the two ends know each other (ENOTCONN).
    """
    peer = link_header() + name_attribute(name) + _link_settings(mac=mac, mtu=mtu, master=0)
    if netns_fd >= 0:
        peer += u32(IFLA_NET_NS_FD, netns_fd)
    return attribute(VETH_INFO_PEER, peer)


def set_link(
    index: int,
    *,
    up: bool | None = None,
    name: str = "",
    mac: bytes = b"",
    mtu: int = 0,
    master: int | None = None,
    netns_fd: int = -1,
    alias: str | None = None,
    txqlen: int | None = None,
) -> Request:
    """Change a link; what is left at its default stays as it is. ``master=0`` leaves the bridge."""
    body = link_header(index, up=up) + _link_settings(mac=mac, mtu=mtu, master=0)
    if name:
        body += name_attribute(name)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if netns_fd >= 0:
        body += u32(IFLA_NET_NS_FD, netns_fd)
    if alias is not None:
        body += text(IFLA_IFALIAS, alias)
    if txqlen is not None:
        body += u32(IFLA_TXQLEN, txqlen)
    return RTM_SETLINK, 0, body


def set_up_silent(index: int = 0, name: str = "") -> Request:
    """Set a link up that makes no IPv6 address of its own, and so announces and asks nothing by multicast."""
    family = nested(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,))))
    which = name_attribute(name) if name else b""
    return RTM_SETLINK, 0, link_header(index, up=True) + which + nested(IFLA_AF_SPEC, family)


def set_link_flags(index: int, flags: int, mask: int) -> Request:
    """Change ``IFF_*`` flags."""
    return RTM_SETLINK, 0, flag_header(index, flags, mask)


def set_bridge_port(index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> Request:
    """Change how a bridge treats one of its ports."""
    settings = b"" if hairpin is None else attribute(IFLA_BRPORT_MODE, bytes((hairpin,)))
    if isolated is not None:
        settings += attribute(IFLA_BRPORT_ISOLATED, bytes((isolated,)))
    return RTM_SETLINK, 0, link_header(index, family=AF_BRIDGE) + nested(IFLA_PROTINFO, settings)


def set_vlan_filtering(index: int) -> Request:
    """Have a bridge look at the VLANs of frames."""
    data = attribute(IFLA_BR_VLAN_FILTERING, b"\1")
    info = text(IFLA_INFO_KIND, "bridge") + nested(IFLA_INFO_DATA, data)
    return RTM_NEWLINK, 0, link_header(index) + nested(IFLA_LINKINFO, info)


def add_port_vlans(index: int, first: int, last: int = 0, *, untagged: bool = False) -> Request:
    """Let a bridge's port into VLANs ``first`` to ``last``; ``untagged``: into one, as its own, without tags."""
    flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED if untagged else 0
    return RTM_SETLINK, 0, _port_vlans(index, first, last, flags)


def delete_port_vlan(index: int, vlan: int) -> Request:
    """Take a bridge's port out of a VLAN."""
    return RTM_DELLINK, 0, _port_vlans(index, vlan, 0, 0)


def _port_vlans(index: int, first: int, last: int, flags: int) -> bytes:
    ends = [(first, flags)]
    if last > first:
        ends = [(first, flags | BRIDGE_VLAN_INFO_RANGE_BEGIN), (last, flags | BRIDGE_VLAN_INFO_RANGE_END)]
    settings = u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_MASTER)
    for vlan, how in ends:
        settings += attribute(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", how, vlan))
    return link_header(index, family=AF_BRIDGE) + nested(IFLA_AF_SPEC, settings)


def delete_link(index: int = 0, name: str = "") -> Request:
    """Delete a link; of a veth both ends go."""
    return RTM_DELLINK, 0, link_header(index) + (name_attribute(name) if name else b"")


def parse_link(body: bytes) -> Link:
    """Read an RTM_NEWLINK."""
    _family, _type, index, flags, _change = _unpack(_LINK, body)
    return Link(index, flags, attributes(body, _LINK.size))


def _family(address: bytes) -> int:
    if len(address) not in (4, 16):
        raise BadMessage(f"an IP address has 4 or 16 bytes, not {len(address)}")
    return AF_INET if len(address) == 4 else AF_INET6


def add_address(
    index: int, address: bytes, prefix: int, *, broadcast: bool = True, exclusive: bool = True, detect: bool = False
) -> Request:
    """Put an address on a link. Unless told to ``detect``, IPv6 looks for no duplicate: who asks has leased it."""
    family = _family(address)
    body = _ADDRESS.pack(family, prefix, 0, 0, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    if family == AF_INET6:
        body += b"" if detect else u32(IFA_FLAGS, IFA_F_NODAD)
    elif broadcast and prefix < 31:
        host = (1 << (32 - prefix)) - 1
        body += attribute(IFA_BROADCAST, (int.from_bytes(address, "big") | host).to_bytes(4, "big"))
    return RTM_NEWADDR, NLM_F_CREATE | (NLM_F_EXCL if exclusive else NLM_F_REPLACE), body


def delete_address(index: int, address: bytes, prefix: int) -> Request:
    """Take an address from a link."""
    return RTM_DELADDR, 0, _ADDRESS.pack(_family(address), prefix, 0, 0, index) + attribute(IFA_LOCAL, address)


def get_addresses(family: int = AF_UNSPEC, index: int = 0) -> Request:
    """Ask for addresses; the filter by ``index`` counts on a socket with NETLINK_GET_STRICT_CHK."""
    return RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(family, 0, 0, 0, index)


def parse_address(body: bytes) -> Address:
    """Read an RTM_NEWADDR."""
    family, prefix, flags, scope, index = _unpack(_ADDRESS, body)
    fields = attributes(body, _ADDRESS.size)
    flags |= number(fields.get(IFA_FLAGS))
    return Address(family, prefix, flags, scope, index, fields.get(IFA_LOCAL) or fields.get(IFA_ADDRESS, b""))


def add_route(
    index: int,
    destination: bytes,
    prefix: int,
    gateway: bytes = b"",
    *,
    scope: int | None = None,
    metric: int = 0,
    mtu: int = 0,
    advmss: int = 0,
    table: int = RT_TABLE_MAIN,
    protocol: int = RTPROT_BOOT,
    source: bytes = b"",
    exclusive: bool = True,
) -> Request:
    """Add a route; ``destination`` gives the family, a ``prefix`` of 0 the default route."""
    if scope is None:
        scope = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
    body = _route(index, destination, prefix, table, scope, protocol)
    if source:
        body += attribute(RTA_PREFSRC, source)
    if gateway:
        if len(gateway) != len(destination):
            raise BadMessage("a route's gateway is of the other address family")
        body += attribute(RTA_GATEWAY, gateway)
    if metric:
        body += u32(RTA_PRIORITY, metric)
    metrics = (u32(RTAX_MTU, mtu) if mtu else b"") + (u32(RTAX_ADVMSS, advmss) if advmss else b"")
    if metrics:
        body += nested(RTA_METRICS, metrics)
    return RTM_NEWROUTE, NLM_F_CREATE | (NLM_F_EXCL if exclusive else NLM_F_REPLACE), body


def _route(index: int, destination: bytes, prefix: int, table: int, scope: int, protocol: int) -> bytes:
    body = _ROUTE.pack(_family(destination), prefix, 0, 0, table if table < 256 else 0, protocol, scope, RTN_UNICAST, 0)
    if prefix:
        body += attribute(RTA_DST, destination)
    return body + u32(RTA_OIF, index) + u32(RTA_TABLE, table)


def delete_route(index: int, destination: bytes, prefix: int, table: int = RT_TABLE_MAIN) -> Request:
    """Delete a route."""
    body = _ROUTE.pack(_family(destination), prefix, 0, 0, table if table < 256 else 0, 0, 255, 0, 0)
    if prefix:
        body += attribute(RTA_DST, destination)
    return RTM_DELROUTE, 0, body + u32(RTA_OIF, index) + u32(RTA_TABLE, table)


def get_routes(family: int = AF_UNSPEC) -> Request:
    """Ask for all routes."""
    return RTM_GETROUTE, NLM_F_DUMP, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)


def parse_route(body: bytes) -> Route:
    """Read an RTM_NEWROUTE."""
    return Route(_unpack(_ROUTE, body), attributes(body, _ROUTE.size))


def add_rule(source: bytes, table: int) -> Request:
    """Have packets from one address look into ``table``."""
    return RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule(source, table)


def delete_rule(source: bytes, table: int) -> Request:
    """Take such a rule away."""
    return RTM_DELRULE, 0, _rule(source, table)


def _rule(source: bytes, table: int) -> bytes:
    body = _ROUTE.pack(_family(source), 0, len(source) * 8, 0, table if table < 256 else 0, 0, 0, FR_ACT_TO_TBL, 0)
    return body + attribute(FRA_SRC, source) + u32(FRA_TABLE, table)


def get_rules() -> Request:
    """Ask for all routing rules."""
    return RTM_GETRULE, NLM_F_DUMP, _ROUTE.pack(AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)


def parse_rule(body: bytes) -> tuple[bytes, int]:
    """Read an RTM_NEWRULE: its source address, which may be empty, and its table."""
    header = _unpack(_ROUTE, body)
    fields = attributes(body, _ROUTE.size)
    return fields.get(FRA_SRC, b""), number(fields.get(FRA_TABLE)) or header[4]


def _unpack(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < form.size:
        raise BadMessage(f"rtnetlink answer of {len(body)} bytes; its header has {form.size}")
    fields: tuple[int, ...] = form.unpack_from(body)
    return fields

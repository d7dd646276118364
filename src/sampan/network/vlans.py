"""VLANs of a bridge: which of them a container's port is in, and the machine's own interface in one.

A port is either in one VLAN without seeing it (``vlan``) or in several with tags (``vlanTrunk``). The machine is a
gateway in a VLAN by a veth pair of its own: a port of the bridge in that VLAN, and ``BRIDGE.VLAN`` with the address.
"""

import errno
import hashlib

import msgspec

from sampan.errors import InvalidInput, StageFailed, Unsupported, WrongState
from sampan.network.call import Call
from sampan.network.interface import MADE_BRIDGE, MADE_LINK
from sampan.wire import rtnetlink
from sampan.wire.netlink import attributes, number, u8
from sampan.wire.rtnetlink import Link, Request

_LAST = 4094


class Trunk(msgspec.Struct, kw_only=True):
    """VLANs that a port carries tagged: one, a range, or both."""

    id: int | None = None
    min_id: int | None = msgspec.field(name="minID", default=None)
    max_id: int | None = msgspec.field(name="maxID", default=None)


class Ports:
    """How a network's ports stand in VLANs.

    Args:
        access: The VLAN that they are in untagged; 0: none.
        trunk: Those that they carry tagged.
        preserve_default: Whether they also stay in the bridge's default VLAN.

    Raises:
        ValueError: With the field.
    """

    __slots__ = ("access", "preserve_default", "ranges")

    def __init__(self, access: int, trunk: list[Trunk], *, preserve_default: bool) -> None:
        if not 0 <= access <= _LAST:
            raise ValueError(f"vlan: {access} is not between 0 and {_LAST}")
        self.access = access
        self.preserve_default = preserve_default
        self.ranges = [span for index, entry in enumerate(trunk) for span in _ranges(entry, f"vlanTrunk[{index}]")]
        if access and self.ranges:
            raise ValueError("vlanTrunk: cannot be set together with vlan")

    @property
    def used(self) -> bool:
        """Whether there are any."""
        return bool(self.access or self.ranges)

    @property
    def bridge_data(self) -> bytes:
        """What a new bridge must be told."""
        return u8(rtnetlink.IFLA_BR_VLAN_FILTERING, 1) if self.used else b""


def _ranges(entry: Trunk, field: str) -> list[tuple[int, int]]:
    for name, value in (("id", entry.id), ("minID", entry.min_id), ("maxID", entry.max_id)):
        if value is not None and not 1 <= value <= _LAST:
            raise ValueError(f"{field}.{name}: {value} is not between 1 and {_LAST}")
    found = [] if entry.id is None else [(entry.id, entry.id)]
    if (entry.min_id is None) != (entry.max_id is None):
        raise ValueError(f"{field}: minID and maxID must be given together")
    if entry.min_id is not None and entry.max_id is not None:
        if entry.min_id > entry.max_id:
            raise ValueError(f"{field}.minID: {entry.min_id} is greater than maxID {entry.max_id}")
        found.append((entry.min_id, entry.max_id))
    return found


def make_bridge(call: Call, name: str, request: Request, ports: Ports) -> None:
    """Make a bridge; one that somebody else has made meanwhile is as good."""
    error = call.session.host.exchange([request]).errors[0]
    if error is None or error.errno == errno.EEXIST:
        return
    if ports.used and error.errno == errno.EOPNOTSUPP:
        raise Unsupported(
            f"bridge {name} cannot have VLANs: this kernel's bridges know none",
            hint="it needs CONFIG_BRIDGE_VLAN_FILTERING",
        ) from None
    raise StageFailed(f"make bridge {name}", error) from error


def ensure_filtering(call: Call, bridge: Link, ports: Ports) -> None:
    """Have the bridge keep VLANs apart: one of ours is told to, another's administrator is asked to.

    Raises:
        WrongState: Somebody else's bridge does not look at VLANs: ports would not be kept apart.
    """
    if not ports.used or number(attributes(bridge.info).get(rtnetlink.IFLA_BR_VLAN_FILTERING)):
        return
    if not call.session.state.fact(MADE_BRIDGE + bridge.name):
        raise WrongState(
            f"bridge {bridge.name} does not look at VLANs",
            hint=f"ip link set {bridge.name} type bridge vlan_filtering 1, or name another bridge",
        )
    call.session.host.do(f"have bridge {bridge.name} look at VLANs", rtnetlink.set_vlan_filtering(bridge.index))


def set_port(call: Call, bridge: Link, port: Link, ports: Ports) -> None:
    """Put a port into its VLANs."""
    if not ports.used:
        return
    requests = []
    default = number(attributes(bridge.info).get(rtnetlink.IFLA_BR_VLAN_DEFAULT_PVID))
    if default and not ports.preserve_default:
        requests.append(rtnetlink.delete_port_vlan(port.index, default))
    if ports.access:
        requests.append(rtnetlink.add_port_vlans(port.index, ports.access, untagged=True))
    requests += [rtnetlink.add_port_vlans(port.index, first, last) for first, last in ports.ranges]
    call.session.host.do(f"put port {port.name} into its VLANs", *requests)


def gateway(call: Call, bridge: Link, ports: Ports) -> Link:
    """The machine's interface in the VLAN of the network's containers.

    Raises:
        InvalidInput: Its name would be too long.
    """
    name = f"{bridge.name}.{ports.access}"
    if len(name) > rtnetlink.MAX_NAME:
        raise InvalidInput(
            f"the gateway's interface {name} would have more than {rtnetlink.MAX_NAME} letters", field="bridge"
        )
    host = call.session.host
    link = host.find_link(name)
    if link is None:
        port = f"veth{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        request = rtnetlink.add_link(
            port, "veth", rtnetlink.veth_peer(name, -1, mtu=bridge.mtu), mtu=bridge.mtu, master=bridge.index
        )
        host.do(f"make {name}", request, tolerate=(errno.EEXIST,))
        call.session.state.set_fact(MADE_LINK + name, call.owner.network)
        made = host.link(port)
        set_port(call, bridge, made, ports)
        host.do(f"set {port} up", rtnetlink.set_link(made.index, up=True))
        link = host.link(name)
    if not link.up:
        host.do(f"set {name} up", rtnetlink.set_link(link.index, up=True))
    return link

"""What the plugins that make an interface have in common: addresses by IPAM, the container's side, the result."""

import errno
import hashlib
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from sampan.errors import InvalidInput, StageFailed, WrongState
from sampan.network import netns
from sampan.network.call import Call
from sampan.network.netns import set_sysctl
from sampan.spec.cni import IpConfig, Result, Route
from sampan.wire import rtnetlink

IpInterface = IPv4Interface | IPv6Interface


def ipam_type(call: Call) -> str:
    """The ``type`` of the ``ipam`` section, or the empty string."""
    ipam = call.conf.get("ipam") or {}
    return str(ipam.get("type", "")) if isinstance(ipam, dict) else ""


def ask_addresses(call: Call) -> Result:
    """Call the IPAM plugin of the configuration.

    Raises:
        InvalidInput: It gave no address, or one that can't be read.
    """
    delegate = call.session.delegate
    if delegate is None:
        raise AssertionError("a session without a delegate has no IPAM")
    result = delegate("ADD", call, ipam_type(call))
    if result is None or not result.ips:
        raise InvalidInput(f"IPAM plugin {ipam_type(call)} returned no address", field="ipam")
    for config in result.ips:
        _interface_of(config)
    return result


def return_addresses(call: Call) -> None:
    """Give the addresses back, if the configuration has an IPAM."""
    if ipam_type(call) and call.session.delegate is not None:
        call.session.delegate("DEL", call, ipam_type(call))


def check_addresses(call: Call) -> None:
    """CHECK of the IPAM plugin."""
    if ipam_type(call) and call.session.delegate is not None:
        call.session.delegate("CHECK", call, ipam_type(call))


def _interface_of(config: IpConfig) -> IpInterface:
    try:
        return ip_interface(config.address)
    except ValueError:
        raise InvalidInput(f"{config.address!r} is no address with a prefix length", field="ips") from None


def address_of(config: IpConfig) -> IpInterface:
    """An address of a result, with its network."""
    return _interface_of(config)


def hardware_address(call: Call, wanted: str, addresses: list[IpInterface]) -> bytes:
    """The interface's hardware address: the one asked for, or one that follows from the address.

    The same IP has always the same hardware address, so that no neighbour's cache is wrong when an IP is leased again:
    no announcement has to be waited for.
    """
    if wanted:
        return parse_mac(wanted)
    for address in addresses:
        if address.version == 4:
            return b"\x0a\x58" + address.ip.packed
    seed = addresses[0].ip.packed if addresses else f"{call.owner.container}/{call.ifname}".encode()
    return b"\x0a\x58" + hashlib.sha256(seed).digest()[:4]


def parse_mac(text: str) -> bytes:
    """Read ``02:11:22:33:44:55``."""
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1:
        raise InvalidInput(f"{text!r} is no hardware address of one interface", field="mac")
    return mac


def mac_text(mac: bytes) -> str:
    """Write a hardware address."""
    return ":".join(f"{byte:02x}" for byte in mac)


def host_name(call: Call, prefix: str = "veth") -> str:
    """Name of the machine's end: the same for the same container and interface, so that a retry finds it."""
    seed = f"{call.owner.network}\0{call.owner.container}\0{call.ifname}".encode()
    return prefix + hashlib.sha256(seed).hexdigest()[:8]


def configure(call: Call, result: Result, index: int, *, up: bool = True) -> None:
    """Set the container's interface up and give it its addresses and routes, in one send.

    Raises:
        StageFailed: The kernel refused one.
    """
    addresses = [_interface_of(config) for config in result.ips]
    if any(address.version == 6 for address in addresses):
        with netns.inside(call.session.netns):
            set_sysctl(f"net/ipv6/conf/{call.ifname}/disable_ipv6", "0")
    requests = [rtnetlink.set_link(index, up=up)]
    requests += [rtnetlink.add_address(index, a.ip.packed, a.network.prefixlen) for a in addresses]
    requests += [_route_request(route, result, index) for route in result.routes]
    exchange = call.session.inside.exchange(requests)
    what = ["link state", *(f"address {a}" for a in addresses), *(f"route {route.dst}" for route in result.routes)]
    for error, name in zip(exchange.errors, what, strict=True):
        if error is not None and error.errno != errno.EEXIST:
            raise StageFailed(f"set {name} of {call.ifname} of {call.owner.container}", error) from error


def _route_request(route: Route, result: Result, index: int) -> rtnetlink.Request:
    try:
        destination = ip_network(route.dst, strict=False)
        gateway = ip_address(route.gw) if route.gw else None
    except ValueError as error:
        raise InvalidInput(str(error), field="routes") from None
    if gateway is None and route.scope in (None, rtnetlink.RT_SCOPE_UNIVERSE):
        gateway = next(
            (ip_address(c.gateway) for c in result.ips if c.gateway and (":" in c.gateway) == (":" in route.dst)), None
        )
    return rtnetlink.add_route(
        index,
        destination.network_address.packed,
        destination.prefixlen,
        gateway.packed if gateway else b"",
        scope=route.scope,
        metric=route.priority,
        mtu=route.mtu,
        advmss=route.advmss,
        table=route.table or rtnetlink.RT_TABLE_MAIN,
    )


def check_inside(call: Call) -> None:
    """CHECK of the container's side: the interface is up and has every address of ``prevResult``.

    Raises:
        WrongState: With what is missing.
    """
    previous = call.previous
    link = call.session.inside.find_link(call.ifname)
    if link is None:
        raise WrongState(f"container {call.owner.container} has no interface {call.ifname}")
    mine = [i for i, entry in enumerate(previous.interfaces) if entry.sandbox and entry.name == call.ifname]
    for i in mine:
        expected = previous.interfaces[i].mac
        if expected and expected.lower() != mac_text(link.mac):
            raise WrongState(f"{call.ifname} has the hardware address {mac_text(link.mac)}, not {expected}")
    present = {(a.address, a.prefix) for a in call.session.inside.addresses(link.index)}
    for config in previous.ips:
        if config.interface is not None and config.interface not in mine:
            continue
        address = _interface_of(config)
        if (address.ip.packed, address.network.prefixlen) not in present:
            raise WrongState(f"{call.ifname} of container {call.owner.container} has lost the address {address}")


def remove_inside(call: Call, *host_names: str) -> None:
    """Delete the container's interface, unless its namespace is about to end with all that is in it.

    Args:
        call: The plugin's turn.
        host_names: Machine ends to delete when the namespace is gone and they are not.
    """
    session = call.session
    if session.netns_ends:
        return
    if not session.netns_gone:
        link = session.inside.find_link(call.ifname)
        if link is not None:
            session.inside.do(f"delete {call.ifname}", rtnetlink.delete_link(link.index), tolerate=(errno.ENODEV,))
        return
    for name in host_names:
        link = session.host.find_link(name)
        if link is not None:
            session.host.do(f"delete {name}", rtnetlink.delete_link(link.index), tolerate=(errno.ENODEV,))


def enable_forwarding(addresses: list[IpInterface]) -> None:
    """Let the machine forward packets of the addresses' families."""
    if any(address.version == 4 for address in addresses):
        set_sysctl("net/ipv4/ip_forward", "1")
    if any(address.version == 6 for address in addresses):
        set_sysctl("net/ipv6/conf/all/forwarding", "1")

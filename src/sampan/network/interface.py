"""What the plugins that make an interface have in common: addresses by IPAM, the container's side, the result."""

import errno
import hashlib
import time
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from sampan.errors import InvalidInput, StageFailed, TimedOut, WrongState
from sampan.network import netns
from sampan.network.call import Call
from sampan.network.netns import set_sysctl
from sampan.spec.cni import Dns, IpConfig, Result, Route
from sampan.wire import rtnetlink
from sampan.wire.rtnetlink import Link

IpInterface = IPv4Interface | IPv6Interface

#: Facts of this prefix name the bridges that we made.
MADE_BRIDGE = "bridge/"
#: And the interfaces by which the machine is in a bridge's VLANs.
MADE_LINK = "link/"

_TRIES = 5
#: What the standard plugin waits for duplicate address detection, and how often is looked.
_DETECTION_SECONDS = 10.0
_DETECTION_STEP = 0.05
#: On an interface with a smaller one the kernel has no IPv6, which then can't be told to keep silent.
_MIN_MTU_OF_IPV6 = 1280


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
    """Give the addresses back, if the configuration has an IPAM; the last step, for nobody may still use them."""
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


def make_pair(call: Call, *, mac: bytes, mtu: int, up: bool) -> Link:
    """Make a veth pair: one end the container's interface, the other the machine's.

    Args:
        call: The plugin's turn.
        mac: The container's hardware address.
        mtu: 0: the kernel's default.
        up: Set the machine's end up.

    Returns:
        The machine's end.

    Raises:
        WrongState: The container has an interface of that name.
    """
    session = call.session
    if session.inside.find_link(call.ifname) is not None:
        raise WrongState(f"container {call.owner.container} already has an interface {call.ifname}")
    name = host_name(call)
    peer = rtnetlink.veth_peer(call.ifname, session.netns, mac=mac, mtu=mtu)
    request = rtnetlink.add_link(name, "veth", peer, mtu=mtu, up=up)
    for attempt in range(_TRIES):
        error = session.host.exchange([request]).errors[0]
        if error is None:
            break
        if error.errno != errno.EEXIST or attempt == _TRIES - 1:
            raise StageFailed(f"make the veth pair of {call.owner.container}", error) from error
        # The same container's earlier attempt, whose namespace has gone but not yet all that was in it.
        session.host.do(f"delete {name}", rtnetlink.delete_link(name=name), tolerate=(errno.ENODEV,))
    return session.host.link(name)


def with_dns(result: Result, dns: Dns) -> Result:
    """Put the configuration's ``dns`` in, if it says anything."""
    if dns.nameservers or dns.domain or dns.search or dns.options:
        result.dns = dns
    return result


def lower_device(call: Call, name: str, *, inside: bool) -> Link:
    """The device that an interface shall stand on; with no name the default route's.

    Raises:
        InvalidInput: There is none.
    """
    kernel = call.session.inside if inside else call.session.host
    if name:
        link = kernel.find_link(name)
        if link is None:
            raise InvalidInput(f"there is no device {name}", field="master")
        return link
    for family in (rtnetlink.AF_INET, rtnetlink.AF_INET6):
        for route in kernel.routes(family):
            if route.prefix == 0 and route.table == rtnetlink.RT_TABLE_MAIN and route.index:
                return kernel.link(index=route.index)
    raise InvalidInput("no device is named, and there is no default route to go by", field="master")


def make_above(call: Call, kind: str, data: bytes, lower: Link, mtu: int, mac: str, *, inside: bool) -> Link:
    """Make an interface of ``kind`` over ``lower``, at once in the container's namespace and under its name."""
    session = call.session
    if session.inside.find_link(call.ifname) is not None:
        raise WrongState(f"container {call.owner.container} already has an interface {call.ifname}")
    request = rtnetlink.add_link(
        call.ifname,
        kind,
        data,
        mac=parse_mac(mac) if mac else b"",
        mtu=mtu or lower.mtu,
        lower=lower.index,
        netns_fd=-1 if inside else session.netns,
    )
    kernel = session.inside if inside else session.host
    error = kernel.exchange([request]).errors[0]
    if error is not None:
        hint = f"this kernel has no {kind}" if error.errno == errno.EOPNOTSUPP else ""
        raise StageFailed(f"make {kind} {call.ifname} over {lower.name}", error, hint=hint) from error
    return session.inside.link(call.ifname)


def configure(
    call: Call, result: Result, link: Link, *, up: bool = True, announce: bool = False, detect: bool = False
) -> None:
    """Set the container's interface up and give it its addresses and routes, in one send.

    Args:
        call: The plugin's turn.
        result: What it shall have.
        link: The interface.
        up: Whether it is set up.
        announce: Tell the neighbours (arp_notify, ndisc_notify), whose caches may have the address elsewhere.
        detect: Have IPv6 look for a neighbour with the same address, and wait until it knows: a second or two.

    Raises:
        StageFailed: The kernel refused one.
        WrongState: A neighbour has the same address.
    """
    index = link.index
    addresses = [_interface_of(config) for config in result.ips]
    if any(address.version == 6 for address in addresses):
        with netns.inside(call.session.netns):
            set_sysctl(f"net/ipv6/conf/{call.ifname}/disable_ipv6", "0")
    if announce:
        with netns.inside(call.session.netns):
            set_sysctl(f"net/ipv4/conf/{call.ifname}/arp_notify", "1", missing_ok=True)
            set_sysctl(f"net/ipv6/conf/{call.ifname}/ndisc_notify", "1", missing_ok=True)
    requests = [rtnetlink.add_address(index, a.ip.packed, a.network.prefixlen, detect=detect) for a in addresses]
    # Up after the addresses: that is when the kernel announces them, if it was told to.
    requests.append(_state(link, addresses, up=up))
    requests += [_route_request(route, result, index) for route in result.routes]
    exchange = call.session.inside.exchange(requests)
    what = [*(f"address {a}" for a in addresses), "link state", *(f"route {route.dst}" for route in result.routes)]
    for error, name in zip(exchange.errors, what, strict=True):
        if error is not None and error.errno != errno.EEXIST:
            raise StageFailed(f"set {name} of {call.ifname} of {call.owner.container}", error) from error
    if detect and up:
        _await_detection(call, index)


def _await_detection(call: Call, index: int) -> None:
    """Wait until no address is tentative any more; RFC 4862, section 5.4."""
    until = time.monotonic() + _DETECTION_SECONDS
    while True:
        present = call.session.inside.addresses(index)
        for address in present:
            if address.flags & rtnetlink.IFA_F_DADFAILED:
                raise WrongState(f"address {ip_address(address.address)} is another's on the same network")
        if not any(address.flags & rtnetlink.IFA_F_TENTATIVE for address in present):
            return
        if time.monotonic() > until:
            raise TimedOut(f"the addresses of {call.ifname} are tentative after {_DETECTION_SECONDS:g} s")
        time.sleep(_DETECTION_STEP)


def _state(link: Link, addresses: list[IpInterface], *, up: bool) -> rtnetlink.Request:
    """Set the interface up, without IPv6's own announcements where nobody gave it an IPv6 address.

    A bridge floods each of them (duplicate detection, multicast reports, router solicitations) to every other port:
    with 500 pods on it that was three quarters of the time that the next one took.
    """
    return set_up_silent(link) if up and is_silent(addresses) else rtnetlink.set_link(link.index, up=up)


def is_silent(addresses: list[IpInterface]) -> bool:
    """Whether a container's interface with these addresses sends nothing of its own when it comes up."""
    return bool(addresses) and all(address.version == 4 for address in addresses)


def set_up_silent(link: Link) -> rtnetlink.Request:
    """Set a link up that makes no IPv6 address of its own."""
    silent = link.mtu >= _MIN_MTU_OF_IPV6
    return rtnetlink.set_up_silent(link.index) if silent else rtnetlink.set_link(link.index, up=True)


def add_routes(call: Call, result: Result, index: int) -> None:
    """Add the result's routes; one that is there already stays."""
    for route in result.routes:
        stage = f"add route {route.dst} to {call.ifname} of {call.owner.container}"
        call.session.inside.do(stage, _route_request(route, result, index), tolerate=(errno.EEXIST,))


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

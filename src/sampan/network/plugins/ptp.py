"""``ptp``: a veth pair between the container and the machine, routed, with no bridge.

The container's address has its subnet's prefix, but every packet goes to the machine: the route that the kernel
makes for the subnet is replaced by one to the gateway and one through it.
"""

import errno
from ipaddress import ip_address
from typing import Any

import msgspec

from sampan.errors import InvalidInput
from sampan.network import interface
from sampan.network.call import Call
from sampan.network.interface import IpInterface
from sampan.network.masquerade import masquerade
from sampan.spec.cni import Dns, Interface, Result
from sampan.wire import rtnetlink


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "ptp"
    ip_masq: bool = msgspec.field(name="ipMasq", default=False)
    mtu: int = 0
    ipam: dict[str, Any]
    dns: Dns = msgspec.field(default_factory=Dns)


def add(call: Call) -> Result:
    """Make the pair and its routes."""
    conf = call.decode(Conf)
    session = call.session
    result = interface.ask_addresses(call)
    addresses = [interface.address_of(config) for config in result.ips]
    for config, address in zip(result.ips, addresses, strict=True):
        if not config.gateway:
            raise InvalidInput(f"IPAM gave no gateway with {address}", field="ipam")
        config.interface = 1
    interface.enable_forwarding(addresses)
    mac = interface.hardware_address(call, "", addresses)
    host = interface.make_pair(call, mac=mac, mtu=conf.mtu, up=True)
    inside = session.inside.link(call.ifname)
    result.interfaces = [
        Interface(name=host.name, mac=interface.mac_text(host.mac)),
        Interface(name=call.ifname, mac=interface.mac_text(mac), sandbox=session.netns_path),
    ]
    session.host.do(f"route to {call.owner.container}", *_host_side(host.index, result, addresses))
    routes, result.routes = result.routes, []
    interface.configure(call, result, inside)
    session.inside.do(
        f"route {call.ifname} of {call.owner.container} through the machine",
        *_container_side(inside.index, result, addresses),
        tolerate=(errno.ESRCH,),
    )
    result.routes = routes
    interface.add_routes(call, result, inside.index)
    if conf.ip_masq:
        masquerade(call, addresses)
    return interface.with_dns(result, conf.dns)


def _host_side(index: int, result: Result, addresses: list[IpInterface]) -> list[rtnetlink.Request]:
    found = []
    for config, address in zip(result.ips, addresses, strict=True):
        gateway = ip_address(config.gateway).packed
        found.append(rtnetlink.add_address(index, gateway, address.max_prefixlen, exclusive=False))
        found.append(rtnetlink.add_route(index, address.ip.packed, address.max_prefixlen, exclusive=False))
    return found


def _container_side(index: int, result: Result, addresses: list[IpInterface]) -> list[rtnetlink.Request]:
    found = []
    for config, address in zip(result.ips, addresses, strict=True):
        gateway = ip_address(config.gateway).packed
        subnet = address.network.network_address.packed
        found.append(rtnetlink.delete_route(index, subnet, address.network.prefixlen))
        found.append(rtnetlink.add_route(index, gateway, address.max_prefixlen, exclusive=False))
        found.append(rtnetlink.add_route(index, subnet, address.network.prefixlen, gateway, exclusive=False))
    return found


def delete(call: Call) -> None:
    """Take the pair and the rules away."""
    interface.remove_inside(call, interface.host_name(call))
    call.drop_rules()
    interface.return_addresses(call)


def check(call: Call) -> None:
    """See that the container's side is as it was made."""
    interface.check_addresses(call)
    interface.check_inside(call)

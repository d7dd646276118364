"""``bridge``: a veth pair between the container and a bridge of the machine.

When the call returns the machine's end is on the bridge and up; the other is in its namespace, named, addressed and up.
"""

import errno
import os
from ipaddress import ip_interface
from typing import Any

import msgspec

from sampan.errors import WrongState
from sampan.network import interface, vlans
from sampan.network.call import Call
from sampan.network.interface import IpInterface
from sampan.network.masquerade import masquerade
from sampan.network.netns import set_sysctl
from sampan.spec.cni import Dns, Interface, Result, Route
from sampan.wire import rtnetlink
from sampan.wire.nfnetlink import NFPROTO_BRIDGE, Element, concatenation
from sampan.wire.rtnetlink import Link


class _CniArgs(msgspec.Struct):
    mac: str = ""


class _Args(msgspec.Struct):
    cni: _CniArgs = msgspec.field(default_factory=_CniArgs)


class _Runtime(msgspec.Struct):
    mac: str = ""


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "bridge"
    bridge: str = "cni0"
    is_gateway: bool = msgspec.field(name="isGateway", default=False)
    is_default_gateway: bool = msgspec.field(name="isDefaultGateway", default=False)
    force_address: bool = msgspec.field(name="forceAddress", default=False)
    ip_masq: bool = msgspec.field(name="ipMasq", default=False)
    mtu: int = 0
    hairpin_mode: bool = msgspec.field(name="hairpinMode", default=False)
    promisc_mode: bool = msgspec.field(name="promiscMode", default=False)
    vlan: int = 0
    vlan_trunk: list[vlans.Trunk] = msgspec.field(name="vlanTrunk", default_factory=list)
    preserve_default_vlan: bool = msgspec.field(name="preserveDefaultVlan", default=True)
    macspoofchk: bool = False
    enabledad: bool = False
    port_isolation: bool = msgspec.field(name="portIsolation", default=False)
    disable_container_interface: bool = msgspec.field(name="disableContainerInterface", default=False)
    ipam: dict[str, Any] = {}
    dns: Dns = msgspec.field(default_factory=Dns)
    args: _Args = msgspec.field(default_factory=_Args)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        if not 0 < len(self.bridge.encode()) <= rtnetlink.MAX_NAME or "/" in self.bridge:
            raise ValueError(f"bridge: {self.bridge!r} is no interface name")
        if self.mtu and not 68 <= self.mtu <= 65535:
            raise ValueError(f"mtu: {self.mtu} is not between 68 and 65535")
        self.ports  # noqa: B018 - an error before anything is done
        if self.hairpin_mode and self.promisc_mode:
            raise ValueError("hairpinMode: cannot be set together with promiscMode")
        self.is_gateway = self.is_gateway or self.is_default_gateway

    @property
    def ports(self) -> vlans.Ports:
        """The VLANs of the containers' ports."""
        return vlans.Ports(self.vlan, self.vlan_trunk, preserve_default=self.preserve_default_vlan)


def add(call: Call) -> Result:
    """Join the container to the bridge."""
    conf = call.decode(Conf)
    session = call.session
    bridge = _ensure_bridge(call, conf)
    result = interface.ask_addresses(call) if interface.ipam_type(call) else Result()
    addresses = [interface.address_of(config) for config in result.ips]
    # With a VLAN the gateway's addresses are on an interface in that VLAN.
    gateway = vlans.gateway(call, bridge, conf.ports) if conf.is_gateway and conf.vlan and addresses else None
    if conf.is_gateway:
        _be_gateway(call, conf, gateway or bridge, result, addresses)
    wanted = conf.runtime_config.mac or conf.args.cni.mac or call.args.get("MAC", "")
    mac = interface.hardware_address(call, wanted, addresses)
    host = interface.make_pair(call, mac=mac, mtu=conf.mtu, up=False)
    # Each time that a port of a bridge comes up or goes down the kernel looks at all the others: at 500 for half a
    # millisecond. So it gets onto the bridge when it is complete, unless something would be sent before.
    last = interface.is_silent(addresses)
    if not last:
        _join(call, conf, bridge, host, mac)
    inside = session.inside.link(call.ifname)
    interface.configure(call, result, inside, up=not conf.disable_container_interface, detect=conf.enabledad)
    if last:
        _join(call, conf, bridge, host, mac)
    if conf.ip_masq and addresses:
        masquerade(call, addresses)
    result.interfaces = [
        Interface(name=bridge.name, mac=interface.mac_text(bridge.mac)),
        Interface(name=host.name, mac=interface.mac_text(host.mac)),
        Interface(name=call.ifname, mac=interface.mac_text(mac), sandbox=session.netns_path),
    ]
    if gateway is not None:
        result.interfaces.append(Interface(name=gateway.name, mac=interface.mac_text(gateway.mac)))
    for config in result.ips:
        config.interface = 2
    return interface.with_dns(result, conf.dns)


def _ensure_bridge(call: Call, conf: Conf) -> Link:
    host = call.session.host
    link = host.find_link(conf.bridge)
    if link is None:
        # A hardware address of its own, or the bridge would change to its lowest port's each time one comes or goes.
        mac = bytes((0x02 | os.urandom(1)[0] & 0xFC,)) + os.urandom(5)
        request = rtnetlink.add_link(conf.bridge, "bridge", conf.ports.bridge_data, mac=mac, mtu=conf.mtu, up=True)
        vlans.make_bridge(call, conf.bridge, request, conf.ports)
        call.session.state.set_fact(f"{interface.MADE_BRIDGE}{conf.bridge}", call.owner.network)
        link = host.link(conf.bridge)
        set_sysctl(f"net/ipv6/conf/{conf.bridge}/accept_dad", "0", missing_ok=True)
    if link.kind != "bridge":
        raise WrongState(
            f"interface {conf.bridge} is of kind {link.kind or 'physical'}, not a bridge",
            hint="name another bridge in the conflist",
        )
    vlans.ensure_filtering(call, link, conf.ports)
    if not link.up:
        host.do(f"set bridge {conf.bridge} up", rtnetlink.set_link(link.index, up=True))
    if conf.promisc_mode and not link.flags & rtnetlink.IFF_PROMISC:
        flags = rtnetlink.set_link_flags(link.index, rtnetlink.IFF_PROMISC, rtnetlink.IFF_PROMISC)
        host.do(f"set bridge {conf.bridge} promiscuous", flags)
    return link


def _be_gateway(call: Call, conf: Conf, bridge: Link, result: Result, addresses: list[IpInterface]) -> None:
    present = call.session.host.addresses(bridge.index)
    for config, address in zip(result.ips, addresses, strict=True):
        if not config.gateway:
            config.gateway = str(address.network.network_address + 1)
        gateway = ip_interface(f"{config.gateway}/{address.network.prefixlen}")
        family = rtnetlink.AF_INET if address.version == 4 else rtnetlink.AF_INET6
        if not any((a.address, a.prefix) == (gateway.ip.packed, gateway.network.prefixlen) for a in present):
            others = [a for a in present if a.family == family and _clashes(a, gateway)]
            _claim_address(call, conf, bridge, gateway, others)
        if conf.is_default_gateway:
            default = "0.0.0.0/0" if address.version == 4 else "::/0"
            if not any(route.dst == default for route in result.routes):
                result.routes.append(Route(dst=default, gw=config.gateway))
    interface.enable_forwarding(addresses)


def _clashes(present: rtnetlink.Address, gateway: IpInterface) -> bool:
    if gateway.version == 4:
        return True
    other = ip_interface((present.address, present.prefix))
    return gateway.ip in other.network or other.ip in gateway.network


def _claim_address(call: Call, conf: Conf, bridge: Link, gateway: IpInterface, others: list[rtnetlink.Address]) -> None:
    if others and not conf.force_address:
        found = ip_interface((others[0].address, others[0].prefix))
        raise WrongState(
            f"bridge {bridge.name} has the address {found}; network {call.owner.network} wants {gateway}",
            hint=f"remove it (ip addr del {found} dev {bridge.name}), set forceAddress, or name another bridge",
        )
    if not conf.force_address:
        _refuse_overlap(call, bridge, gateway)
    host = call.session.host
    for address in others:
        host.do(
            f"take the address from bridge {bridge.name}",
            rtnetlink.delete_address(bridge.index, address.address, address.prefix),
            tolerate=(errno.EADDRNOTAVAIL,),
        )
    request = rtnetlink.add_address(bridge.index, gateway.ip.packed, gateway.network.prefixlen)
    host.do(f"give bridge {bridge.name} the address {gateway}", request, tolerate=(errno.EEXIST,))


def _refuse_overlap(call: Call, bridge: Link, gateway: IpInterface) -> None:
    """Two interfaces with one subnet: packets to the machine's neighbours, or to containers, would go astray."""
    host = call.session.host
    for present in host.addresses():
        if present.index == bridge.index or len(present.address) != len(gateway.ip.packed):
            continue
        other = ip_interface((present.address, present.prefix))
        if other.network.prefixlen == other.max_prefixlen or other.ip.is_link_local:
            continue
        if other.ip in gateway.network or gateway.ip in other.network:
            link = host.find_link(index=present.index)
            raise WrongState(
                f"subnet {gateway.network} of network {call.owner.network} overlaps {other.network},"
                f" which interface {link.name if link else present.index} is on",
                hint="give the network another subnet (or set forceAddress, if this is meant)",
            )


def _join(call: Call, conf: Conf, bridge: Link, host: Link, mac: bytes) -> None:
    requests = [rtnetlink.set_link(host.index, master=bridge.index), interface.set_up_silent(host)]
    if conf.hairpin_mode or conf.port_isolation:
        requests.append(
            rtnetlink.set_bridge_port(
                host.index, hairpin=conf.hairpin_mode or None, isolated=conf.port_isolation or None
            )
        )
    call.session.host.do(f"set up port {host.name} of bridge {bridge.name}", *requests)
    vlans.set_port(call, bridge, host, conf.ports)
    if conf.macspoofchk:
        name = host.name.encode().ljust(16, b"\0")
        call.rules(
            [
                Element("checked", name, family=NFPROTO_BRIDGE),
                Element("senders", concatenation(name, mac), family=NFPROTO_BRIDGE),
            ]
        )


def delete(call: Call) -> None:
    """Leave the bridge; the bridge stays."""
    interface.remove_inside(call, interface.host_name(call))
    call.drop_rules()
    interface.return_addresses(call)


def check(call: Call) -> None:
    """See that both ends, the addresses and the bridge are there."""
    conf = call.decode(Conf)
    interface.check_addresses(call)
    bridge = call.session.host.find_link(conf.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise WrongState(f"bridge {conf.bridge} is gone")
    host = call.session.host.find_link(interface.host_name(call))
    if host is None or host.master != bridge.index:
        raise WrongState(f"container {call.owner.container} is no longer on bridge {conf.bridge}")
    interface.check_inside(call)

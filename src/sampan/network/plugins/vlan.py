"""``vlan``: an interface for one VLAN of one of the machine's devices."""

from typing import Any

import msgspec

from sampan.errors import InvalidInput
from sampan.network import interface
from sampan.network.call import Call
from sampan.spec.cni import Dns, Interface, Result
from sampan.wire.netlink import u16

_VLAN_ID = 1


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "vlan"
    master: str
    vlan_id: int = msgspec.field(name="vlanId")
    mtu: int = 0
    link_in_container: bool = msgspec.field(name="linkInContainer", default=False)
    ipam: dict[str, Any] = {}
    dns: Dns = msgspec.field(default_factory=Dns)

    def __post_init__(self) -> None:
        if not 0 <= self.vlan_id <= 4094:
            raise ValueError(f"vlanId: {self.vlan_id} is not between 0 and 4094")


def add(call: Call) -> Result:
    """Make the interface inside the container's namespace."""
    conf = call.decode(Conf)
    lower = interface.lower_device(call, conf.master, inside=conf.link_in_container)
    if conf.mtu > lower.mtu:
        raise InvalidInput(f"{conf.mtu} is more than the {lower.mtu} of {lower.name}", field="mtu")
    data = u16(_VLAN_ID, conf.vlan_id)
    link = interface.make_above(call, "vlan", data, lower, conf.mtu, "", inside=conf.link_in_container)
    result = interface.ask_addresses(call) if interface.ipam_type(call) else Result()
    entry = Interface(name=call.ifname, mac=interface.mac_text(link.mac), sandbox=call.session.netns_path)
    result.interfaces = [entry]
    for config in result.ips:
        config.interface = 0
    interface.configure(call, result, link, announce=True)
    return interface.with_dns(result, conf.dns)


def delete(call: Call) -> None:
    """Take the interface away."""
    interface.remove_inside(call)
    interface.return_addresses(call)


def check(call: Call) -> None:
    """See that the interface has its addresses."""
    interface.check_addresses(call)
    interface.check_inside(call)

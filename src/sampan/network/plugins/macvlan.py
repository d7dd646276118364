"""``macvlan``: an interface with a hardware address of its own on one of the machine's devices."""

from typing import Any, Literal

import msgspec

from sampan.errors import InvalidInput, WrongState
from sampan.network import interface
from sampan.network.call import Call
from sampan.spec.cni import Dns, Interface, Result
from sampan.wire.netlink import u32

_MODE = 1
_BROADCAST_QUEUE = 7
_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


class _Runtime(msgspec.Struct):
    mac: str = ""


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "macvlan"
    #: Empty: the device of the default route.
    master: str = ""
    mode: Literal["bridge", "private", "vepa", "passthru"] = "bridge"
    mtu: int = 0
    mac: str = ""
    broadcast_queue: int = msgspec.field(name="bcqueuelen", default=0)
    link_in_container: bool = msgspec.field(name="linkInContainer", default=False)
    ipam: dict[str, Any] = {}
    dns: Dns = msgspec.field(default_factory=Dns)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        if not 0 <= self.broadcast_queue < 1 << 32:
            raise ValueError(f"bcqueuelen: {self.broadcast_queue} is no length of a queue")


def add(call: Call) -> Result:
    """Make the interface inside the container's namespace."""
    conf = call.decode(Conf)
    lower = interface.lower_device(call, conf.master, inside=conf.link_in_container)
    if conf.mtu > lower.mtu:
        raise InvalidInput(f"{conf.mtu} is more than the {lower.mtu} of {lower.name}", field="mtu")
    wanted = conf.runtime_config.mac or conf.mac or call.args.get("MAC", "")
    data = u32(_MODE, _MODES[conf.mode])
    if conf.broadcast_queue:
        data += u32(_BROADCAST_QUEUE, conf.broadcast_queue)
    link = interface.make_above(call, "macvlan", data, lower, conf.mtu, wanted, inside=conf.link_in_container)
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
    """See that the interface is of this kind and has its addresses."""
    interface.check_addresses(call)
    interface.check_inside(call)
    if call.session.inside.link(call.ifname).kind != "macvlan":
        raise WrongState(f"{call.ifname} of container {call.owner.container} is no macvlan")

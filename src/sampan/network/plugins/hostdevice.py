"""``host-device``: one of the machine's devices, given to the container and taken back."""

import errno
import os
from typing import Any

import msgspec

from sampan.errors import InvalidInput, StageFailed, WrongState
from sampan.network import interface
from sampan.network.call import Call
from sampan.spec.cni import Dns, Interface, Result
from sampan.wire import rtnetlink
from sampan.wire.rtnetlink import Link


class _Runtime(msgspec.Struct):
    device_id: str = msgspec.field(name="deviceID", default="")


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration: one of the four names the device, or the capability ``deviceID`` does."""

    type: str = "host-device"
    device: str = ""
    hwaddr: str = ""
    kernelpath: str = ""
    pci_bus_id: str = msgspec.field(name="pciBusID", default="")
    ipam: dict[str, Any] = {}
    dns: Dns = msgspec.field(default_factory=Dns)
    capabilities: dict[str, bool] = {}
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        self.pci_bus_id = self.runtime_config.device_id or self.pci_bus_id
        given = sum(map(bool, (self.device, self.hwaddr, self.kernelpath, self.pci_bus_id)))
        if given > 1 or (not given and not self.capabilities.get("deviceID")):
            raise ValueError("device: one of device, hwaddr, kernelpath and pciBusID must be given")


def add(call: Call) -> Result:
    """Move the device into the container, under the interface's name."""
    conf = call.decode(Conf)
    session = call.session
    device = _find(call, conf)
    if session.inside.find_link(call.ifname) is not None:
        raise WrongState(f"container {call.owner.container} already has an interface {call.ifname}")
    # The alias keeps the name by which the machine knows it; host-device of others does the same.
    request = rtnetlink.set_link(device.index, up=False, alias=device.name)
    session.host.do(f"take {device.name} down", request)
    move = rtnetlink.set_link(device.index, name=call.ifname, netns_fd=session.netns)
    session.host.do(f"move {device.name} into container {call.owner.container}", move)
    link = session.inside.link(call.ifname)
    result = interface.ask_addresses(call) if interface.ipam_type(call) else Result()
    entry = Interface(name=call.ifname, mac=interface.mac_text(link.mac), sandbox=session.netns_path)
    result.interfaces = [entry]
    for config in result.ips:
        config.interface = 0
    interface.configure(call, result, link)
    return interface.with_dns(result, conf.dns)


def _find(call: Call, conf: Conf) -> Link:
    host = call.session.host
    name = conf.device
    if conf.hwaddr:
        mac = interface.parse_mac(conf.hwaddr)
        found = [link for link in host.links() if link.mac == mac]
        if not found:
            raise InvalidInput(f"no device has the hardware address {conf.hwaddr}", field="hwaddr")
        return found[0]
    if not name:
        if not conf.kernelpath and not conf.pci_bus_id:
            raise InvalidInput("the runtime gave none", field="runtimeConfig.deviceID")
        return _find_by_path(call, conf.kernelpath or f"/sys/bus/pci/devices/{os.path.basename(conf.pci_bus_id)}")
    link = host.find_link(name)
    if link is None:
        raise InvalidInput(f"the machine has no device {name}", field="device")
    return link


def _find_by_path(call: Call, folder: str) -> Link:
    """The first network device that the kernel has under a device of it."""
    try:
        names = sorted(os.listdir(os.path.join(folder, "net")))
    except OSError:
        names = []
    for name in names:
        link = call.session.host.find_link(name)
        if link is not None:
            return link
    raise InvalidInput(f"no network device is at {folder}", field="device")


def delete(call: Call) -> None:
    """Give the device back under its own name, also when the namespace is about to end: else it would be lost."""
    if not call.session.netns_gone:
        _give_back(call)
    interface.return_addresses(call)


def _give_back(call: Call) -> None:
    session = call.session
    link = session.inside.find_link(call.ifname)
    if link is None or not link.alias:
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        session.inside.do(f"take {call.ifname} down", rtnetlink.set_link(link.index, up=False, alias=""))
        for name in (link.alias, f"dev{link.index}"):
            error = session.inside.exchange([rtnetlink.set_link(link.index, name=name, netns_fd=home)]).errors[0]
            if error is None:
                return
            if error.errno != errno.EEXIST:
                raise StageFailed(f"give {link.alias} back to the machine", error) from error
    finally:
        os.close(home)


def check(call: Call) -> None:
    """See that the device is inside and has its addresses."""
    interface.check_addresses(call)
    interface.check_inside(call)

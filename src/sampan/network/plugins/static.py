"""``static``: addresses that the configuration or the request spells out; nothing is leased."""

from ipaddress import ip_address, ip_interface

import msgspec

from sampan.errors import InvalidInput, WrongState
from sampan.network.call import Call
from sampan.spec.cni import Dns, IpConfig, Result, Route


class Address(msgspec.Struct, kw_only=True):
    """An address with its prefix length."""

    address: str
    gateway: str = ""


class IpamConf(msgspec.Struct, kw_only=True):
    """The ``ipam`` section."""

    type: str = "static"
    addresses: list[Address] = []
    routes: list[Route] = []
    dns: Dns = msgspec.field(default_factory=Dns)


class _CniArgs(msgspec.Struct):
    ips: list[str] = []


class _Args(msgspec.Struct):
    cni: _CniArgs = msgspec.field(default_factory=_CniArgs)


class _Runtime(msgspec.Struct):
    ips: list[str] = []


class Conf(msgspec.Struct, kw_only=True):
    """What of a network's configuration concerns this plugin."""

    ipam: IpamConf
    args: _Args = msgspec.field(default_factory=_Args)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)


def add(call: Call) -> Result:
    """Say the addresses: of the capability ``ips``, else of ``args.cni.ips``, else of CNI_ARGS, else as configured."""
    conf = call.decode(Conf)
    asked = conf.runtime_config.ips or conf.args.cni.ips
    asked = asked or [text.strip() for text in call.args.get("IP", "").split(",") if text.strip()]
    entries = [Address(address=text) for text in asked] or conf.ipam.addresses
    gateways = [text.strip() for text in call.args.get("GATEWAY", "").split(",") if text.strip()]
    ips = []
    for index, entry in enumerate(entries):
        field = f"ipam.addresses[{index}]"
        try:
            address = ip_interface(entry.address)
            gateway = entry.gateway or next((g for g in gateways if ip_address(g) in address.network), "")
            if gateway:
                ip_address(gateway)
        except ValueError as error:
            raise InvalidInput(str(error), field=field) from None
        if "/" not in entry.address:
            raise InvalidInput(f"{entry.address!r} has no prefix length", field=f"{field}.address")
        ips.append(IpConfig(address=str(address), gateway=gateway))
    if not ips:
        raise InvalidInput("no address is configured and none was asked for", field="ipam.addresses")
    return Result(ips=ips, routes=list(conf.ipam.routes), dns=conf.ipam.dns)


def delete(call: Call) -> None:
    """Nothing was leased."""


def check(call: Call) -> None:
    """See that the configured addresses are those of the result."""
    conf = call.decode(Conf)
    have = {config.address for config in call.previous.ips}
    for entry in conf.ipam.addresses:
        if not conf.runtime_config.ips and str(ip_interface(entry.address)) not in have:
            raise WrongState(f"container {call.owner.container} has not the configured address {entry.address}")

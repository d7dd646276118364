"""``host-local``: addresses from ranges of this machine's own, kept as leases.

Configuration as the standard plugin: ``ranges`` (a list of range sets; one address of each), or ``subnet`` with
``rangeStart``, ``rangeEnd``, ``gateway`` at the top; ``routes``, ``resolvConf``; requests by the capabilities ``ips``
and ``ipRanges``, by ``args.cni.ips`` and by CNI_ARGS ``IP``. A range may also have ``exclude``: addresses and networks
that are not handed out. Addresses that the Go plugin holds in ``dataDir`` are left to it.
"""

import os
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from sampan.errors import InvalidInput, WrongState
from sampan.network import leases
from sampan.network.call import Call, decode
from sampan.network.leases import IpAddress, Range
from sampan.spec.cni import Dns, IpConfig, Result, Route

#: Where the Go plugin keeps a file for each address.
GO_DATA = "/var/lib/cni/networks"

_LINES = 1000


class RangeConf(msgspec.Struct, kw_only=True):
    """A range of a subnet."""

    subnet: str
    range_start: str = msgspec.field(name="rangeStart", default="")
    range_end: str = msgspec.field(name="rangeEnd", default="")
    gateway: str = ""
    exclude: list[str] = []


class IpamConf(msgspec.Struct, kw_only=True):
    """The ``ipam`` section."""

    type: str = "host-local"
    ranges: list[list[RangeConf]] = []
    subnet: str = ""
    range_start: str = msgspec.field(name="rangeStart", default="")
    range_end: str = msgspec.field(name="rangeEnd", default="")
    gateway: str = ""
    exclude: list[str] = []
    routes: list[Route] = []
    data_dir: str = msgspec.field(name="dataDir", default="")
    resolv_conf: str = msgspec.field(name="resolvConf", default="")


class _CniArgs(msgspec.Struct):
    ips: list[str] = []


class _Args(msgspec.Struct):
    cni: _CniArgs = msgspec.field(default_factory=_CniArgs)


class _Runtime(msgspec.Struct, kw_only=True):
    ips: list[str] = []
    ip_ranges: list[list[RangeConf]] = msgspec.field(name="ipRanges", default_factory=list)


class Conf(msgspec.Struct, kw_only=True):
    """What of a network's configuration concerns this plugin."""

    ipam: IpamConf
    args: _Args = msgspec.field(default_factory=_Args)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        pools(self)


class Subnet:
    """One range, with what every address of it gets."""

    __slots__ = ("excluded", "gateway", "network", "range")

    def __init__(self, conf: RangeConf, field: str) -> None:
        try:
            self.network: IPv4Network | IPv6Network = ip_network(conf.subnet)
        except ValueError as error:
            raise ValueError(f"{field}.subnet: {error}") from None
        if self.network.prefixlen > self.network.max_prefixlen - 2:
            raise ValueError(f"{field}.subnet: {self.network} is too small to hand out addresses of")
        last = self.network.broadcast_address - (1 if self.network.version == 4 else 0)
        first = self._member(conf.range_start, f"{field}.rangeStart") or self.network.network_address + 1
        last = self._member(conf.range_end, f"{field}.rangeEnd") or last
        if int(first) > int(last):
            raise ValueError(f"{field}.rangeStart: {first} is behind rangeEnd {last}")
        self.gateway = _address(conf.gateway, f"{field}.gateway") or self.network.network_address + 1
        self.excluded = [_network(text, f"{field}.exclude") for text in conf.exclude]
        self.range = Range(first, last, self._kept)

    def _member(self, text: str, field: str) -> IpAddress | None:
        address = _address(text, field)
        if address is not None and address not in self.network:
            raise ValueError(f"{field}: {address} is not in {self.network}")
        return address

    def _kept(self, address: IpAddress) -> bool:
        return address == self.gateway or any(address in network for network in self.excluded)


def _address(text: str, field: str) -> IpAddress | None:
    if not text:
        return None
    try:
        return ip_address(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _network(text: str, field: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def pools(conf: Conf) -> list[list[Subnet]]:
    """The range sets of a configuration, checked.

    Raises:
        ValueError: A field is wrong, or two sets overlap.
    """
    ipam = conf.ipam
    sets = [*conf.runtime_config.ip_ranges]
    if ipam.subnet:
        top = RangeConf(
            subnet=ipam.subnet,
            range_start=ipam.range_start,
            range_end=ipam.range_end,
            gateway=ipam.gateway,
            exclude=ipam.exclude,
        )
        sets.append([top])
    sets += ipam.ranges
    if not sets:
        raise ValueError("ipam: neither ranges nor a subnet is given")
    found = [
        [Subnet(entry, f"ipam.ranges[{i}][{j}]") for j, entry in enumerate(entries)] for i, entries in enumerate(sets)
    ]
    _check_overlap(found)
    return found


def _check_overlap(found: list[list[Subnet]]) -> None:
    for i, entries in enumerate(found):
        if not entries:
            raise ValueError(f"ipam.ranges[{i}]: an empty range set")
        if len({entry.network.version for entry in entries}) > 1:
            raise ValueError(f"ipam.ranges[{i}]: IPv4 and IPv6 in one range set; each needs a set of its own")
    flat = [(i, entry) for i, entries in enumerate(found) for entry in entries]
    for n, (i, one) in enumerate(flat):
        for j, other in flat[n + 1 :]:
            if one.range.holds(other.range.first) or other.range.holds(one.range.first):
                raise ValueError(f"ipam.ranges[{j}]: {other.network} overlaps {one.network} of ranges[{i}]")


def add(call: Call) -> Result:
    """Lease one address of each range set."""
    conf = call.decode(Conf)
    wanted = _requests(call, conf)
    foreign = os.path.join(conf.ipam.data_dir or GO_DATA, call.owner.network)
    foreign = foreign if os.path.isdir(foreign) else ""
    ips = []
    try:
        for number, entries in enumerate(pools(conf)):
            request = next((ip for ip in wanted if any(entry.range.holds(ip) for entry in entries)), None)
            if request is not None:
                wanted.remove(request)
                _refuse_gateway(request, entries)
            ranges = [entry.range for entry in entries]
            address = leases.lease(call.session.state, call.owner, number, ranges, request, foreign)
            entry = next(entry for entry in entries if entry.range.holds(address))
            ips.append(IpConfig(address=f"{address}/{entry.network.prefixlen}", gateway=str(entry.gateway)))
        if wanted:
            raise InvalidInput(f"address {wanted[0]} is in none of the network's ranges", field="ips")
    except BaseException:
        leases.release(call.session.state, call.owner)
        raise
    dns = _resolv_conf(conf.ipam.resolv_conf) if conf.ipam.resolv_conf else Dns()
    return Result(ips=ips, routes=list(conf.ipam.routes), dns=dns)


def _refuse_gateway(address: IpAddress, entries: list[Subnet]) -> None:
    if any(address == entry.gateway for entry in entries):
        raise InvalidInput(f"address {address} is the gateway's", field="ips")


def _requests(call: Call, conf: Conf) -> list[IpAddress]:
    texts = [*conf.runtime_config.ips, *conf.args.cni.ips]
    texts += [text for text in call.args.get("IP", "").split(",") if text]
    found: list[IpAddress] = []
    for text in texts:
        try:
            address = ip_address(text.split("/")[0])
        except ValueError as error:
            raise InvalidInput(str(error), field="ips") from None
        if address not in found:
            found.append(address)
    return found


def _resolv_conf(path: str) -> Dns:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.readlines(_LINES * 100)[:_LINES]
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", field="ipam.resolvConf") from None
    dns = Dns()
    for line in lines:
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", address, *_]:
                dns.nameservers.append(address)
            case ["search", *names]:
                dns.search += names
            case ["options", *names]:
                dns.options += names
            case ["domain", name, *_]:
                dns.domain = name
    return dns


def delete(call: Call) -> None:
    """Give the addresses back."""
    leases.release(call.session.state, call.owner)


def check(call: Call) -> None:
    """See that the leases stand."""
    if not leases.leased(call.session.state, call.owner):
        raise WrongState(f"container {call.owner.container} has no lease on network {call.owner.network}")


def validate(document: dict[str, Any]) -> None:
    """Check a network's configuration without leasing anything."""
    decode(document, Conf)

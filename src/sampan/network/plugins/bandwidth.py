"""``bandwidth``: rates for what the container gets and sends.

What it gets leaves the machine's end of its veth pair through a token bucket. What it sends comes in there, is turned
out through an ``ifb`` device, and meets a bucket on that: all out of the container's reach.
"""

import errno

import msgspec

from sampan.errors import InvalidInput, WrongState
from sampan.network import interface
from sampan.network.call import Call
from sampan.spec.cni import Interface, Result
from sampan.wire import rtnetlink, rttraffic
from sampan.wire.rtnetlink import Link

_MAX_BURST_BITS = 8 * 0xFFFFFFFF


class Rates(msgspec.Struct, kw_only=True):
    """Bits a second, and bits."""

    ingress_rate: int = msgspec.field(name="ingressRate", default=0)
    ingress_burst: int = msgspec.field(name="ingressBurst", default=0)
    egress_rate: int = msgspec.field(name="egressRate", default=0)
    egress_burst: int = msgspec.field(name="egressBurst", default=0)

    def __post_init__(self) -> None:
        for way, rate, burst in (
            ("ingress", self.ingress_rate, self.ingress_burst),
            ("egress", self.egress_rate, self.egress_burst),
        ):
            if rate < 0 or bool(rate) != bool(burst):
                raise ValueError(f"{way}Rate: rate and burst must be given together")
            if not 0 <= burst < _MAX_BURST_BITS:
                raise ValueError(f"{way}Burst: {burst} bits is 4 GB or more")


class _Runtime(msgspec.Struct):
    bandwidth: Rates | None = None


class Conf(Rates, kw_only=True):
    """The plugin's configuration: fixed rates, or those of the ``bandwidth`` capability."""

    type: str = "bandwidth"
    shaped_subnets: list[str] = msgspec.field(name="shapedSubnets", default_factory=list)
    unshaped_subnets: list[str] = msgspec.field(name="unshapedSubnets", default_factory=list)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shaped_subnets or self.unshaped_subnets:
            raise ValueError(
                'shapedSubnets: rates for some subnets only need the external plugin: "sampan": "external"'
            )

    @property
    def rates(self) -> Rates:
        """What counts."""
        fixed = self.ingress_rate or self.egress_rate
        return self if fixed or self.runtime_config.bandwidth is None else self.runtime_config.bandwidth


def add(call: Call) -> Result:
    """Put the buckets in place."""
    rates = call.decode(Conf).rates
    previous = call.previous
    if not rates.ingress_rate and not rates.egress_rate:
        return previous
    host = call.session.host
    outside = _machine_end(call, previous)
    if rates.ingress_rate:
        bucket = rttraffic.token_bucket(outside.index, rates.ingress_rate // 8, rates.ingress_burst // 8)
        host.do(f"limit what {call.owner.container} gets", bucket)
    if rates.egress_rate:
        name = interface.host_name(call, "bwp")
        host.do(f"make {name}", rtnetlink.add_link(name, "ifb", mtu=outside.mtu, up=True))
        ifb = host.link(name)
        bucket = rttraffic.token_bucket(ifb.index, rates.egress_rate // 8, rates.egress_burst // 8)
        turn = rttraffic.redirect(outside.index, ifb.index)
        host.do(f"limit what {call.owner.container} sends", bucket, rttraffic.ingress(outside.index), turn)
        previous.interfaces.append(Interface(name=name, mac=interface.mac_text(ifb.mac)))
    return previous


def _machine_end(call: Call, previous: Result) -> Link:
    peer = call.session.inside.link(call.ifname).lower
    host = call.session.host.find_link(index=peer) if peer else None
    names = [entry.name for entry in previous.interfaces if not entry.sandbox]
    if host is None or host.kind != "veth" or host.name not in names:
        raise InvalidInput(f"{call.ifname} of container {call.owner.container} has no end on this machine to limit")
    return host


def delete(call: Call) -> None:
    """Take the ifb device away; the rest goes with the pair."""
    host = call.session.host
    ifb = host.find_link(interface.host_name(call, "bwp"))
    if ifb is not None:
        host.do(f"delete {ifb.name}", rtnetlink.delete_link(ifb.index), tolerate=(errno.ENODEV,))


def check(call: Call) -> None:
    """See that the buckets are there, with their rates."""
    rates = call.decode(Conf).rates
    host = call.session.host
    outside = _machine_end(call, call.previous)
    ifb = host.find_link(interface.host_name(call, "bwp"))
    for link, rate in ((outside, rates.ingress_rate), (ifb, rates.egress_rate)):
        if not rate:
            continue
        found = (
            [] if link is None else [rttraffic.parse_qdisc(a.body) for a in host.dump(rttraffic.get_qdiscs(link.index))]
        )
        if not any(q.index == link.index and q.kind == "tbf" and q.rate == rate // 8 for q in found if link):
            raise WrongState(f"a rate of container {call.owner.container} is no longer in force")

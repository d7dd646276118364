"""``sbr``: routing by source: what leaves with an interface's address uses its routes, in their own table."""

import errno
from ipaddress import ip_address

import msgspec

from sampan.network import interface
from sampan.network.call import Call
from sampan.network.interface import IpInterface
from sampan.spec.cni import IpConfig, Result
from sampan.wire import rtnetlink

_FIRST_TABLE = 100
_LAST_TABLE = 1000


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "sbr"
    #: The administrator's own table: rules lead to it, and the routes stay where they are.
    table: int | None = None
    add_source_hints: bool = msgspec.field(name="addSourceHints", default=False)

    def __post_init__(self) -> None:
        if self.add_source_hints:
            raise ValueError('addSourceHints: it is not built in; add "sampan": "external"')
        if self.table is not None and not 0 < self.table < 1 << 32:
            raise ValueError(f"table: {self.table} is no number of a routing table")


def add(call: Call) -> Result:
    """Move the interface's routes into a free table, and have its addresses look there."""
    previous = call.previous
    inside = call.session.inside
    link = inside.link(call.ifname)
    mine = _own(call, previous)
    own = call.decode(Conf).table
    if own is not None:
        rules = [rtnetlink.add_rule(address.ip.packed, own) for address, _config in mine]
        inside.do(f"route {call.ifname} by table {own}", *rules, tolerate=(errno.EEXIST,))
        return previous
    used = {route.table for route in inside.routes(rtnetlink.AF_UNSPEC)} | set(_rules(call).values())
    table = next(number for number in range(_FIRST_TABLE, _LAST_TABLE) if number not in used)
    requests = [rtnetlink.add_rule(address.ip.packed, table) for address, _config in mine]
    default = []
    for address, config in mine:
        if config.gateway:
            zero = bytes(len(address.ip.packed))
            gateway = ip_address(config.gateway).packed
            default.append(rtnetlink.add_route(link.index, zero, 0, gateway, table=table))
    for route in sorted(inside.routes(rtnetlink.AF_UNSPEC), key=lambda route: bool(route.gateway)):
        if route.index != link.index or route.table != rtnetlink.RT_TABLE_MAIN or _link_local(route):
            continue
        destination = route.destination or bytes(4 if route.family == rtnetlink.AF_INET else 16)
        requests.append(rtnetlink.delete_route(link.index, destination, route.prefix))
        requests.append(
            rtnetlink.add_route(
                link.index,
                destination,
                route.prefix,
                route.gateway,
                scope=route.scope,
                metric=route.metric,
                table=table,
                protocol=route.protocol,
                source=route.source,
                exclusive=False,
            )
        )
    # Routes to gateways come before what goes through them.
    inside.do(f"route {call.ifname} by source", *requests, *default, tolerate=(errno.EEXIST, errno.ESRCH))
    return previous


def _link_local(route: rtnetlink.Route) -> bool:
    return route.destination[:2] == b"\xfe\x80" or route.destination[:1] == b"\xff"


def _own(call: Call, previous: Result) -> list[tuple[IpInterface, IpConfig]]:
    found = []
    for config in previous.ips:
        at = config.interface
        if at is None or at >= len(previous.interfaces) or previous.interfaces[at].name == call.ifname:
            found.append((interface.address_of(config), config))
    return found


def _rules(call: Call) -> dict[bytes, int]:
    answers = call.session.inside.dump(rtnetlink.get_rules())
    return dict(rtnetlink.parse_rule(answer.body) for answer in answers)


def delete(call: Call) -> None:
    """Take the rules away; the routes go with the interface."""
    if call.session.netns_ends or call.session.netns_gone or call.conf.get("prevResult") is None:
        return
    rules = _rules(call)
    for address, _config in _own(call, call.previous):
        table = rules.get(address.ip.packed)
        if table is not None:
            request = rtnetlink.delete_rule(address.ip.packed, table)
            call.session.inside.do(f"forget the rule of {address.ip}", request, tolerate=(errno.ENOENT, errno.ESRCH))


def check(call: Call) -> None:
    """The standard plugin checks nothing either."""

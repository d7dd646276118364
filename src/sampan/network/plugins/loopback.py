"""``loopback``: the interface lo, up."""

import errno
from typing import Any

import msgspec

from sampan.errors import WrongState
from sampan.network.call import Call
from sampan.spec.cni import Interface, IpConfig, Result
from sampan.wire import rtnetlink


class Conf(msgspec.Struct):
    """Nothing to configure."""

    type: str = "loopback"


def add(call: Call) -> Result:
    """Set lo up."""
    inside = call.session.inside
    lo = inside.link("lo")
    if not lo.up:
        inside.do("set lo up", rtnetlink.set_link(lo.index, up=True))
    previous: Any = call.conf.get("prevResult")
    if previous is not None:
        return call.previous
    families = {address.family for address in inside.addresses(lo.index)}
    ips = [IpConfig(address="127.0.0.1/8", interface=0)]
    if rtnetlink.AF_INET6 in families:
        ips.append(IpConfig(address="::1/128", interface=0))
    link = Interface(name="lo", mac="00:00:00:00:00:00", sandbox=call.session.netns_path)
    return Result(interfaces=[link], ips=ips)


def delete(call: Call) -> None:
    """Set lo down, if its namespace is there and stays."""
    if call.session.netns_ends or call.session.netns_gone:
        return
    inside = call.session.inside
    inside.do("set lo down", rtnetlink.set_link(inside.link("lo").index, up=False), tolerate=(errno.ENODEV,))


def check(call: Call) -> None:
    """See that lo is up."""
    if not call.session.inside.link("lo").up:
        raise WrongState(f"lo of container {call.owner.container} is down")

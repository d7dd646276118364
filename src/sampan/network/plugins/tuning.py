"""``tuning``: sysctls of the container's network, and attributes of its interface.

What the interface was like before is remembered: a device of the machine returns as it came.
"""

import os
import re

import msgspec

from sampan.errors import Denied, InvalidInput, WrongState
from sampan.network import interface, netns
from sampan.network.call import Call, decode
from sampan.network.netns import get_sysctl, set_sysctl
from sampan.network.state import Owner
from sampan.spec.cni import Result
from sampan.wire import rtnetlink
from sampan.wire.rtnetlink import Link

#: Regular expressions, one a line, of the sysctls that may be set; no file, no limit.
ALLOWED = "/etc/cni/tuning/allowlist.conf"


_FACT = "tuned/"
_FLAGS = rtnetlink.IFF_PROMISC | rtnetlink.IFF_ALLMULTI


class _Before(msgspec.Struct):
    """What an interface was like."""

    mac: str
    mtu: int
    txqlen: int
    flags: int


class _Runtime(msgspec.Struct):
    mac: str = ""


class _CniArgs(msgspec.Struct, kw_only=True):
    sysctl: dict[str, str] = {}
    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None
    tx_queue_length: int | None = msgspec.field(name="txQLen", default=None)


class _Args(msgspec.Struct):
    cni: _CniArgs = msgspec.field(default_factory=_CniArgs)


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "tuning"
    sysctl: dict[str, str] = {}
    mac: str = ""
    promisc: bool = False
    mtu: int = 0
    allmulti: bool | None = None
    tx_queue_length: int | None = msgspec.field(name="txQLen", default=None)
    args: _Args = msgspec.field(default_factory=_Args)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        asked = self.args.cni
        self.sysctl = {**self.sysctl, **asked.sysctl}
        self.mac = asked.mac or self.runtime_config.mac or self.mac
        self.mtu = asked.mtu or self.mtu
        self.promisc = self.promisc if asked.promisc is None else asked.promisc
        self.allmulti = self.allmulti if asked.allmulti is None else asked.allmulti
        self.tx_queue_length = self.tx_queue_length if asked.tx_queue_length is None else asked.tx_queue_length
        for name in self.sysctl:
            sysctl_path(name, "eth0")


def sysctl_path(name: str, ifname: str) -> str:
    """A sysctl's path below /proc/sys, with ``IFNAME`` replaced.

    Raises:
        ValueError: It is none of the network's.
    """
    path = name if "/" in name else name.replace(".", "/")
    path = path.replace("IFNAME", ifname, 1)
    if not path.startswith("net/") or ".." in path.split("/") or os.path.normpath(path) != path:
        raise ValueError(f"sysctl: {name!r} is not a sysctl of the network")
    return path


def _check_allowed(names: list[str]) -> None:
    try:
        with open(ALLOWED, encoding="utf-8") as file:
            patterns = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        return
    for name in names:
        if not any(re.search(pattern, name) for pattern in patterns):
            raise Denied(f"sysctl {name} is not allowed by {ALLOWED}")


def add(call: Call) -> Result:
    """Set what is configured."""
    conf = call.decode(Conf)
    previous = call.previous
    _check_allowed(list(conf.sysctl))
    with netns.inside(call.session.netns):
        for name, value in conf.sysctl.items():
            set_sysctl(sysctl_path(name, call.ifname), value)
    inside = call.session.inside
    link = inside.link(call.ifname)
    wanted = conf.mac or call.args.get("MAC", "")
    mac = interface.parse_mac(wanted) if wanted else b""
    requests = []
    if mac or conf.mtu or conf.tx_queue_length is not None:
        if conf.mtu and not 68 <= conf.mtu <= 65535:
            raise InvalidInput(f"{conf.mtu} is not between 68 and 65535", field="mtu")
        requests.append(rtnetlink.set_link(link.index, mac=mac, mtu=conf.mtu, txqlen=conf.tx_queue_length))
    flags = rtnetlink.IFF_PROMISC if conf.promisc else 0
    mask = flags
    if conf.allmulti is not None:
        mask |= rtnetlink.IFF_ALLMULTI
        flags |= rtnetlink.IFF_ALLMULTI if conf.allmulti else 0
    if mask:
        requests.append(rtnetlink.set_link_flags(link.index, flags, mask))
    if requests:
        _remember(call, link)
        inside.do(f"tune {call.ifname} of {call.owner.container}", *requests)
    if mac:
        for entry in previous.interfaces:
            if entry.sandbox and entry.name == call.ifname:
                entry.mac = interface.mac_text(mac)
    return previous


def fact(owner: Owner) -> str:
    """Name of the fact that says what an owner's interface was like."""
    return f"{_FACT}{owner.network}/{owner.container}/{owner.ifname}"


def _remember(call: Call, link: Link) -> None:
    state, name = call.session.state, fact(call.owner)
    if not state.fact(name):
        before = _Before(interface.mac_text(link.mac), link.mtu, link.txqlen, link.flags & _FLAGS)
        state.set_fact(name, msgspec.json.encode(before).decode())


def delete(call: Call) -> None:
    """Make the interface as it was; sysctls end with the namespace."""
    session = call.session
    state, name = session.state, fact(call.owner)
    known = state.fact(name)
    if not known:
        return
    link = None if session.netns_gone else session.inside.find_link(call.ifname)
    # Of what is in a namespace that ends only host-device's, which has its name on the machine for an alias, lives on.
    if link is not None and (link.alias or not session.netns_ends):
        before = decode(msgspec.json.decode(known), _Before)
        mac = interface.parse_mac(before.mac) if before.mac else b""
        session.inside.do(
            f"make {call.ifname} of {call.owner.container} as it was",
            rtnetlink.set_link(link.index, mac=mac, mtu=before.mtu, txqlen=before.txqlen),
            rtnetlink.set_link_flags(link.index, before.flags, _FLAGS),
        )
    with state.transaction() as database:
        state.drop_fact(database, name)


def check(call: Call) -> None:
    """See that everything is as it was set."""
    conf = call.decode(Conf)
    with netns.inside(call.session.netns):
        for name, value in conf.sysctl.items():
            found = get_sysctl(sysctl_path(name, call.ifname))
            if found.split() != value.split():
                raise WrongState(f"sysctl {name} of container {call.owner.container} is {found}, not {value}")
    link = call.session.inside.link(call.ifname)
    if conf.mtu and link.mtu != conf.mtu:
        raise WrongState(f"{call.ifname} of container {call.owner.container} has an MTU of {link.mtu}, not {conf.mtu}")
    if conf.mac and link.mac != interface.parse_mac(conf.mac):
        raise WrongState(f"{call.ifname} of container {call.owner.container} has lost its hardware address")

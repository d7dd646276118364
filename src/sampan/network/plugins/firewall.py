"""``firewall``: letting the container's packets through, and which networks' containers may reach each other.

Our table accepts what is forwarded. Where firewalld runs it is asked to do so too (:mod:`sampan.network.firewalld`),
and where an iptables FORWARD chain drops by default, rules are added to it (:mod:`sampan.network.forwarding`), both as
by the standard plugin. With ``ingressPolicy: same-bridge`` the bridges of such networks are cut off from each other.
"""

from typing import Literal

import msgspec

from sampan.errors import Unavailable, WrongState
from sampan.network import firewalld, forwarding, interface
from sampan.network.call import Call
from sampan.spec.cni import Result
from sampan.wire.nfnetlink import Element, concatenation


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "firewall"
    backend: Literal["", "nftables", "iptables", "firewalld"] = ""
    ingress_policy: Literal["", "open", "same-bridge"] = msgspec.field(name="ingressPolicy", default="")
    iptables_admin_chain_name: str = msgspec.field(name="iptablesAdminChainName", default="")
    firewalld_zone: str = msgspec.field(name="firewalldZone", default="")


def add(call: Call) -> Result:
    """Let the container through, and cut its bridge off from the others if that is the policy."""
    conf = call.decode(Conf)
    previous = call.previous
    if conf.ingress_policy == "same-bridge":
        call.shared_rules([element for name in _routed(call, previous) for element in _elements(name)])
    if conf.backend != "nftables":
        _let_through(call, conf, [str(interface.address_of(config).ip) for config in previous.ips])
    return previous


def _let_through(call: Call, conf: Conf, addresses: list[str]) -> None:
    if conf.backend == "firewalld" or (not conf.backend and firewalld.stands()):
        try:
            firewalld.let_through(call, addresses, conf.firewalld_zone or firewalld.ZONE)
        except Unavailable:
            if conf.backend:
                raise
        else:
            return
    admin = conf.iptables_admin_chain_name or forwarding.ADMIN
    forwarding.let_through(call, addresses, admin, always=conf.backend == "iptables")


def _routed(call: Call, previous: Result) -> list[str]:
    """The bridge, and the interface by which the machine is in the container's VLAN, if it has one."""
    names = [entry.name for entry in previous.interfaces if not entry.sandbox]
    for name in names:
        link = call.session.host.find_link(name)
        if link is not None and link.kind == "bridge":
            return [name, *(other for other in names if other.startswith(f"{name}."))]
    raise WrongState("ingressPolicy same-bridge must come after a plugin that makes a bridge")


def _elements(bridge: str) -> list[Element]:
    name = bridge.encode().ljust(16, b"\0")
    return [Element("secluded", name), Element("within", concatenation(name, name))]


def delete(call: Call) -> None:
    """Take the container's rules back; the bridge keeps its policy."""
    firewalld.shut(call.session.state, call.owner)
    forwarding.shut(call.session.state, call.owner)


def check(call: Call) -> None:
    """See that the bridge is cut off, and the container let through."""
    firewalld.check(call)
    forwarding.check(call)
    if call.decode(Conf).ingress_policy == "same-bridge":
        wanted = _elements(_routed(call, call.previous)[0])[0].key
        if not any(element.key == wanted for element in call.session.nft.elements("secluded")):
            raise WrongState("the bridge is no longer cut off from others", hint="sampan network reconcile")

"""``firewall``: which networks' containers may reach each other.

Our table accepts what is forwarded, so that letting the container's packets through takes no rule; an accept of ours
could not overrule another table's drop. With ``ingressPolicy: same-bridge`` the bridges of such networks are cut off
from each other.
"""

from typing import Literal

import msgspec

from sampan.errors import WrongState
from sampan.network.call import Call
from sampan.spec.cni import Result
from sampan.wire.nfnetlink import Element, concatenation


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "firewall"
    backend: str = ""
    ingress_policy: Literal["", "open", "same-bridge"] = msgspec.field(name="ingressPolicy", default="")
    iptables_admin_chain_name: str = msgspec.field(name="iptablesAdminChainName", default="")
    firewalld_zone: str = msgspec.field(name="firewalldZone", default="")

    def __post_init__(self) -> None:
        if self.backend not in ("", "nftables"):
            raise ValueError(f'backend: {self.backend!r} needs the external plugin: add "sampan": "external"')


def add(call: Call) -> Result:
    """Cut the container's bridge off from the others, if that is the policy."""
    conf = call.decode(Conf)
    previous = call.previous
    if conf.ingress_policy == "same-bridge":
        call.shared_rules(_elements(_bridge(call, previous)))
    return previous


def _bridge(call: Call, previous: Result) -> str:
    for entry in previous.interfaces:
        if not entry.sandbox:
            link = call.session.host.find_link(entry.name)
            if link is not None and link.kind == "bridge":
                return link.name
    raise WrongState("ingressPolicy same-bridge must come after a plugin that makes a bridge")


def _elements(bridge: str) -> list[Element]:
    name = bridge.encode().ljust(16, b"\0")
    return [Element("secluded", name), Element("within", concatenation(name, name))]


def delete(call: Call) -> None:
    """The bridge keeps its policy."""


def check(call: Call) -> None:
    """See that the bridge is cut off."""
    if call.decode(Conf).ingress_policy == "same-bridge":
        wanted = _elements(_bridge(call, call.previous))[0].key
        if not any(element.key == wanted for element in call.session.nft.elements("secluded")):
            raise WrongState("the bridge is no longer cut off from others", hint="sampan network reconcile")

"""Which of our chains a subnet's packets go through: see :mod:`sampan.network.nft`."""

import hashlib
from ipaddress import IPv4Interface, IPv6Interface

from sampan.network.call import Call
from sampan.network.nft import subnet_chains
from sampan.network.state import State
from sampan.wire.nfnetlink import Element, concatenation

_FACT = "chains"


def chain_names(subnet: str) -> tuple[str, str]:
    """Names of the chains of a subnet: for what leaves it, for what turns back into it."""
    tag = hashlib.sha256(subnet.encode()).hexdigest()[:10]
    return f"leave_{tag}", f"turn_{tag}"


def _chains(table: str, addresses: list[IPv4Interface | IPv6Interface]) -> str:
    return "".join(subnet_chains(table, *chain_names(str(a.network)), str(a.network)) for a in addresses)


def _remember(call: Call, addresses: list[IPv4Interface | IPv6Interface]) -> None:
    """Keep the subnets, so that their chains can be made again when somebody has flushed the table."""
    for a in addresses:
        name = f"{_FACT}/{a.network}"
        if not call.session.state.fact(name):
            call.session.state.set_fact(name, "1")


def recorded_chains(state: State) -> str:
    """Commands that make the chains of every subnet there has been."""
    subnets = [name.split("/", 1)[1] for name in state.facts(f"{_FACT}/")]
    return "".join(subnet_chains(state.table, *chain_names(subnet), subnet) for subnet in subnets)


def masquerade(call: Call, addresses: list[IPv4Interface | IPv6Interface]) -> None:
    """Let packets from these addresses leave their subnet under the machine's address."""
    _remember(call, addresses)
    elements = [Element(f"sources{a.version}", a.ip.packed, chain=chain_names(str(a.network))[0]) for a in addresses]
    call.rules(elements, lambda: _chains(call.session.state.table, addresses))


def hairpin_elements(addresses: list[IPv4Interface | IPv6Interface]) -> list[Element]:
    """Elements that masquerade what a host port turns back: to the pod itself, to its subnet, from 127.0.0.1."""
    elements = []
    for a in addresses:
        elements.append(Element(f"self{a.version}", concatenation(a.ip.packed, a.ip.packed)))
        if a.network.prefixlen < a.max_prefixlen:
            elements.append(Element(f"hairpin{a.version}", a.ip.packed, chain=chain_names(str(a.network))[1]))
        if a.version == 4:
            elements.append(Element("loopback", a.ip.packed))
    return elements


def hairpin(call: Call, addresses: list[IPv4Interface | IPv6Interface], elements: list[Element]) -> None:
    """Add ``elements`` together with the addresses' hairpin elements."""
    _remember(call, addresses)
    call.rules(elements + hairpin_elements(addresses), lambda: _chains(call.session.state.table, addresses))

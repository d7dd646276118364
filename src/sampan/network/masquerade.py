"""What leaves a container under the machine's address, and what a host port turns back: elements and their subnets.

See :mod:`sampan.network.nft` for the rules. The subnets and the conditions that the rules ask for are kept as facts, so
that our table can be made anew when somebody has flushed it.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_network

from sampan.errors import WrongState
from sampan.network import nft
from sampan.network.call import Call
from sampan.network.state import State
from sampan.wire.nfnetlink import Element, concatenation

_SUBNET = "subnet/"
_GATE = "gate/"


def skeleton(state: State) -> str:
    """Commands that make our table with every subnet and condition there is."""
    text = nft.skeleton(state.table) + nft.subnets(state.table, _names(state, _SUBNET))
    for chain in _names(state, _GATE):
        text += nft.gate(state.table, chain, state.fact(_GATE + chain).splitlines())
    return text


def _names(state: State, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in state.facts(prefix)]


def forget(state: State, database: sqlite3.Connection) -> None:
    """Forget every subnet and condition, in the transaction in which the table goes."""
    for prefix in (_SUBNET, _GATE):
        for name in state.facts(prefix):
            state.drop_fact(database, name)


def _know_subnets(call: Call, database: sqlite3.Connection, networks: list[IPv4Network | IPv6Network]) -> None:
    """Put subnets into our table that are not in it, in the state's transaction.

    Raises:
        WrongState: One overlaps that of other containers, and so has no inside and outside of its own.
    """
    state, container = call.session.state, call.owner.container
    known = set(_names(state, _SUBNET))
    new = [network for network in networks if str(network) not in known]
    if not new:
        return
    for network in new:
        for other in [name for name in known if _overlap(network, ip_network(name))]:
            if _in_use(database, ip_network(other), container):
                raise WrongState(
                    f"subnet {network} overlaps {other} of another network of this machine, which has containers",
                    hint="give one of the two networks another subnet",
                )
            state.drop_fact(database, _SUBNET + other)
            known.discard(other)
        state.put_fact(database, f"{_SUBNET}{network}", "1")
        known.add(str(network))
    nft.run(skeleton(state))


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _in_use(database: sqlite3.Connection, network: IPv4Network | IPv6Network, container: str) -> bool:
    """Whether another container than ``container`` has an address of ``network``."""
    rows = database.execute(
        "SELECT key FROM rules WHERE set_name IN (?, ?) AND container <> ?",
        (f"sources{network.version}", f"hairpin{network.version}", container),
    )
    return any(ip_address(row[0]) in network for row in rows)


def masquerade(call: Call, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    """Let packets from these addresses leave their subnet under the machine's address."""
    networks = [a.network for a in addresses]
    elements = [Element(f"sources{a.version}", a.ip.packed) for a in addresses]
    call.rules(elements, lambda database: _know_subnets(call, database, networks))


def hairpin_elements(addresses: Sequence[IPv4Interface | IPv6Interface], *, hide: bool) -> list[Element]:
    """Elements that masquerade what a host port turns back: to the pod itself, to its subnet, from 127.0.0.1.

    Args:
        addresses: The container's.
        hide: Masquerade everything that came through a host port.
    """
    elements = []
    for a in addresses:
        elements.append(Element(f"self{a.version}", concatenation(a.ip.packed, a.ip.packed)))
        if hide:
            elements.append(Element(f"hidden{a.version}", a.ip.packed))
        elif a.network.prefixlen < a.max_prefixlen:
            elements.append(Element(f"hairpin{a.version}", a.ip.packed))
        if a.version == 4:
            elements.append(Element("loopback", a.ip.packed))
    return elements


def host_ports(
    call: Call,
    elements: list[Element],
    addresses: Sequence[IPv4Interface | IPv6Interface],
    conditions: tuple[str, ...] = (),
) -> None:
    """Put the elements of host ports into our table.

    Args:
        call: The plugin's turn.
        elements: The mappings.
        addresses: The container's, whose subnets must be known; none when nothing is masqueraded.
        conditions: What keeps packets out of the mappings: matches of nft.
    """
    state = call.session.state
    gates: list[Element] = []
    chain = f"gate_{hashlib.sha256(repr(conditions).encode()).hexdigest()[:10]}"
    if conditions:
        gates = [
            Element(e.set_name.replace("mapped", "gates"), e.key, chain=chain)
            for e in elements
            if e.set_name.startswith("mapped")
        ]

    def prepare(database: sqlite3.Connection) -> None:
        if conditions:
            state.put_fact(database, _GATE + chain, "\n".join(conditions))
        _know_subnets(call, database, [a.network for a in addresses if a.network.prefixlen < a.max_prefixlen])

    call.rules(elements + gates, prepare)

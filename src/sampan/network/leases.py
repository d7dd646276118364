"""Addresses handed out: which is free, whose each is."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from sampan.errors import AlreadyExists, Exhausted
from sampan.network.state import Owner, State

IpAddress = IPv4Address | IPv6Address


class Range:
    """Addresses from ``first`` to ``last`` of a subnet, without those for which ``kept`` is true.

    Args:
        first: First address that may be leased.
        last: Last one.
        kept: Whether an address must not be leased: the gateway, an exclusion.
    """

    __slots__ = ("first", "kept", "last")

    def __init__(self, first: IpAddress, last: IpAddress, kept: Callable[[IpAddress], bool]) -> None:
        self.first = first
        self.last = last
        self.kept = kept

    def holds(self, address: IpAddress) -> bool:
        """Whether the address is within; kept ones too."""
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)


def lease(
    state: State, owner: Owner, pool: int, ranges: Sequence[Range], wanted: IpAddress | None = None, foreign: str = ""
) -> IpAddress:
    """Lease one address of ``ranges``: the one that the owner has in this pool, the one wanted, or the next free one.

    Addresses go round: the one last given back is the last one to be given out again, since others may remember it.

    Args:
        state: Where leases are.
        owner: Whose it will be.
        pool: Which of the network's range sets this is.
        ranges: The range set.
        wanted: A request for one address.
        foreign: Directory in which another allocator (the Go host-local) keeps a file for each address of this network.

    Raises:
        Exhausted: Every address is leased.
        AlreadyExists: The wanted one is somebody else's.
    """
    with state.transaction() as database:
        mine = database.execute(
            "SELECT address FROM leases WHERE container = ? AND ifname = ? AND network = ? AND pool = ?",
            (owner.container, owner.ifname, owner.network, pool),
        ).fetchone()
        if mine is not None and (wanted is None or ip_address(mine[0]) == wanted):
            return ip_address(mine[0])
        if wanted is not None:
            _claim(state, owner, wanted, foreign)
            chosen = wanted
        else:
            chosen = _next_free(state, owner.network, pool, ranges, foreign)
        database.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)",
            (owner.network, chosen.packed, pool, owner.container, owner.ifname, state.boot, time.time_ns()),
        )
        if wanted is None:
            database.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (owner.network, pool, chosen.packed))
        return chosen


def _claim(state: State, owner: Owner, wanted: IpAddress, foreign: str) -> None:
    row = state.database.execute(
        "SELECT container FROM leases WHERE network = ? AND address = ?", (owner.network, wanted.packed)
    ).fetchone()
    if row is not None:
        raise AlreadyExists(f"address {wanted} of network {owner.network} is leased to container {row[0]}")
    if foreign and os.path.exists(os.path.join(foreign, str(wanted))):
        raise AlreadyExists(f"address {wanted} of network {owner.network} is taken, says {foreign}")


def _next_free(state: State, network: str, pool: int, ranges: Sequence[Range], foreign: str) -> IpAddress:
    row = state.database.execute(
        "SELECT address FROM cursors WHERE network = ? AND pool = ?", (network, pool)
    ).fetchone()
    last = ip_address(row[0]) if row else None
    for first, end, span in _round(ranges, last):
        taken = {
            bytes(row[0])
            for row in state.database.execute(
                "SELECT address FROM leases WHERE network = ? AND address BETWEEN ? AND ? AND length(address) = ?",
                (network, first.packed, end.packed, len(first.packed)),
            )
        }
        candidate = int(first)
        while candidate <= int(end):
            address = type(first)(candidate)
            candidate += 1
            if address.packed in taken or span.kept(address):
                continue
            if foreign and os.path.exists(os.path.join(foreign, str(address))):
                continue
            return address
    spans = ", ".join(f"{span.first}-{span.last}" for span in ranges)
    raise Exhausted(
        f"network {network}: every address of {spans} is leased",
        hint="give the network a larger subnet, or free what dead pods left: sampan network reconcile",
    )


def _round(ranges: Sequence[Range], last: IpAddress | None) -> Iterable[tuple[IpAddress, IpAddress, Range]]:
    """Parts of the ranges in the order to be searched: from behind ``last`` to the end, then from the start."""
    at = next((i for i, span in enumerate(ranges) if last is not None and span.holds(last)), None)
    if at is None or last is None:
        for span in ranges:
            yield span.first, span.last, span
        return
    if int(last) < int(ranges[at].last):
        yield last + 1, ranges[at].last, ranges[at]
    for span in (*ranges[at + 1 :], *ranges[:at]):
        yield span.first, span.last, span
    yield ranges[at].first, last, ranges[at]


def leased(state: State, owner: Owner) -> list[IpAddress]:
    """The owner's addresses."""
    rows = state.database.execute(
        "SELECT address FROM leases WHERE container = ? AND ifname = ? AND network = ? ORDER BY pool",
        (owner.container, owner.ifname, owner.network),
    )
    return [ip_address(row[0]) for row in rows]


def release(state: State, owner: Owner) -> None:
    """Give the owner's addresses back; none is no error."""
    with state.transaction() as database:
        database.execute(
            "DELETE FROM leases WHERE container = ? AND ifname = ? AND network = ?",
            (owner.container, owner.ifname, owner.network),
        )

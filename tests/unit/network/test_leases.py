"""Addresses: which is handed out, and what of a host-local configuration is refused."""

import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.errors import AlreadyExists, Exhausted, InvalidInput
from sampan.network import leases
from sampan.network.leases import Range
from sampan.network.plugins import hostlocal
from sampan.network.state import Owner, State


def span(first: str, last: str, *kept: str) -> Range:
    return Range(ip_address(first), ip_address(last), lambda address: str(address) in kept)


def owner(number: int) -> Owner:
    return Owner(f"c{number}", "eth0", "net")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


def take(state: State, number: int, ranges: list[Range], wanted: str = "") -> str:
    return str(leases.lease(state, owner(number), 0, ranges, ip_address(wanted) if wanted else None))


def test_in_order_around_and_never_kept_ones(state: State) -> None:
    ranges = [span("10.0.0.1", "10.0.0.4", "10.0.0.1"), span("10.0.1.1", "10.0.1.2")]
    got = [take(state, i, ranges) for i in range(5)]
    assert got == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.1", "10.0.1.2"]
    with pytest.raises(Exhausted, match=r"10\.0\.0\.1-10\.0\.0\.4, 10\.0\.1\.1-10\.0\.1\.2"):
        take(state, 9, ranges)
    leases.release(state, owner(1))
    leases.release(state, owner(3))
    assert take(state, 9, ranges) == "10.0.0.3"
    assert take(state, 10, ranges) == "10.0.1.1"


def test_the_same_owner_gets_the_same_address(state: State) -> None:
    ranges = [span("10.0.0.1", "10.0.0.9")]
    assert take(state, 1, ranges) == take(state, 1, ranges) == "10.0.0.1"


def test_wanted(state: State) -> None:
    ranges = [span("fd00::1", "fd00::ffff")]
    assert take(state, 1, ranges, "fd00::77") == "fd00::77"
    with pytest.raises(AlreadyExists, match="leased to container c1"):
        take(state, 2, ranges, "fd00::77")
    assert take(state, 3, ranges) == "fd00::1"


def test_networks_do_not_share(state: State) -> None:
    ranges = [span("10.0.0.1", "10.0.0.1")]
    assert take(state, 1, ranges) == "10.0.0.1"
    assert str(leases.lease(state, Owner("c2", "eth0", "other"), 0, ranges)) == "10.0.0.1"


def test_threads_never_get_the_same(tmp_path: Path) -> None:
    states = [State(str(tmp_path / "state")) for _ in range(4)]
    ranges = [span("10.0.0.1", "10.0.0.200")]
    got: list[str] = []

    def work(index: int) -> None:
        got.extend(take(states[index], index * 50 + i, ranges) for i in range(50))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 200


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_a_lease_is_exclusive_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]]
) -> None:
    state = State(str(tmp_path_factory.mktemp("leases")))
    ranges = [span("10.0.0.1", "10.0.0.6")]
    held: dict[int, str] = {}
    for taking, number in steps:
        if not taking:
            leases.release(state, owner(number))
            held.pop(number, None)
            continue
        try:
            address = take(state, number, ranges)
        except Exhausted:
            assert len(set(held.values())) == 6
            continue
        assert address not in [a for n, a in held.items() if n != number]
        held[number] = address
    state.close()


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({"subnet": "10.0.0.0/31"}, "too small"),
        ({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}, r"rangeStart: 10\.0\.1\.1 is not in"),
        ({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}, "behind rangeEnd"),
        ({"ranges": [[]]}, "empty range set"),
        ({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}, "IPv4 and IPv6"),
        ({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}, r"ranges\[1\]: .* overlaps"),
        ({"ranges": [[{"subnet": 5}]]}, r"ipam\.ranges\[0\]\[0\]\.subnet"),
        ({"subnet": "10.0.0.0/24", "exclude": ["nonsense"]}, "exclude"),
    ],
)
def test_bad_ranges(ipam: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        hostlocal.validate({"name": "n", "ipam": {"type": "host-local", **ipam}})

"""Lists of records: current, whoever wrote, and the same objects as long as nothing has changed."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from sampan.engine.records import Records
from sampan.storage.database import Database
from sampan.storage.records import Records as Table


class Thing(msgspec.Struct):
    id: str
    size: int


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(str(tmp_path / "metadata.db"))
    yield made
    made.close()


@pytest.fixture
def things(database: Database) -> Records[Thing]:
    return Records(Table(database, "here", "things"), Thing, "thing")


def _add(things: Records[Thing], name: str, size: int) -> None:
    things.add(name, Thing(name, size), name=name)


def _sizes(things: Records[Thing]) -> list[int]:
    return [thing.size for thing in things.list()]


def test_what_has_not_changed_is_the_same_object(things: Records[Thing]) -> None:
    _add(things, "a", 1)
    _add(things, "b", 2)
    first = things.list()
    assert all(one is other for one, other in zip(first, things.list(), strict=True))
    things.put("b", Thing("b", 3))
    second = things.list()
    assert second[0] is first[0]
    assert [thing.size for thing in second] == [1, 3]
    assert first[1].size == 2
    things.delete("a")
    assert things.list()[0] is second[1]
    assert things.list() is not things.list()


def test_what_others_wrote_is_seen(tmp_path: Path, things: Records[Thing]) -> None:
    _add(things, "a", 1)
    assert _sizes(things) == [1]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_add, things, "b", 2).result()
        assert _sizes(things) == [1, 2]
        assert pool.submit(_sizes, things).result() == [1, 2]
        things.put("a", Thing("a", 5))
        assert pool.submit(_sizes, things).result() == [5, 2]
    another = Database(str(tmp_path / "metadata.db"))
    Records(Table(another, "here", "things"), Thing, "thing").delete("a")
    another.close()
    assert _sizes(things) == [2]


def test_what_was_rolled_back_is_not_seen(database: Database, things: Records[Thing]) -> None:
    _add(things, "a", 1)

    def change_and_fail() -> None:
        with database.transaction():
            things.put("a", Thing("a", 2))
            assert _sizes(things) == [2]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert _sizes(things) == [1]


def test_lists_while_others_write(database: Database, things: Records[Thing]) -> None:
    """Each list is of one moment: the sizes, which one transaction changes together, agree."""
    for name in "abc":
        _add(things, name, 0)
    stop = threading.Event()

    def look() -> bool:
        agreed = True
        while not stop.is_set():
            agreed = agreed and len(set(_sizes(things))) == 1
        return agreed

    with ThreadPoolExecutor(3) as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        for size in range(1, 100):
            with database.transaction():
                for name in "abc":
                    things.put(name, Thing(name, size))
        stop.set()
        assert all(looker.result() for looker in lookers)
    assert _sizes(things) == [99, 99, 99]

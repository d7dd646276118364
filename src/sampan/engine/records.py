"""Typed records over the store, locks on one object, and one flight for each name.

A record is written whole in one SQLite transaction. A lock is a flock(2) on a file of its own, so that the daemon's
threads and any number of command lines exclude each other by the same means, and a killed holder holds nothing.
"""

import fcntl
import itertools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from operator import is_
from typing import Any, Generic, TypeVar

import msgspec

from sampan.errors import InvalidInput, NotFound
from sampan.linux.flock import is_free
from sampan.storage import records as stored

T = TypeVar("T")
R = TypeVar("R")


def new_id() -> str:
    """A fresh id: 64 hexadecimal digits, as containerd's and Docker's have."""
    return secrets.token_hex(32)


class _Listed(Generic[T]):
    """A list of all records.

    Args:
        number: Which list it is.
        entries: By id: the record as stored, and decoded.
    """

    __slots__ = ("entries", "number", "records")

    def __init__(self, number: int, entries: dict[str, tuple[bytes, T]]) -> None:
        self.number = number
        self.entries = entries
        self.records = [record for _, record in entries.values()]


class Records(Generic[T]):
    """Records of one kind.

    Args:
        table: ``Store.records(namespace, kind)``.
        kind: The struct that a record is.
        noun: What a person calls one, for errors.
    """

    def __init__(self, table: stored.Records, kind: type[T], noun: str) -> None:
        self._table = table
        self._decoder = msgspec.json.Decoder(kind)
        self._noun = noun
        self._numbers = itertools.count(1)
        self._listed: _Listed[T] = _Listed(0, {})
        #: Each thread's version of the store in which it saw which list.
        self._seen = threading.local()

    def get(self, record_id: str) -> T:
        """The record of this very id.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._decoder.decode(self._table.get(record_id))
        except NotFound:
            raise NotFound(f'{self._noun} "{record_id}" does not exist') from None

    def find(self, text: str) -> T:
        """The record whose id is ``text`` or begins with it, or whose name is ``text``.

        Raises:
            NotFound: There is none.
            InvalidInput: Several ids begin with it.
        """
        if len(text) == 64:
            return self.get(text)
        matches = [data for record_id, data in self._table.list() if text and record_id.startswith(text)]
        if len(matches) == 1:
            return self._decoder.decode(matches[0])
        if len(matches) > 1:
            raise InvalidInput(f'"{text}" is the beginning of {len(matches)} ids', field="id", hint="give more digits")
        named = self.named(text)
        if named is None:
            raise NotFound(f'{self._noun} "{text}" does not exist')
        return named

    def named(self, name: str) -> T | None:
        """The record of this name, if there is one."""
        try:
            return self.get(self._table.find(name))
        except NotFound:
            return None

    def list(self) -> list[T]:
        """Every record of the kind, for reading only: one that has not changed is the same object in the next list."""
        listed = self._listed
        version = self._table.version()
        if getattr(self._seen, "last", None) != (version, listed.number):
            listed = self._listed = self._list_anew(listed)
            self._seen.last = version, listed.number
        return listed.records.copy()

    def _list_anew(self, before: "_Listed[T]") -> "_Listed[T]":
        entries: dict[str, tuple[bytes, T]] = {}
        for record_id, data in self._table.list():
            known = before.entries.get(record_id)
            entries[record_id] = known if known and known[0] == data else (data, self._decoder.decode(data))
        same = len(entries) == len(before.entries) and all(map(is_, entries.values(), before.entries.values()))
        return before if same else _Listed(next(self._numbers), entries)

    def add(self, record_id: str, record: T, *, name: str, snapshots: tuple[str, ...] = ()) -> None:
        """Write a new record under its unique name.

        Raises:
            AlreadyExists: The id or the name is taken.
        """
        self._table.put(record_id, msgspec.json.encode(record), create=True, name=name, snapshots=snapshots)

    def put(self, record_id: str, record: T, *, name: str | None = None) -> None:
        """Write a record over the former; what it keeps alive stays, and its name unless it gets another."""
        self._table.put(record_id, msgspec.json.encode(record), name=name)

    def delete(self, record_id: str) -> None:
        """Remove a record; one that is not there is no error."""
        try:
            self._table.delete(record_id)
        except NotFound:
            pass


class Locks:
    """Exclusion by object id, over threads and processes.

    Args:
        directory: Where the lock files are; made when missing.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, 0o700, exist_ok=True)

    @contextmanager
    def hold(self, object_id: str) -> Iterator[None]:
        """Hold the object's lock; the file is removed with the last holder."""
        path = f"{self._directory}/{object_id}"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # A former holder may have unlinked the file between our open and our lock.
                if os.fstat(fd).st_nlink == 0:
                    continue
                try:
                    yield
                finally:
                    os.unlink(path)
                return
            finally:
                os.close(fd)

    def free(self, object_id: str) -> bool:
        """Whether nobody holds the object's lock."""
        return is_free(f"{self._directory}/{object_id}")


class Flights:
    """One execution for each key at a time: who asks for a key that is under way gets that flight's result."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Any]] = {}

    def do(self, key: str, work: Callable[[], R]) -> R:
        """Run ``work``, or wait for the one under way for ``key`` and share its result or error."""
        with self._lock:
            flight = self._under_way.get(key)
            mine = flight is None
            if flight is None:
                flight = self._under_way[key] = Future()
        if not mine:
            result: R = flight.result()
            return result
        try:
            flight.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to every waiter, raised below
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._under_way[key]
        final: R = flight.result()
        return final

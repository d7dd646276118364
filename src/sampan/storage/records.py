"""Records (the engine's pods and containers), events, and leases."""

import secrets
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sampan.errors import AlreadyExists, InvalidInput, NotFound
from sampan.storage.database import Database


class Records:
    """Bytes by id: one kind of record in one namespace.

    A record may bear a name, unique among its kind, and may keep content and snapshots from being collected.
    """

    def __init__(self, database: Database, namespace: str, kind: str) -> None:
        self._database = database
        self._key = (namespace, kind)

    def get(self, record_id: str) -> bytes:
        """The record.

        Raises:
            NotFound: There is none of that id.
        """
        row = self._database.row(
            "SELECT data FROM records WHERE namespace=? AND kind=? AND id=?", (*self._key, record_id)
        )
        if row is None:
            raise NotFound(f'{self._key[1]} "{record_id}": not in namespace {self._key[0]}')
        return bytes(row[0])

    def list(self) -> list[tuple[str, bytes]]:
        """All records, by id."""
        rows = self._database.rows("SELECT id, data FROM records WHERE namespace=? AND kind=? ORDER BY id", self._key)
        return [(row[0], bytes(row[1])) for row in rows]

    def version(self) -> object:
        """Something that is equal for the same thread as long as no record, of whatever kind, has changed."""
        return self._database.version()

    def find(self, name: str) -> str:
        """The id of the record that bears ``name``.

        Raises:
            NotFound: None does.
        """
        row = self._database.row("SELECT id FROM records WHERE namespace=? AND kind=? AND name=?", (*self._key, name))
        if row is None:
            raise NotFound(f'{self._key[1]} named "{name}": not in namespace {self._key[0]}')
        return str(row[0])

    def put(
        self,
        record_id: str,
        data: bytes,
        *,
        create: bool = False,
        name: str | None = None,
        content: Iterable[str] | None = None,
        snapshots: Iterable[str] | None = None,
    ) -> None:
        """Write a record.

        Args:
            record_id: Its id.
            data: What it says.
            create: Refuse to replace one.
            name: Its name; None leaves the name as it is.
            content: Digests it keeps; None leaves them as they are.
            snapshots: Snapshot keys it keeps; None leaves them as they are.

        Raises:
            AlreadyExists: The id (with ``create``) or the name is taken.
        """
        kind = self._key[1]
        change = "" if create else " ON CONFLICT (namespace, kind, id) DO UPDATE SET data=?5, name=coalesce(?4, name)"
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    f"INSERT INTO records (namespace, kind, id, name, data) VALUES (?1, ?2, ?3, ?4, ?5){change}",
                    (*self._key, record_id, name, data),
                )
                for target_kind, targets in (("content", content), ("snapshot", snapshots)):
                    if targets is not None:
                        self._refer(connection, record_id, target_kind, targets)
        except sqlite3.IntegrityError:
            taken = f'named "{name}"' if name else f'"{record_id}"'
            raise AlreadyExists(f"{kind} {taken}: exists in namespace {self._key[0]}") from None

    def _refer(self, connection: sqlite3.Connection, owner: str, target_kind: str, targets: Iterable[str]) -> None:
        connection.execute(
            "DELETE FROM refs WHERE namespace=? AND owner_kind=? AND owner=? AND target_kind=?",
            (*self._key, owner, target_kind),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?, ?)",
            [(*self._key, owner, target_kind, target) for target in targets],
        )

    def delete(self, record_id: str) -> None:
        """Remove a record and what it keeps.

        Raises:
            NotFound: There is none of that id.
        """
        with self._database.transaction() as connection:
            key = (*self._key, record_id)
            connection.execute("DELETE FROM refs WHERE namespace=? AND owner_kind=? AND owner=?", key)
            if not connection.execute("DELETE FROM records WHERE namespace=? AND kind=? AND id=?", key).rowcount:
                raise NotFound(f'{self._key[1]} "{record_id}": not in namespace {self._key[0]}')


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in the order it happened. ``time`` in nanoseconds since the epoch."""

    sequence: int
    time: int
    namespace: str
    data: bytes


class Events:
    """The journal of events. A sequence number is never given twice, trimmed or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, namespace: str, data: bytes) -> int:
        """Add an event; returns its sequence number."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO events (time, namespace, data) VALUES (?, ?, ?)", (time.time_ns(), namespace, data)
            )
            return int(cursor.lastrowid or 0)

    def since(self, sequence: int, limit: int = 1000, namespace: str | None = None) -> list[StoredEvent]:
        """Events after ``sequence``, oldest first."""
        condition, values = ("", ()) if namespace is None else (" AND namespace=?", (namespace,))
        rows = self._database.rows(
            f"SELECT sequence, time, namespace, data FROM events WHERE sequence>?{condition} ORDER BY sequence LIMIT ?",
            (sequence, *values, limit),
        )
        return [StoredEvent(row[0], row[1], row[2], bytes(row[3])) for row in rows]

    def last(self) -> int:
        """The last sequence number given, 0 if none was."""
        row = self._database.row("SELECT seq FROM sqlite_sequence WHERE name='events'")
        return int(row[0]) if row else 0

    def trim(self, keep: int) -> int:
        """Drop all but the newest ``keep``; returns how many went."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM events WHERE sequence<=?", (self.last() - keep,)).rowcount


_LEASE = "lease"


class Lease:
    """Keeps content and snapshots from being collected until it is released or expires.

    As a context manager it is released at the end of the block.
    """

    def __init__(self, database: Database, namespace: str, lease_id: str, expires_at: int) -> None:
        self._database = database
        self.namespace = namespace
        self.id = lease_id
        self.expires_at = expires_at

    def add_content(self, digest: str) -> None:
        """Keep a blob, there or yet to come."""
        self._add("content", digest)

    def add_snapshot(self, key: str) -> None:
        """Keep a snapshot, there or yet to come."""
        self._add("snapshot", key)

    def _add(self, kind: str, target: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?, ?)", (self.namespace, _LEASE, self.id, kind, target)
            )

    def renew(self, seconds: float) -> None:
        """Let it expire ``seconds`` from now.

        Raises:
            NotFound: It was released.
        """
        expires_at = time.time_ns() + int(seconds * 1e9)
        with self._database.transaction() as connection:
            if not connection.execute(
                "UPDATE leases SET expires_at=? WHERE namespace=? AND id=?", (expires_at, self.namespace, self.id)
            ).rowcount:
                raise NotFound(f'lease "{self.id}": not in namespace {self.namespace}')
        self.expires_at = expires_at

    def release(self) -> None:
        """Keep nothing any more; twice is no error."""
        key = (self.namespace, self.id)
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM refs WHERE namespace=? AND owner_kind='lease' AND owner=?", key)
            connection.execute("DELETE FROM leases WHERE namespace=? AND id=?", key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Leases:
    """The leases of one namespace."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def create(self, lease_id: str = "", *, expires_in: float = 3600) -> Lease:
        """Make a lease.

        Args:
            lease_id: Its id; empty for a random one.
            expires_in: Seconds until it no longer counts.

        Raises:
            AlreadyExists: There is one of that id.
        """
        if expires_in <= 0:
            raise InvalidInput("must be positive", field="expires_in")
        lease_id = lease_id or secrets.token_hex(16)
        now = time.time_ns()
        expires_at = now + int(expires_in * 1e9)
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO leases VALUES (?, ?, ?, ?)", (self._namespace, lease_id, expires_at, now)
                )
        except sqlite3.IntegrityError:
            raise AlreadyExists(f'lease "{lease_id}": exists in namespace {self._namespace}') from None
        return Lease(self._database, self._namespace, lease_id, expires_at)

    def list(self) -> list[Lease]:
        """All leases, also those that have expired and were not collected yet."""
        rows = self._database.rows(
            "SELECT id, expires_at FROM leases WHERE namespace=? ORDER BY id", (self._namespace,)
        )
        return [Lease(self._database, self._namespace, row[0], row[1]) for row in rows]

    def delete(self, lease_id: str) -> None:
        """Release a lease.

        Raises:
            NotFound: There is none of that id.
        """
        for lease in self.list():
            if lease.id == lease_id:
                lease.release()
                return
        raise NotFound(f'lease "{lease_id}": not in namespace {self._namespace}')

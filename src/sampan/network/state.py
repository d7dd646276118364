"""What the network knows across processes and boots, in one directory.

::

    <root>/network.db      SQLite: leases, rules, attachments, names, cursors, facts
    <root>/lock            flock: who changes the database waits here, in turn, not in SQLite's polling
    <root>/results/        libcni's result cache: <network>-<container>-<interface>

A lease (an address that a container has) and a rule (an element of our nftables sets) carry the boot they were made in:
those of another boot are void, since the kernel forgot its part. An attachment is written before the first plugin runs
and removed after the last one is undone, so that a crash leaves a name to clean up by.

Any number of processes and threads; each thread has a connection of its own. Loss of the last commits in a power cut is
harmless, so that only SQLite's checkpoints are synced: without them it could be the database that is lost. What SQLite
raises is told as errors of ours.
"""

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sampan.errors import AlreadyExists, Corrupt, Exhausted, SampanError, StageFailed, TimedOut
from sampan.wire.nfnetlink import Element

_SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (
    network TEXT NOT NULL, address BLOB NOT NULL, pool INTEGER NOT NULL, container TEXT NOT NULL,
    ifname TEXT NOT NULL, boot TEXT NOT NULL, created INTEGER NOT NULL, PRIMARY KEY (network, address)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_owner ON leases (container, ifname, network);
CREATE TABLE IF NOT EXISTS cursors (
    network TEXT NOT NULL, pool INTEGER NOT NULL, address BLOB NOT NULL, PRIMARY KEY (network, pool)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rules (
    family INTEGER NOT NULL, set_name TEXT NOT NULL, key BLOB NOT NULL, data BLOB NOT NULL, chain TEXT NOT NULL,
    container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL, plugin TEXT NOT NULL, boot TEXT NOT NULL,
    PRIMARY KEY (family, set_name, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rules_owner ON rules (container, ifname, network);
CREATE TABLE IF NOT EXISTS attachments (
    container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL, position INTEGER NOT NULL,
    boot TEXT NOT NULL, created INTEGER NOT NULL, PRIMARY KEY (container, ifname, network)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (
    container TEXT NOT NULL, network TEXT NOT NULL, realm TEXT NOT NULL, hosts TEXT NOT NULL, names TEXT NOT NULL,
    addresses TEXT NOT NULL, boot TEXT NOT NULL, PRIMARY KEY (container, network)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_network ON names (network, realm);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
_BUSY_SECONDS = 60
#: Where a machine's own daemon and commands keep their state, and ``sampan-cni`` for other runtimes: one record of what
#: stands in the one table, or each would take the other's rules for strays.
USUAL = "/var/lib/sampan/network"


class Owner:
    """Whose a lease or a rule is."""

    __slots__ = ("container", "ifname", "network")

    def __init__(self, container: str, ifname: str, network: str) -> None:
        self.container = container
        self.ifname = ifname
        self.network = network


#: Owner of rules that a bridge's pods share.
SHARED = Owner("", "", "")


P = ParamSpec("P")
R = TypeVar("R")


def _translated(method: Callable[P, R]) -> Callable[P, R]:
    """The method with SQLite's errors told as ours."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except sqlite3.Error as error:
            raise translate(error) from error

    return call


def translate(error: sqlite3.Error) -> SampanError:
    """An error of SQLite's as one of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Exhausted("the network's record: no space is left on its disk")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TimedOut(f"the network's record: locked by another process for {_BUSY_SECONDS} s")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(f"the network's record: {error}")
    return SampanError(f"the network's record: {error}")


class _Cursor(sqlite3.Cursor):
    execute = _translated(sqlite3.Cursor.execute)
    executemany = _translated(sqlite3.Cursor.executemany)
    executescript = _translated(sqlite3.Cursor.executescript)
    fetchone = _translated(sqlite3.Cursor.fetchone)
    fetchall = _translated(sqlite3.Cursor.fetchall)

    @_translated
    def __next__(self) -> Any:
        return super().__next__()


class _Connection(sqlite3.Connection):
    def execute(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executemany(*args)

    def executescript(self, *args: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executescript(*args)


class State:
    """The state directory; see the module.

    Two states on one machine (a second daemon's, a test's) have nothing in common in the kernel either: the table, and
    the built-in network's bridge, are named after the directory unless it is the usual one.

    Args:
        root: The directory; made if it is not there.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        where = os.path.realpath(root)
        #: Empty, or what sets this state's names in the kernel apart.
        self.tag = "" if where == USUAL else hashlib.sha256(where.encode()).hexdigest()[:8]
        #: Name of our nftables tables.
        self.table = f"sampan_{self.tag}" if self.tag else "sampan"
        self.results = os.path.join(root, "results")
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            os.makedirs(self.results, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StageFailed("make the network's state directory", error) from error
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self.boot = file.read().strip()
        self._local = threading.local()
        self._void_other_boots()

    @property
    def database(self) -> sqlite3.Connection:
        """The calling thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA user_version").fetchone()[0] != 2:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            self._local.connection = connection
            self._local.lock = open(os.path.join(self.root, "lock"), "ab")
        return connection

    @_translated
    def _connect(self) -> sqlite3.Connection:
        path = os.path.join(self.root, "network.db")
        return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, factory=_Connection)

    def close(self) -> None:
        """Close the calling thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.lock.close()
            del self._local.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the body as one write transaction; commit, or roll back on an error."""
        database = self.database
        fcntl.flock(self._local.lock, fcntl.LOCK_EX)
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                if database.in_transaction:  # SQLite has rolled back by itself where the disk is full
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        finally:
            fcntl.flock(self._local.lock, fcntl.LOCK_UN)

    def _void_other_boots(self) -> None:
        for table in ("leases", "rules", "names"):
            if self.database.execute(f"SELECT 1 FROM {table} WHERE boot <> ? LIMIT 1", (self.boot,)).fetchone():
                with self.transaction() as database:
                    database.execute(f"DELETE FROM {table} WHERE boot <> ?", (self.boot,))

    # Rules.

    def record_rules(
        self, database: sqlite3.Connection, owner: Owner, plugin: str, elements: Sequence[Element]
    ) -> None:
        """Write down elements, in the transaction in which they go to the kernel.

        Raises:
            AlreadyExists: Another container has an element of that key: a host port, most often.
        """
        for element in elements:
            key = (element.family, element.set_name, element.key)
            row = database.execute(
                "SELECT container FROM rules WHERE family = ? AND set_name = ? AND key = ?", key
            ).fetchone()
            if row is not None and row[0] != owner.container:
                raise AlreadyExists(f"{describe(element)} is taken by container {row[0]}")
            database.execute(
                "INSERT OR REPLACE INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, element.data, element.chain, owner.container, owner.ifname, owner.network, plugin, self.boot),
            )

    def rules(self, owner: Owner | None = None, plugin: str = "") -> list[Element]:
        """Recorded elements, of an owner and a plugin or all."""
        query, values = "SELECT set_name, key, data, chain, family FROM rules", list[str]()
        if owner is not None:
            query += " WHERE container = ? AND ifname = ? AND network = ?"
            values += [owner.container, owner.ifname, owner.network]
            if plugin:
                query += " AND plugin = ?"
                values.append(plugin)
        return [Element(*row) for row in self.database.execute(query, values)]

    @staticmethod
    def forget_rules(database: sqlite3.Connection, elements: Sequence[Element]) -> None:
        """Remove the record of elements, in the transaction in which the kernel loses them."""
        database.executemany(
            "DELETE FROM rules WHERE family = ? AND set_name = ? AND key = ?",
            [(element.family, element.set_name, element.key) for element in elements],
        )

    def in_use(self) -> bool:
        """Whether any container has a lease, a rule or an attachment."""
        return bool(self.owners())

    # Attachments.

    def record_attachment(self, owner: Owner, position: int) -> None:
        """Write down that a container is about to join a network."""
        with self.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?, ?, ?)",
                (owner.container, owner.ifname, owner.network, position, self.boot, time.time_ns()),
            )

    def forget_attachment(self, owner: Owner) -> None:
        """Remove that record."""
        with self.transaction() as database:
            database.execute(
                "DELETE FROM attachments WHERE container = ? AND ifname = ? AND network = ?",
                (owner.container, owner.ifname, owner.network),
            )

    def attachments(self, container: str = "") -> list[Owner]:
        """What was attached, last first; of one container or of all."""
        query = "SELECT container, ifname, network FROM attachments"
        if container:
            rows = self.database.execute(f"{query} WHERE container = ? ORDER BY position DESC", (container,))
        else:
            rows = self.database.execute(f"{query} ORDER BY container, position DESC")
        return [Owner(*row) for row in rows]

    def attached(self) -> set[str]:
        """Every container that is attached. One that has a lease or a rule and is not came by ``sampan-cni``."""
        return {row[0] for row in self.database.execute("SELECT DISTINCT container FROM attachments")}

    def owners(self) -> set[str]:
        """Every container that has a lease, a rule or an attachment."""
        query = "SELECT container FROM leases UNION SELECT container FROM rules UNION SELECT container FROM attachments"
        return {row[0] for row in self.database.execute(query) if row[0]}

    def owners_left(self, container: str) -> list[Owner]:
        """On which networks a container has a lease or a rule."""
        query = "SELECT container, ifname, network FROM {} WHERE container = ?"
        both = f"{query.format('leases')} UNION {query.format('rules')}"
        return [Owner(*row) for row in self.database.execute(both, (container, container))]

    def owners_of(self, network: str) -> list[Owner]:
        """Who has a lease or a rule on a network."""
        query = "SELECT container, ifname, network FROM {} WHERE network = ?"
        both = f"{query.format('leases')} UNION {query.format('rules')}"
        return [Owner(*row) for row in self.database.execute(both, (network, network))]

    def no_attachments(self) -> bool:
        """Whether nobody is attached."""
        return self.database.execute("SELECT 1 FROM attachments LIMIT 1").fetchone() is None

    # Facts.

    def fact(self, name: str) -> str:
        """A remembered value, or the empty string."""
        row = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_fact(self, name: str, value: str) -> None:
        """Remember a value."""
        with self.transaction() as database:
            self.put_fact(database, name, value)

    @staticmethod
    def put_fact(database: sqlite3.Connection, name: str, value: str) -> None:
        """Remember a value, within a transaction."""
        database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @staticmethod
    def drop_fact(database: sqlite3.Connection, name: str) -> None:
        """Forget a remembered value, within a transaction."""
        database.execute("DELETE FROM facts WHERE name = ?", (name,))

    def facts(self, prefix: str) -> list[str]:
        """Names of remembered values that start with ``prefix``."""
        query = "SELECT name FROM facts WHERE substr(name, 1, ?) = ?"
        return [row[0] for row in self.database.execute(query, (len(prefix), prefix))]


_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def describe(element: Element) -> str:
    """An element in a person's words."""
    if element.set_name.rstrip("46") in ("ports", "mapped", "hostports", "gates"):
        protocol, port = element.key[-8], int.from_bytes(element.key[-4:-2], "big")
        return f"host port {port}/{_PROTOCOLS.get(protocol, protocol)}"
    return f"rule {element.set_name} {element.key.hex()}"

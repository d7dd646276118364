"""The metadata database: one SQLite file that many processes and threads open at once.

Rules:

- A transaction of this database is the only commit point of the store. Files are made before their row and deleted
  after it, so that whatever lies on disk without a row is garbage, and no row is without its file.
- One connection for each thread, which ends with the thread; none is carried over a fork.
- WAL, ``synchronous=NORMAL``: a power failure may lose the last transactions but never order or integrity. A
  transaction before which, or after which, the outside world is told something lasting is ``durable``.
- Writers wait for each other up to :data:`BUSY_SECONDS`; transactions are short and do no network I/O.
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sampan.errors import Exhausted, SampanError, TimedOut, Unsupported

BUSY_SECONDS = 30.0
#: SQLite copies its log into the database when that has 1000 pages, and begins anew.
_LOG_BYTES = 1000 * 4096
_RESERVE = "-reserve"

#: The statements that lead from each schema version to the next; never edited once released.
_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE blobs (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL DEFAULT '',
        labels TEXT NOT NULL DEFAULT '{}', created_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE images (
        namespace TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, target TEXT NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}', created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    CREATE INDEX images_by_digest ON images (namespace, digest);
    CREATE TABLE records (
        namespace TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT, data BLOB NOT NULL,
        PRIMARY KEY (namespace, kind, id)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX records_by_name ON records (namespace, kind, name) WHERE name IS NOT NULL;
    CREATE TABLE leases (
        namespace TEXT NOT NULL, id TEXT NOT NULL, expires_at INTEGER NOT NULL, created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;
    CREATE TABLE refs (
        namespace TEXT NOT NULL, owner_kind TEXT NOT NULL, owner TEXT NOT NULL,
        target_kind TEXT NOT NULL CHECK (target_kind IN ('content', 'snapshot')), target TEXT NOT NULL,
        PRIMARY KEY (namespace, owner_kind, owner, target_kind, target)
    ) WITHOUT ROWID;
    CREATE TABLE snapshots (
        key TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed', 'staging')),
        parent TEXT NOT NULL DEFAULT '', directory TEXT NOT NULL UNIQUE, labels TEXT NOT NULL DEFAULT '{}',
        bytes INTEGER NOT NULL DEFAULT -1, inodes INTEGER NOT NULL DEFAULT -1, created_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX snapshots_by_parent ON snapshots (parent);
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, namespace TEXT NOT NULL, data BLOB NOT NULL
    );
    """,
)


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly, and is not closed under a thread that is using it: SQLite would crash."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.used = threading.RLock()


class _Owned:
    """What a thread has of its connection: it is closed with the thread, and not when the collector looks next.

    A connection's cache of statements refers to the connection (CPython's sqlite3), which nothing else would undo.
    """

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self._pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self._pid:  # a forked process loses its parent's threads, and not their files
            self.connection.close()


class Database:
    """The connections to one database file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        #: Not held here: a thread's connection goes when the thread does.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        #: Those of a forked process's parent: closing them in the child would act on the parent's files.
        self._inherited: list[sqlite3.Connection] = []
        self._reserved = False
        self._migrate()

    def _connection(self) -> _Connection:
        local = self._local
        if getattr(local, "pid", None) != os.getpid():
            if getattr(local, "pid", None) is not None:
                self._inherited.append(local.owned.connection)
            local.owned = _Owned(self._connect())
            local.pid = os.getpid()
            local.depth = 0
        connection: _Connection = local.owned.connection
        return connection

    def _connect(self) -> _Connection:
        try:
            # check_same_thread: a connection is used by one thread only, but may be closed by another.
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
                factory=_Connection,
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        with self._lock:
            self._open.add(connection)
        return connection

    def _migrate(self) -> None:
        try:
            if self._connection().execute("PRAGMA user_version").fetchone()[0] == len(_MIGRATIONS):
                return
            with self.transaction(durable=True) as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version > len(_MIGRATIONS):
                    raise Unsupported(
                        f"{self.path}: schema version {version} was made by a newer sampan",
                        hint="run that version, or use another root",
                    )
                for script in _MIGRATIONS[version:]:
                    for statement in script.split(";"):
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction of the calling thread; inside another one, a part of it.

        Args:
            durable: On disk when the block is left, should the power fail the next moment. Of nested transactions
                the outermost decides.
        """
        connection = self._connection()
        local = self._local
        if local.depth:
            local.depth += 1
            try:
                yield connection
            finally:
                local.depth -= 1
            return
        with connection.used:
            yield from self._transaction(connection, durable=durable)

    def _transaction(self, connection: _Connection, *, durable: bool) -> Iterator[sqlite3.Connection]:
        local = self._local
        try:
            if durable:
                connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # it may have been closed
                connection.execute("PRAGMA synchronous=NORMAL")
            raise translate(error, self.path) from error
        local.depth = 1
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                raise translate(error, self.path) from error
            raise
        finally:
            local.depth = 0
            if durable:
                connection.execute("PRAGMA synchronous=NORMAL")

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        connection = self._connection()
        try:
            with connection.used:
                return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first row of a query, or None."""
        connection = self._connection()
        try:
            with connection.used:
                return connection.execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def reserve(self) -> None:
        """Make the log as large as it ever becomes, for a process that keeps the database open from now on.

        So a disk that is full keeps nobody from recording the end of a container, or a removal that makes room. The log
        goes with the last connection: from :meth:`close` until the next time, a file keeps its room.
        """
        self._connection()  # or the log would go with the one that follows
        self._reserved = True
        with suppress(OSError):
            os.unlink(f"{self.path}{_RESERVE}")
        connection = self._connect()
        try:
            connection.execute("PRAGMA cache_size=10")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE reserve (bytes BLOB)")
            connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (_LOG_BYTES,))
        except sqlite3.Error:
            pass  # it is full already
        finally:
            connection.close()  # which takes the transaction back, and leaves the file as large as it has become

    def version(self) -> object:
        """Something that is equal for the same thread as long as nobody has changed anything.

        SQLite tells what others committed (``PRAGMA data_version``) and what this connection changed itself.
        """
        connection = self._connection()
        if connection.in_transaction:  # which may be rolled back
            return object()
        return connection, self.row("PRAGMA data_version")[0], connection.total_changes

    def release(self) -> None:
        """Close this thread's connection: for threads that live on and need it no more. The next use opens another."""
        local = self._local
        if getattr(local, "pid", None) == os.getpid() and not local.depth:
            local.pid = None
            with self._lock:
                self._open.discard(local.owned.connection)
            with local.owned.connection.used:
                local.owned.connection.close()

    def close(self) -> None:
        """Close the connections of every thread of this process, each as soon as its thread makes no use of it."""
        with self._lock:
            connections, self._open = list(self._open), weakref.WeakSet()
        if getattr(self._local, "pid", None) == os.getpid():
            self._local.pid = None
        for connection in connections:
            with connection.used:
                connection.close()
        if self._reserved:
            self._reserved = False
            with suppress(OSError), open(f"{self.path}{_RESERVE}", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, _LOG_BYTES)


def translate(error: sqlite3.Error, path: str) -> SampanError:
    """SQLite's error as one of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Exhausted(f"{path}: no space is left", hint="free some, or run `sampan gc`")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TimedOut(f"{path}: locked by another process for {BUSY_SECONDS:.0f} s")
    return SampanError(f"{path}: {error}")

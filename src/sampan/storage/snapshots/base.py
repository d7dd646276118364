"""What all snapshotters share: rows, directories, and their order.

On disk, ``snapshots/TOKEN/`` with ``fs/`` (the layer's own files) and whatever the kind of snapshotter adds. A
directory is made before its row and removed after it; one without a row is garbage. Whoever makes one holds the
flock of ``snapshots/lock`` shared until its row is there; the collector holds it exclusively while it compares.
A ``staging`` snapshot's maker holds its directory's flock; one whose lock is free was left by a dead process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import sqlite3
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sampan.errors import AlreadyExists, InvalidInput, NotFound, StageFailed, Unsupported, WrongState
from sampan.linux import selinux, tree
from sampan.linux.flock import is_free
from sampan.linux.syscall import libc
from sampan.storage.content import locked
from sampan.storage.database import Database
from sampan.storage.mount import detached
from sampan.storage.snapshots.interface import Holder, Kind, SnapshotInfo, Usage

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

_COLUMNS = "key, kind, parent, labels, created_at, directory"
_LOWER_LABEL = "sampan.lowerdir"
_VOLATILE_LABEL = "sampan.volatile"


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer's directory before the layer has a parent.

    Attributes:
        key: Its key until it is committed.
        directory: Holds ``fs`` and, for overlayfs, ``work``.
        lock: Descriptor whose flock says that the maker lives.
    """

    key: str
    directory: str
    lock: int

    @property
    def files(self) -> str:
        """Where the layer's files go."""
        return os.path.join(self.directory, "fs")

    def close(self) -> None:
        """Let go of the lock; once."""
        os.close(self.lock)


class DirectorySnapshotter(ABC):
    """A snapshotter whose snapshots are directories below one root."""

    #: What the configuration calls it.
    name = ""

    def __init__(self, root: str, database: Database) -> None:
        self.root = root
        self.lock_path = os.path.join(root, "lock")
        self._database = database

    # ---------------------------------------------------------------- for implementations

    @abstractmethod
    def _fill(self, directory: str, kind: Kind, parents: Sequence[str]) -> None:
        """Make what a new snapshot needs inside ``directory``; ``parents`` are directories, nearest first."""

    @staticmethod
    def is_volatile(info: SnapshotInfo) -> bool:
        """Whether a snapshot's changes need not outlive a power failure."""
        return _VOLATILE_LABEL in info.labels

    @abstractmethod
    def _mounts(self, info: SnapshotInfo, parents: Sequence[str]) -> list[Mount]:
        """The mounts of an active snapshot or view; ``parents`` are directories, nearest first."""

    # ---------------------------------------------------------------- making

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        lease: Holder | None = None,
        labels: Mapping[str, str] | None = None,
        volatile: bool = False,
    ) -> list[Mount]:
        """See :meth:`Snapshotter.prepare`."""
        mark = {_VOLATILE_LABEL: "1"} if volatile else {}
        return self._make(key, "active", parent, lease, {**(labels or {}), **mark})

    def view(
        self, key: str, parent: str = "", *, lease: Holder | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """See :meth:`Snapshotter.view`."""
        return self._make(key, "view", parent, lease, labels or {})

    def overlay_on(self, key: str, lowerdir: str, *, lease: Holder | None = None) -> list[Mount]:
        """See :meth:`Snapshotter.overlay_on`."""
        lowerdir = os.path.realpath(lowerdir)
        if not os.path.isdir(lowerdir):
            raise InvalidInput(f'"{lowerdir}" is not a directory', field="rootfs")
        return self._make(key, "active", "", lease, {_LOWER_LABEL: lowerdir, _VOLATILE_LABEL: "1"})

    def stage(self, lease: Holder | None = None) -> Stage:
        """Make a directory for a layer whose parent is not there yet."""
        key = "staging-" + secrets.token_hex(12)
        if lease is not None:
            lease.add_snapshot(key)
        with locked(self.lock_path, fcntl.LOCK_SH):
            directory = self._new_directory()
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._fill(directory, "staging", [])
                self._insert(key, "staging", "", directory, {})
            except BaseException:
                os.close(lock)
                remove_tree(directory)
                raise
        return Stage(key, directory, lock)

    def _make(self, key: str, kind: Kind, parent: str, lease: Holder | None, labels: Mapping[str, str]) -> list[Mount]:
        if not key:
            raise InvalidInput("is empty", field="snapshot key")
        if lease is not None:
            lease.add_snapshot(key)
        parents = self.parent_directories(parent)
        with locked(self.lock_path, fcntl.LOCK_SH):
            directory = self._new_directory()
            try:
                self._fill(directory, kind, [labels[_LOWER_LABEL]] if _LOWER_LABEL in labels else parents)
                self._insert(key, kind, parent, directory, labels)
            except BaseException:
                remove_tree(directory)
                raise
        return self.mounts(key)

    def _new_directory(self) -> str:
        # Short, because an overlay of many layers names them all.
        while True:
            directory = os.path.join(self.root, secrets.token_hex(5))
            try:
                # Searchable: a pod's user namespace has another root, which must get through.
                os.mkdir(directory, 0o711)
                # An overlay's own label does not do: mprotect(2) asks for that of the layer's file.
                selinux.share(directory)
            except FileExistsError:
                continue
            except OSError as error:
                raise StageFailed("make snapshot", error) from error
            return directory

    def _insert(self, key: str, kind: Kind, parent: str, directory: str, labels: Mapping[str, str]) -> None:
        try:
            with self._database.transaction() as connection:
                if parent:
                    self._require_committed(connection, parent)
                connection.execute(
                    "INSERT INTO snapshots (key, kind, parent, directory, labels, created_at) VALUES (?,?,?,?,?,?)",
                    (key, kind, parent, os.path.basename(directory), json.dumps(dict(labels)), time.time_ns()),
                )
        except sqlite3.IntegrityError:
            raise AlreadyExists(f'snapshot "{key}": exists') from None

    @staticmethod
    def _require_committed(connection: sqlite3.Connection, parent: str) -> None:
        row = connection.execute("SELECT kind FROM snapshots WHERE key=?", (parent,)).fetchone()
        if row is None:
            raise NotFound(f'snapshot "{parent}": not in the store')
        if row[0] != "committed":
            raise WrongState(f'snapshot "{parent}": is {row[0]}, and only a committed one can be a parent')

    # ---------------------------------------------------------------- committing

    def commit(self, name: str, key: str) -> None:
        """See :meth:`Snapshotter.commit`."""
        info = self.stat(key)
        if info.kind != "active":
            raise WrongState(f'snapshot "{key}": is {info.kind}, not active')
        if _LOWER_LABEL in info.labels:
            raise WrongState(f'snapshot "{key}": is over a directory of the machine, so no layer')
        self.commit_all([(name, key, info.parent)])

    def commit_all(self, rows: Sequence[tuple[str, str, str]], usages: Mapping[str, Usage] | None = None) -> None:
        """Commit several snapshots at once: ``(name, key, parent)``, parents first. Their files are synced before.

        Raises:
            AlreadyExists: Another process was faster with one of the names; nothing is committed.
        """
        measured = {key: (usages or {}).get(key) or self.usage(key) for _, key, _ in rows}
        self.sync()
        try:
            with self._database.transaction(durable=True) as connection:
                for name, key, parent in rows:
                    if parent:
                        self._require_committed(connection, parent)
                    usage = measured[key]
                    changed = connection.execute(
                        "UPDATE snapshots SET key=?, kind='committed', parent=?, bytes=?, inodes=? "
                        "WHERE key=? AND kind IN ('active', 'staging')",
                        (name, parent, usage.bytes, usage.inodes, key),
                    ).rowcount
                    if not changed:
                        raise NotFound(f'snapshot "{key}": not in the store')
        except sqlite3.IntegrityError:
            raise AlreadyExists(f'snapshot "{rows[-1][0]}": exists') from None

    def sync(self) -> None:
        """Bring the snapshots' files to disk: one call for all, where one for each file would take minutes."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if libc.syncfs(fd) != 0:
                raise StageFailed("sync snapshots", OSError(errno.EIO, "syncfs failed", self.root))
        finally:
            os.close(fd)

    # ---------------------------------------------------------------- looking

    def stat(self, key: str) -> SnapshotInfo:
        """See :meth:`Snapshotter.stat`."""
        row = self._database.row(f"SELECT {_COLUMNS} FROM snapshots WHERE key=?", (key,))
        if row is None:
            raise NotFound(f'snapshot "{key}": not in the store')
        return self._info(row)

    def exists(self, key: str) -> bool:
        """Whether there is a snapshot of that key."""
        return self._database.row("SELECT 1 FROM snapshots WHERE key=?", (key,)) is not None

    def _info(self, row: Sequence[object]) -> SnapshotInfo:
        key, kind, parent, labels, created_at, directory = row
        return SnapshotInfo(
            key=str(key),
            kind=kind,  # type: ignore[arg-type]  # the schema's CHECK
            parent=str(parent),
            labels=json.loads(str(labels)),
            created_at=int(str(created_at)),
            directory=os.path.join(self.root, str(directory)),
        )

    def walk(self) -> list[SnapshotInfo]:
        """See :meth:`Snapshotter.walk`."""
        left = {
            row[0]: self._info(row)
            for row in self._database.rows(f"SELECT {_COLUMNS} FROM snapshots ORDER BY created_at, key")
        }
        ordered: list[SnapshotInfo] = []
        while left:
            key = next(iter(left))
            line: list[SnapshotInfo] = []
            while key in left:
                line.append(left.pop(key))
                key = line[-1].parent
            ordered += reversed(line)
        return ordered

    def mounts(self, key: str) -> list[Mount]:
        """See :meth:`Snapshotter.mounts`."""
        info = self.stat(key)
        if info.kind not in ("active", "view"):
            raise WrongState(f'snapshot "{key}": is {info.kind}; only an active one or a view is mounted')
        lower = info.labels.get(_LOWER_LABEL)
        return self._mounts(info, [lower] if lower else self.parent_directories(info.parent))

    def chain(self, key: str) -> list[SnapshotInfo]:
        """A snapshot and its parents, nearest first."""
        chain: list[SnapshotInfo] = []
        while key:
            chain.append(self.stat(key))
            key = chain[-1].parent
        return chain

    def parent_directories(self, parent: str) -> list[str]:
        """Where the files of ``parent`` and all below it lie, nearest first."""
        return [os.path.join(info.directory, "fs") for info in self.chain(parent)]

    def usage(self, key: str) -> Usage:
        """See :meth:`Snapshotter.usage`."""
        row = self._database.row("SELECT bytes, inodes FROM snapshots WHERE key=?", (key,))
        if row is None:
            raise NotFound(f'snapshot "{key}": not in the store')
        if row[0] >= 0:
            return Usage(row[0], row[1])
        try:
            return measure(os.path.join(self.stat(key).directory, "fs"))
        except FileNotFoundError:
            raise NotFound(f'snapshot "{key}": is being removed') from None

    # ---------------------------------------------------------------- removing

    def remove(self, key: str) -> None:
        """See :meth:`Snapshotter.remove`."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT directory FROM snapshots WHERE key=?", (key,)).fetchone()
            if row is None:
                raise NotFound(f'snapshot "{key}": not in the store')
            child = connection.execute("SELECT key FROM snapshots WHERE parent=? LIMIT 1", (key,)).fetchone()
            if child:
                raise WrongState(f'snapshot "{key}": is the parent of "{child[0]}"')
            connection.execute("DELETE FROM snapshots WHERE key=?", (key,))
        remove_tree(os.path.join(self.root, row[0]))

    def discard(self, key: str) -> None:
        """Remove a stage, its files before its row: on a full disk the database has no room before they are gone."""
        row = self._database.row("SELECT directory FROM snapshots WHERE key=? AND kind='staging'", (key,))
        if row is not None:
            remove_tree(os.path.join(self.root, row[0]))
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM snapshots WHERE key=? AND kind='staging'", (key,))

    def sweep(self, *, dry_run: bool = False) -> list[str]:
        """Remove what dead processes left: directories without a row, staging rows without a maker."""
        for key, directory in self._database.rows("SELECT key, directory FROM snapshots WHERE kind='staging'"):
            if not dry_run and is_free(os.path.join(self.root, directory)):
                self.discard(key)
        with locked(self.lock_path, fcntl.LOCK_EX):
            known = {row[0] for row in self._database.rows("SELECT directory FROM snapshots")}
            garbage = [os.path.join(self.root, n) for n in sorted(os.listdir(self.root)) if n not in known | {"lock"}]
        for directory in garbage:
            if not dry_run:
                remove_tree(directory)
        return garbage


def remove_tree(directory: str) -> None:
    """Remove a tree without following a link in it; one that is gone already is no error."""
    try:
        tree.remove(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise WrongState(f"snapshot directory {directory}: something is still mounted in it") from error
        raise StageFailed("remove snapshot", error) from error


def measure(root: str) -> Usage:
    """Disk blocks and inodes below ``root``, itself included; a file of several links counts once."""
    size = inodes = 0
    seen: set[tuple[int, int]] = set()
    for status in tree.statuses(root):
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
        inodes += 1
        size += status.st_blocks * 512
    return Usage(size, inodes)


def check_supported(mounts: Sequence[Mount], directory: str) -> None:
    """Try ``mounts`` out.

    Raises:
        Unsupported: The kernel or the file system of ``directory`` can't.
    """
    try:
        for mount in mounts:
            os.close(detached(mount))
    except OSError as error:
        raise Unsupported(f"overlayfs on {directory}: {error.strerror}") from error

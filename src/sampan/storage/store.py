"""The store: one directory, opened by any number of processes and threads at once.

::

    ROOT/                0700
      meta.db            what is there (see database.py for the commit rules)
      content/           blobs (content.py), 0700
      snapshots/         layers and containers' tops (snapshots/), 0700

These are written by this package alone; the engine and the network layer keep folders of their own beside them.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from sampan.errors import Exhausted, InvalidInput, SampanError, StageFailed, Unsupported
from sampan.storage.collect import GcReport, collect, drop_ingests, explain
from sampan.storage.content import Content
from sampan.storage.database import Database
from sampan.storage.images import Images
from sampan.storage.records import Events, Lease, Leases, Records
from sampan.storage.snapshots.base import DirectorySnapshotter
from sampan.storage.snapshots.native import NativeSnapshotter
from sampan.storage.snapshots.overlay import OverlaySnapshotter

if TYPE_CHECKING:
    import sqlite3
    from typing import Self

    from sampan.storage.check import Fetch, Problem
    from sampan.storage.worker import Launch

_DIRECTORIES = (
    ("", 0o700),
    ("content", 0o700),
    ("content/blobs", 0o700),
    ("content/blobs/sha256", 0o700),
    ("content/ingest", 0o700),
    # Not searchable: layers hold other systems' setuid programs, and /proc/mounts tells their paths (CVE-2021-41103).
    # Overlay mounts are made by a privileged process and need no way through here afterwards.
    ("snapshots", 0o700),
)
_CHOICE = "snapshotter"


class Store:
    """See the module.

    Args:
        root: The directory; made if it is not there.
        snapshotter: ``overlayfs``, ``native``, or empty for what the root was made with, or the best that works.
    """

    def __init__(self, root: str, *, snapshotter: str = "") -> None:
        self.root = os.path.abspath(root)
        try:
            for name, mode in _DIRECTORIES:
                _make_directory(os.path.join(self.root, name), mode)
        except OSError as error:
            raise StageFailed("open store", error, hint="run as root, or choose another root") from error
        path = os.path.join(self.root, "meta.db")
        _narrow(path)
        self.database = Database(path)
        self.content = Content(os.path.join(self.root, "content"), self.database)
        self.events = Events(self.database)
        self.snapshots = self._snapshotter(snapshotter)

    def _snapshotter(self, wanted: str) -> DirectorySnapshotter:
        root = os.path.join(self.root, "snapshots")
        made_with = os.path.join(self.root, _CHOICE)
        try:
            with open(made_with) as file:
                chosen = file.read().strip()
        except FileNotFoundError:
            chosen = ""
        name = chosen or wanted
        if name not in ("", "overlayfs", "native"):
            raise InvalidInput(f'"{name}" is neither overlayfs nor native', field="snapshotter")
        if chosen and wanted and chosen != wanted:
            raise InvalidInput(f"{self.root} was made with {chosen}", field="snapshotter", hint="use another root")
        if name != "native":
            overlay = OverlaySnapshotter(root, self.database, userxattr=_is_rootless())
            try:
                if not chosen:
                    overlay.check()
            except Unsupported:
                if name:
                    raise
                name = "native"
            else:
                name = "overlayfs"
        if not chosen:
            with open(made_with, "w") as file:
                file.write(name + "\n")
        return NativeSnapshotter(root, self.database) if name == "native" else overlay

    def images(self, namespace: str) -> Images:
        """The image names of a namespace."""
        return Images(self.database, _checked(namespace))

    def records(self, namespace: str, kind: str) -> Records:
        """The records of a kind in a namespace."""
        return Records(self.database, _checked(namespace), kind)

    def leases(self, namespace: str) -> Leases:
        """The leases of a namespace."""
        return Leases(self.database, _checked(namespace))

    def namespaces(self) -> list[str]:
        """The namespaces that have anything in them."""
        tables = " UNION ".join(f"SELECT namespace FROM {table}" for table in ("images", "records", "leases"))
        return [row[0] for row in self.database.rows(f"SELECT namespace FROM ({tables}) ORDER BY namespace")]

    def transaction(self, *, durable: bool = False) -> "AbstractContextManager[sqlite3.Connection]":
        """Group operations of the calling thread: all or none."""
        return self.database.transaction(durable=durable)

    def gc(self, *, dry_run: bool = False, grace: float = 60.0) -> GcReport:
        """Remove what nothing refers to; see :mod:`sampan.storage.collect`."""
        return collect(self, dry_run=dry_run, grace=grace)

    def explain(self, name: str) -> list[str]:
        """Why a blob (by digest) or a snapshot (by key) is kept: a line for each reason."""
        return explain(self, name)

    def fsck(
        self, *, repair: bool = False, fetch: "Fetch | None" = None, launch: "Launch | None" = None
    ) -> "list[Problem]":
        """Check every blob and layer; see :mod:`sampan.storage.check`."""
        from sampan.storage.check import check

        return check(self, repair=repair, fetch=fetch, launch=launch)

    @contextmanager
    def leased(self, namespace: str, seconds: float) -> "Iterator[Lease]":
        """A lease for one operation, released at its end.

        An operation that finds the disk full, or a bound exceeded, leaves nothing behind: partial downloads, which
        else stay to be resumed, and unfinished layers go first, so that the database has room for the rest.
        """
        lease = self.leases(namespace).create(expires_in=seconds)
        try:
            yield lease
        except Exhausted:
            self.relieve()
            lease.release()
            self._collect_if_possible()
            raise
        finally:
            try:
                lease.release()
            except Exhausted:
                self.relieve()
                lease.release()

    def relieve(self) -> None:
        """Make room on a full disk: remove partial downloads and layers that nobody is at."""
        drop_ingests(self, age=0)
        self.snapshots.sweep()

    def _collect_if_possible(self) -> None:
        try:
            self.gc()
        except (SampanError, OSError):
            pass  # it was a good turn; what is to be told is why the operation failed

    def release(self) -> None:
        """Give back what this thread holds of the database, until it uses the store again."""
        self.database.release()

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_rootless() -> bool:
    """Whether ``trusted.`` attributes are out of reach: no root, or a user namespace's (user_namespaces(7))."""
    if os.geteuid() != 0:
        return True
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _make_directory(path: str, mode: int) -> None:
    try:
        os.makedirs(path, mode=0o700)
    except FileExistsError:
        return
    os.chmod(path, mode)  # the umask has had its say


def _narrow(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def _checked(namespace: str) -> str:
    # containerd's rule: it ends up in paths and labels of other tools.
    if not namespace or len(namespace) > 76 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in namespace):
        raise InvalidInput(f'"{namespace[:80]}" is not letters, digits, ".", "_", "-"', field="namespace")
    return namespace

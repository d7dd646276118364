"""What a snapshotter does, whichever file system it uses; one suite of tests runs on all of them.

A snapshot is one directory tree on top of its parents'. Kinds:

- ``committed``: immutable; may be a parent. An unpacked layer is one, by the name of its chain id.
- ``active``: writable; a container's.
- ``view``: read-only use of a parent.
- ``staging``: a layer being applied apart from any parent; becomes ``committed`` when its parent is known.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from sampan.storage.content import Holder as ContentHolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sampan.storage.mount import Mount

Kind = Literal["active", "view", "committed", "staging"]


class Holder(ContentHolder, Protocol):
    """A lease."""

    def add_snapshot(self, key: str) -> None:
        """Keep this snapshot."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot itself takes on disk, without its parents."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What is known of a snapshot. ``created_at`` in nanoseconds since the epoch."""

    key: str
    kind: Kind
    parent: str
    labels: dict[str, str]
    created_at: int
    directory: str


class Snapshotter(Protocol):
    """The operations. Keys and names share one space; those taken raise AlreadyExists, unknown ones NotFound."""

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        lease: Holder | None = None,
        labels: "Mapping[str, str] | None" = None,
        volatile: bool = False,
    ) -> "list[Mount]":
        """Make a writable snapshot on a committed parent, or on nothing; returns its mounts.

        ``volatile``: after a power failure nobody asks for its changes, as with a pod's containers. Nothing in it is
        then ever synced, which spares the wait for the disk at each unmount.
        """

    def view(
        self,
        key: str,
        parent: str = "",
        *,
        lease: Holder | None = None,
        labels: "Mapping[str, str] | None" = None,
    ) -> "list[Mount]":
        """Make a read-only snapshot of a committed parent; returns its mounts."""

    def commit(self, name: str, key: str) -> None:
        """Turn the active snapshot ``key`` into the committed ``name``; its changes must be complete."""

    def mounts(self, key: str) -> "list[Mount]":
        """What to mount to see an active snapshot or a view."""

    def usage(self, key: str) -> Usage:
        """Measure a snapshot; of a committed one from the record."""

    def stat(self, key: str) -> SnapshotInfo:
        """What is known of a snapshot."""

    def walk(self) -> list[SnapshotInfo]:
        """All snapshots, parents before children."""

    def remove(self, key: str) -> None:
        """Remove a snapshot that nobody has as its parent (WrongState otherwise). It must not be mounted."""

    def overlay_on(self, key: str, lowerdir: str, *, lease: Holder | None = None) -> "list[Mount]":
        """Make a writable throw-away snapshot over any directory of the machine; returns its mounts."""

"""Collecting garbage by reference, and saying why a thing is kept.

Roots are image names, records (the engine's pods and containers) and leases that have not expired. From a root on:
an index keeps the manifests that are stored, a manifest its config and layers, a config the snapshots of its chain
ids, a snapshot its parent. Which of these a blob is, the descriptor that leads to it says. What no root leads to goes;
so does what lies on disk without a row, left by a process that was killed.

Marking and the deletion of rows are one transaction. Files go after it; blobs' under the content lock, so that none
goes that is being written anew at that moment.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from sampan.errors import NotFound, SampanError
from sampan.spec.image import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    chain_ids,
    decode_config,
    decode_manifest,
)
from sampan.storage.content import locked
from sampan.storage.snapshots.base import remove_tree

if TYPE_CHECKING:
    from sampan.storage.store import Store

_CONTENT, _SNAPSHOT = "content", "snapshot"
#: Active snapshots this young are let be: whoever made one is about to write the record that keeps it.
_GRACE_SECONDS = 60.0
_INGEST_SECONDS = 24 * 3600.0

#: A kind, a digest or key, and the media type that whoever refers to content claims for it. What content refers to
#: depends on that claim, and another image may claim what it likes, so that each claim is followed for itself.
_Node = tuple[str, str, str]


@dataclass(slots=True)
class GcReport:
    """What went, or would go: digests, snapshot keys, abandoned downloads, and the bytes of the blobs."""

    content: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    ingests: list[str] = field(default_factory=list)
    bytes: int = 0


class _Graph:
    """What refers to what, as read from the database and from manifests."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        rows = store.database.rows
        self.blobs: dict[str, tuple[int, str]] = {
            row[0]: (row[1], row[2]) for row in rows("SELECT digest, size, media_type FROM blobs")
        }
        self.snapshots = {info.key: info for info in store.snapshots.walk()}
        self._children: dict[_Node, list[_Node]] = {}

    def roots(self) -> Iterator[tuple[str, _Node]]:
        """Each root's description, and what it keeps directly."""
        rows = self._store.database.rows
        for namespace, name, target in rows("SELECT namespace, name, target FROM images ORDER BY namespace, name"):
            descriptor = msgspec.json.decode(target, type=Descriptor)
            yield f'image "{name}" in namespace {namespace}', (_CONTENT, descriptor.digest, descriptor.media_type)
        live = {(r[0], r[1]) for r in rows("SELECT namespace, id FROM leases WHERE expires_at>?", (time.time_ns(),))}
        for namespace, kind, owner, target_kind, target in rows("SELECT * FROM refs ORDER BY namespace, owner"):
            if kind != "lease" or (namespace, owner) in live:
                yield f'{kind} "{owner}" in namespace {namespace}', (target_kind, target, "")

    def children(self, node: _Node) -> list[_Node]:
        """What ``node`` keeps."""
        if node not in self._children:
            kind, name, media_type = node
            if kind == _SNAPSHOT:
                info = self.snapshots.get(name)
                self._children[node] = [(_SNAPSHOT, info.parent, "")] if info and info.parent else []
            else:
                self._children[node] = self._of_content(name, media_type)
        return self._children[node]

    def _of_content(self, digest: str, claim: str) -> list[_Node]:
        if digest not in self.blobs:
            return []
        media_type = claim or self.blobs[digest][1]
        try:
            if media_type in MANIFEST_TYPES | INDEX_TYPES:
                return self._of_manifest(digest, media_type)
            if media_type in CONFIG_TYPES:
                config = decode_config(self._store.content.read(digest))
                return [(_SNAPSHOT, name, "") for name in reversed(chain_ids(config.rootfs.diff_ids))]
        except SampanError:
            pass  # damaged: it keeps itself, and fsck tells of it
        return []

    def _of_manifest(self, digest: str, media_type: str) -> list[_Node]:
        document = decode_manifest(self._store.content.read(digest), media_type)
        below = document.manifests if isinstance(document, Index) else (document.config, *document.layers)
        return [(_CONTENT, descriptor.digest, descriptor.media_type) for descriptor in below]

    def exists(self, kind: str, name: str) -> bool:
        """Whether it is stored."""
        return name in (self.snapshots if kind == _SNAPSHOT else self.blobs)

    def reach(self, start: _Node) -> dict[_Node, _Node | None]:
        """Everything that ``start`` leads to, each with what led to it."""
        found: dict[_Node, _Node | None] = {start: None}
        pending = [start]
        while pending:
            node = pending.pop()
            for child in self.children(node):
                if child not in found:
                    found[child] = node
                    pending.append(child)
        return found


def collect(store: "Store", *, dry_run: bool = False, grace: float = _GRACE_SECONDS) -> GcReport:
    """Remove what nothing refers to.

    Args:
        store: The store.
        dry_run: Only tell.
        grace: Seconds for which a new active snapshot is let be.
    """
    report = GcReport(ingests=drop_ingests(store, dry_run=dry_run))
    if not dry_run:
        # First, for it needs no room on a full disk, and the transaction below does.
        store.snapshots.sweep()
    directories: list[str] = []
    with locked(store.content.lock_path, fcntl.LOCK_EX):
        with store.database.transaction(durable=True) as connection:
            graph = _Graph(store)
            reached: set[_Node] = set()
            for _, node in graph.roots():
                if node not in reached:
                    reached |= graph.reach(node).keys()
            reached |= _young(graph, grace)
            kept = {(kind, name) for kind, name, _ in reached}
            going = {digest: row[0] for digest, row in graph.blobs.items() if (_CONTENT, digest) not in kept}
            going |= store.content.strays()
            report.content, report.bytes = sorted(going), sum(going.values())
            report.snapshots = [
                key for key, info in graph.snapshots.items() if info.kind != "staging" and (_SNAPSHOT, key) not in kept
            ]
            if not dry_run:
                directories = [graph.snapshots[key].directory for key in report.snapshots]
                connection.executemany("DELETE FROM blobs WHERE digest=?", [(d,) for d in report.content])
                connection.executemany("DELETE FROM snapshots WHERE key=?", [(k,) for k in report.snapshots])
                connection.execute(
                    "DELETE FROM refs WHERE owner_kind='lease' AND NOT EXISTS (SELECT 1 FROM leases l WHERE "
                    "l.namespace=refs.namespace AND l.id=refs.owner AND l.expires_at>?)",
                    (time.time_ns(),),
                )
                connection.execute("DELETE FROM leases WHERE expires_at<=?", (time.time_ns(),))
        if not dry_run:
            for digest in report.content:
                _unlink(store.content.path(digest))
    for directory in directories:
        remove_tree(directory)
    return report


def _young(graph: _Graph, grace: float) -> set[_Node]:
    """New active snapshots and views, with their parents."""
    since = time.time_ns() - int(grace * 1e9)
    young: set[_Node] = set()
    for key, info in graph.snapshots.items():
        if info.kind in ("active", "view") and info.created_at > since:
            young |= graph.reach((_SNAPSHOT, key, "")).keys()
    return young


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def drop_ingests(store: "Store", *, age: float = _INGEST_SECONDS, dry_run: bool = False) -> list[str]:
    """Remove downloads that nobody is at, and that nobody went on with for so many seconds: a day."""
    old = []
    for name in sorted(os.listdir(store.content.ingest_directory)):
        path = os.path.join(store.content.ingest_directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(fd).st_mtime >= age:
                old.append(name)
                if not dry_run:
                    _unlink(path)
        except BlockingIOError:
            continue  # being written
        finally:
            os.close(fd)
    return old


def explain(store: "Store", name: str) -> list[str]:
    """Why a blob or a snapshot is kept: a line for each root that leads to it, with the way.

    Raises:
        NotFound: There is no such blob or snapshot.
    """
    with store.database.transaction():
        graph = _Graph(store)
        wanted = [kind for kind in (_CONTENT, _SNAPSHOT) if graph.exists(kind, name)]
        if not wanted:
            raise NotFound(f'"{name}": neither content nor a snapshot of that name is in the store')
        lines: list[str] = []
        for root, start in graph.roots():
            found = graph.reach(start)
            # One way of several will do, whatever each claims the content to be.
            ends = {node[0]: node for node in found if node[1] == name}
            lines += [f"{kind} {name} is kept by {root}: {_way(found, ends[kind])}" for kind in wanted if kind in ends]
    return lines or [f"{kind} {name} is kept by nothing: the next collection removes it" for kind in wanted]


def _way(found: dict[_Node, _Node | None], node: _Node) -> str:
    way: list[str] = []
    step: _Node | None = node
    while step is not None:
        way.append(f"{step[0]} {step[1]}")
        step = found[step]
    return " -> ".join(reversed(way))

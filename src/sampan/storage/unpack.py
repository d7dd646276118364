"""From an image's layers to snapshots: each layer applied in a process of its own, several at once.

On overlayfs a layer is applied apart from its parents, while it is downloaded if need be; when all are done they are
made to fit on each other (chain.py), synced with one call, and committed in one transaction, each by the name of its
chain id. A layer that can't be understood without its parents is applied again on top of them, and so is every layer
with a snapshotter that copies.

Until :meth:`Unpacker.finish` returns, nothing is visible; if it doesn't, nothing stays.
"""

import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from sampan.errors import AlreadyExists, Corrupt, SampanError, Unsupported
from sampan.image.apply import Applied, NeedsParent
from sampan.image.worker import read_lists
from sampan.spec.image import (
    FOREIGN_LAYER_TYPES,
    LAYER_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Platform,
    chain_ids,
    decode_config,
    decode_manifest,
    select_platform,
)
from sampan.storage.chain import adopt_attributes, drop_idle_whiteouts, refuse_symlinks, set_opaque
from sampan.storage.ingest import Writer
from sampan.storage.mount import detached
from sampan.storage.snapshots.base import Stage
from sampan.storage.snapshots.interface import Holder, Usage
from sampan.storage.store import Store
from sampan.storage.worker import Launch, Nursery, Worker

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

_WORKER_MODULE = "sampan.image.worker"
_WORKER = f"{_WORKER_MODULE}:main"
_HARDENED = ["nodev", "nosuid", "noexec"]


def nursery() -> Nursery:
    """What workers that apply layers are started by, spawned when the first one is; the caller closes it."""
    return Nursery(_WORKER_MODULE)


def snapshot_name(config: ImageConfig) -> str:
    """The name of an image's topmost layer: its last chain id; empty for an image without layers."""
    chain = chain_ids(config.rootfs.diff_ids)
    return chain[-1] if chain else ""


def unpacked(store: Store, config: ImageConfig) -> bool:
    """Whether an image's layers are there as snapshots."""
    name = snapshot_name(config)
    return not name or store.snapshots.exists(name)


def unpack(
    store: Store,
    target: Descriptor,
    platform: Platform | None = None,
    *,
    lease: Holder | None = None,
    launch: Launch | None = None,
) -> str:
    """Unpack a stored image.

    Args:
        store: Where it is, and goes.
        target: Its manifest, or an index.
        platform: Which of an index; this machine's by default.
        lease: Keeps the snapshots.
        launch: Starts workers, in place of a nursery.

    Returns:
        The topmost snapshot's name, to be a container's parent.
    """
    document = decode_manifest(store.content.read(target), target.media_type)
    for _ in range(4):
        if not isinstance(document, Index):
            break
        chosen = select_platform(document, platform)
        document = decode_manifest(store.content.read(chosen), chosen.media_type)
    if isinstance(document, Index):
        raise Corrupt(f"image {target.digest}: indexes in indexes without an end")
    config = decode_config(store.content.read(document.config))
    with Unpacker(store, config, document.layers, lease=lease, launch=launch) as unpacker:
        return unpacker.finish()


class _Job:
    """A layer being applied to a stage."""

    def __init__(self, store: Store, data: int, news: int | None, launch: Launch, lease: Holder | None) -> None:
        self.stage: Stage | None = store.snapshots.stage(lease)
        #: Whether it read the layer while that was downloaded, before its digest was known to be right.
        self.followed = news is not None
        self._lists = os.memfd_create("layer-lists", os.MFD_CLOEXEC)
        self._worker: Worker | None = None
        mount: Mount = {"type": "bind", "source": self.stage.files, "options": _HARDENED}
        try:
            self._worker = _launch(launch, mount, data, self._lists, news, merged=False)
        except BaseException:
            self.close(store)
            raise

    def wait(self) -> tuple[dict[str, object], Applied]:
        """The worker's result, and its lists of paths."""
        assert self._worker is not None
        result = self._worker.result()
        if not isinstance(result, dict):
            raise Corrupt("layer: its worker's answer makes no sense")
        if "needs_parent" in result:
            raise NeedsParent(str(result["needs_parent"]))
        return result, read_lists(self._lists)

    def close(self, store: Store) -> None:
        """End the worker, and remove the stage unless :meth:`keep` was called."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        if self._lists >= 0:
            os.close(self._lists)
            self._lists = -1
        stage, self.stage = self.stage, None
        if stage is not None:
            try:
                store.snapshots.discard(stage.key)
            finally:
                stage.close()


def _launch(launch: Launch, mount: "Mount", data: int, lists: int, news: int | None, *, merged: bool) -> Worker:
    root = detached(mount)
    try:
        argument: dict[str, object] = {"merged": merged, "arriving": news is not None, "confine": os.geteuid() == 0}
        return launch(_WORKER, argument, [root, data, lists, *([] if news is None else [news])])
    finally:
        os.close(root)


class Unpacker:
    """Unpacks one image; see the module. Not for use by several threads at once.

    Args:
        store: Where to.
        config: The image's configuration.
        layers: The manifest's layers, lowest first.
        lease: Keeps what is made.
        launch: Starts workers, in place of a nursery.
        parallel: How many workers at once, of those that aren't waiting for a download.
    """

    def __init__(
        self,
        store: Store,
        config: ImageConfig,
        layers: Sequence[Descriptor],
        *,
        lease: Holder | None = None,
        launch: Launch | None = None,
        parallel: int = 0,
    ) -> None:
        diff_ids = config.rootfs.diff_ids
        if len(layers) != len(diff_ids):
            raise Corrupt(f"image: its manifest has {len(layers)} layers, its config {len(diff_ids)} diff IDs")
        self._store = store
        self._layers = layers
        self._diff_ids = diff_ids
        self._chain = chain_ids(diff_ids)
        self._lease = lease
        self._nursery = nursery()
        self._launch = launch or self._nursery.launch
        self._parallel = parallel or min(8, len(os.sched_getaffinity(0)))
        self._jobs: dict[int, _Job] = {}
        self._apart = store.snapshots.name == "overlayfs"
        if lease is not None:
            for name in self._chain:
                lease.add_snapshot(name)
        #: Layers below this one are unpacked already.
        self._first = self._unpacked_already()
        for layer in layers[self._first :]:
            _check_type(layer)

    def _unpacked_already(self) -> int:
        for number in range(len(self._chain), 0, -1):
            if self._store.snapshots.exists(self._chain[number - 1]):
                return number
        return 0

    # ---------------------------------------------------------------- while downloading

    def follow(self, descriptor: Descriptor, writer: Writer) -> None:
        """Apply a layer while ``writer`` writes it; does nothing where that does not serve.

        Called again for a layer whose download starts over: what was applied of the earlier bytes goes.
        """
        if not self._apart:
            return
        for number in range(self._first, len(self._layers)):
            if self._layers[number].digest == descriptor.digest:
                if number in self._jobs:
                    self._jobs.pop(number).close(self._store)
                data, news = writer.follow()
                try:
                    self._jobs[number] = _Job(self._store, data, news, self._launch, self._lease)
                finally:
                    os.close(data)
                    os.close(news)

    # ---------------------------------------------------------------- at the end

    def finish(self) -> str:
        """Apply what was not followed, chain and commit all.

        Returns:
            The topmost snapshot's name; empty for an image without layers.

        Raises:
            NotFound: A layer is not in the store.
            Corrupt: A layer is not what its diff ID says, or is no proper archive.
        """
        ready: list[tuple[str, str, str]] = []
        usages: dict[str, Usage] = {}
        parents = self._store.snapshots.parent_directories(self._chain[self._first - 1] if self._first else "")
        for number in range(self._first, len(self._layers)):
            try:
                if not self._apart:
                    raise NeedsParent("this snapshotter copies")
                self._start_ahead(number)
                key, usage = self._await(number, parents)
            except NeedsParent:
                self._commit(ready, usages)
                ready = []
                self._apply_merged(number)
            else:
                ready.append((self._chain[number], key, self._chain[number - 1] if number else ""))
                usages[key] = usage
            parents = self._parents_now(number, ready, parents)
        self._commit(ready, usages)
        return self._chain[-1] if self._chain else ""

    def _parents_now(self, number: int, ready: list[tuple[str, str, str]], below: list[str]) -> list[str]:
        key = ready[-1][1] if ready else self._chain[number]
        return [os.path.join(self._store.snapshots.stat(key).directory, "fs"), *below]

    def _start_ahead(self, number: int) -> None:
        """Start this layer's worker, and those of the next layers, that may run beside it."""
        for ahead in range(number, min(number + self._parallel, len(self._layers))):
            if ahead not in self._jobs:
                with self._store.content.open(self._layers[ahead].digest) as file:
                    self._jobs[ahead] = _Job(self._store, file.fileno(), None, self._launch, self._lease)

    def _await(self, number: int, parents: list[str]) -> tuple[str, Usage]:
        job = self._jobs[number]
        try:
            result, applied = job.wait()
        except SampanError:
            if not job.followed:
                raise
            # The download that it followed broke off or brought bad bytes, and the store has the blob all the same.
            self._jobs.pop(number).close(self._store)
            self._start_ahead(number)
            job = self._jobs[number]
            result, applied = job.wait()
        self._check(number, result)
        stage = job.stage
        assert stage is not None
        refuse_symlinks(applied.presumed, parents)
        drop_idle_whiteouts(stage.files, applied.whiteouts, applied.opaque, parents)
        adopt_attributes(stage.files, applied.implied, applied.opaque, parents)
        set_opaque(stage.files, applied.opaque, userxattr=getattr(self._store.snapshots, "userxattr", False))
        return stage.key, _usage(result)

    def _check(self, number: int, result: dict[str, object]) -> None:
        if result["diff_id"] != self._diff_ids[number]:
            raise Corrupt(
                f"layer {self._layers[number].digest}: expands to {result['diff_id']}, "
                f"but the config says {self._diff_ids[number]}"
            )

    def _apply_merged(self, number: int) -> None:
        """Apply a layer on top of its committed parents."""
        snapshots = self._store.snapshots
        if number in self._jobs:
            self._jobs.pop(number).close(self._store)
        key = "unpack-" + secrets.token_hex(12)
        parent = self._chain[number - 1] if number else ""
        mount = snapshots.prepare(key, parent, lease=self._lease)[0]
        mount["options"] += _HARDENED
        lists = os.memfd_create("layer-lists", os.MFD_CLOEXEC)
        try:
            with self._store.content.open(self._layers[number].digest) as file:
                worker = _launch(self._launch, mount, file.fileno(), lists, None, merged=True)
            try:
                result = worker.result()
            finally:
                worker.close()
            if not isinstance(result, dict):
                raise Corrupt("layer: its worker's answer makes no sense")
            self._check(number, result)
            self._commit([(self._chain[number], key, parent)], {})
        finally:
            os.close(lists)
            if snapshots.exists(key):
                snapshots.remove(key)

    def _commit(self, rows: list[tuple[str, str, str]], usages: dict[str, Usage]) -> None:
        if not rows:
            return
        snapshots = self._store.snapshots
        try:
            snapshots.commit_all(rows, usages)
        except AlreadyExists:
            # Another process unpacks an image of the same layers, and was faster with some.
            for row in rows:
                try:
                    snapshots.commit_all([row], usages)
                except AlreadyExists:
                    continue

    def apply_again(self, number: int) -> str:
        """Apply one layer, whether or not it is unpacked, and give the directory that holds it until :meth:`close`.

        Raises:
            NeedsParent: It can't be applied apart from its parents.
        """
        if not self._apart:
            raise NeedsParent("this snapshotter copies")
        self._parallel = 1
        self._start_ahead(number)
        below = self._chain[number - 1] if number else ""
        key, _ = self._await(number, self._store.snapshots.parent_directories(below))
        return self._store.snapshots.stat(key).directory

    # ---------------------------------------------------------------- ending

    def close(self) -> None:
        """End all workers and remove what was not committed; idempotent."""
        failure: BaseException | None = None
        while self._jobs:
            try:
                self._jobs.popitem()[1].close(self._store)
            except SampanError as error:
                failure = failure or error
        self._nursery.close()
        if failure:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _usage(result: dict[str, object]) -> Usage:
    return Usage(int(str(result["bytes"])), int(str(result["inodes"])))


def _check_type(layer: Descriptor) -> None:
    if layer.media_type in FOREIGN_LAYER_TYPES:
        raise Unsupported(f"layer {layer.digest}: foreign layers ({layer.media_type}) are not in registries")
    if layer.media_type not in LAYER_TYPES:
        raise Unsupported(f'layer {layer.digest}: unknown media type "{layer.media_type}"')

"""Pull: from an image's name to content, snapshots and one new entry among the names.

The order is what makes it safe: all content is fetched under a lease and checked by digest and size, layers are
applied beside, and the one thing that makes the image visible, its name, is written last. A pull that fails leaves no
name, and what it fetched is kept only for the next attempt (by the lease) or collected.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

import msgspec

from sampan.errors import Corrupt, SampanError
from sampan.image.model import Image, ImageIndex, at
from sampan.image.reference import Reference
from sampan.image.writing import side_by_side
from sampan.registry.blobs import Downloader, LocalFailure, Opened
from sampan.registry.credentials import Credentials
from sampan.registry.origins import remember_origin
from sampan.registry.progress import Callback, Reporter
from sampan.registry.repository import Repository
from sampan.registry.resolver import Resolver
from sampan.spec.image import (
    CONFIG_LIMIT,
    CONFIG_TYPES,
    FOREIGN_LAYER_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Platform,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.storage.records import Lease
    from sampan.storage.store import Store
    from sampan.storage.worker import Launch

#: What an interrupted pull fetched is kept this long for the next attempt.
_LEASE_SECONDS = 24 * 3600


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was pulled."""

    #: Canonical name it has in the namespace.
    name: str
    #: What the name leads to: an index, or the manifest itself.
    target: Descriptor
    #: Manifest for the platform.
    manifest: Descriptor
    #: Digest of the configuration: the image's id.
    config: str
    #: Snapshot of all its layers; empty where it was not unpacked.
    snapshot: str
    #: Bytes of the configuration and the layers.
    size: int


class _Flights:
    """One pull of a manifest at a time in this process: the second one finds the first one's work done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, key: str) -> "Iterator[None]":
        with self._lock:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)


_flights = _Flights()


def pull(
    store: "Store",
    namespace: str,
    reference: str,
    resolver: Resolver,
    *,
    platform: str | Platform | None = None,
    credentials: Credentials | None = None,
    progress: Callback | None = None,
    unpack: bool = True,
    labels: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    launch: "Launch | None" = None,
) -> Pulled:
    """Bring an image into a store.

    Args:
        store: Where to.
        namespace: Whose name the image becomes.
        reference: What a person calls the image.
        resolver: Hosts and credentials.
        platform: Which image of an index; this machine's by default.
        credentials: The caller's own, for the registry in the name.
        progress: Called with each :class:`~sampan.registry.progress.Event`, from several threads, one at a time.
        unpack: Whether to make snapshots of the layers.
        labels: Of the image's name.
        stop: Gives the pull up when set.
        launch: Starts the processes that apply layers, in place of spawning them.

    Raises:
        InvalidInput: The reference is malformed, or a configuration file is.
        NotFound: No host has it, or nothing for this platform.
        Unavailable, TimedOut, Unauthenticated, Denied, Corrupt: What went wrong at which host.
        Exhausted: The disk is full.
    """
    parsed = Reference.parse(reference)
    name = str(parsed.with_digest(parsed.digest)) if parsed.digest else str(parsed)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    reporter = Reporter(reference, progress)
    halt = stop or threading.Event()

    def retried(host: str, delay: float, error: SampanError) -> None:
        reporter.tell("retrying", host=host, message=f"{error.message}; again in {delay:.1f} s")

    repository = resolver.repository(parsed, credentials=credentials, notice=retried, stop=halt)
    reporter.tell("resolving")
    with store.leased(namespace, _LEASE_SECONDS) as lease:
        job = _Pull(store, namespace, repository, lease, reporter, resolver.limits.parallel, launch)
        target = repository.resolve()
        reporter.tell("resolved", digest=target.digest, total=target.size)
        try:
            pulled = job.run(name, target, wanted, unpack=unpack, labels=labels)
        except LocalFailure as failure:
            raise failure.cause from None
    reporter.tell("done", digest=target.digest, total=pulled.size)
    return pulled


class _Fetched:
    """A repository as a source of blobs (:class:`sampan.image.model.Blobs`) that stores each one that is read."""

    def __init__(self, store: "Store", repository: Repository, lease: "Lease", downloader: Downloader) -> None:
        self._content = store.content
        self._repository = repository
        self._lease = lease
        self._downloader = downloader

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        if target.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            if target.size > CONFIG_LIMIT:
                raise Corrupt(f"image config {target.digest}: says {target.size} bytes, too many")
            self._downloader.fetch(target)
            return self._content.read(target.digest, CONFIG_LIMIT)
        self._lease.add_content(target.digest)
        if self._content.exists(target.digest):
            return self._content.read(target.digest)
        data = self._repository.manifest(target)
        self._content.put(data, target.media_type, lease=self._lease)
        return data

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        self._downloader.fetch(target)
        return self._content.open(target.digest)


class _Pull:
    def __init__(
        self,
        store: "Store",
        namespace: str,
        repository: Repository,
        lease: "Lease",
        reporter: Reporter,
        parallel: int,
        launch: "Launch | None",
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._repository = repository
        self._lease = lease
        self._reporter = reporter
        self._parallel = parallel
        self._launch = launch
        self._downloader = Downloader(store, repository, lease, reporter)

    def run(
        self,
        name: str,
        target: Descriptor,
        platform: Platform | None,
        *,
        unpack: bool,
        labels: Mapping[str, str] | None,
    ) -> Pulled:
        with _flights.alone(f"{self._store.root} {target.digest} {platform}"):
            found = at(_Fetched(self._store, self._repository, self._lease, self._downloader), target)
            image = found.select(platform) if isinstance(found, ImageIndex) else found
            snapshot = self._content(image, unpack=unpack)
            blobs = _distinct((image.manifest.config, *image.manifest.layers))
            with self._store.transaction():
                remember_origin(self._store, self._repository.reference, blobs)
                self._store.images(self._namespace).put(name, target, labels)
        return Pulled(
            name=name,
            target=target,
            manifest=image.descriptor,
            config=image.id,
            snapshot=snapshot,
            size=sum(blob.size for blob in blobs),
        )

    def _content(self, image: Image, *, unpack: bool) -> str:
        """Fetch configuration and layers, and unpack them where they are an image's; the snapshot's name."""
        config, layers = image.manifest.config, _distinct(image.manifest.layers)
        for layer in layers:
            if layer.media_type in FOREIGN_LAYER_TYPES:
                raise Corrupt(f"layer {layer.digest}: {layer.media_type}: foreign layers are not in the registry")
        if config.media_type in CONFIG_TYPES and unpack:
            return self._unpack(image, layers)
        self._download([*layers, *([config] if config.size else [])])
        return ""

    def _unpack(self, image: Image, layers: Sequence[Descriptor]) -> str:
        from sampan.storage.unpack import Unpacker, snapshot_name, unpacked

        if unpacked(self._store, image.config):
            self._download(layers)
            name = snapshot_name(image.config)
            self._lease.add_snapshot(name)
            return name
        listed = image.manifest.layers
        with Unpacker(self._store, image.config, listed, lease=self._lease, launch=self._launch) as unpacker:
            self._download(layers, unpacker.follow)
            self._reporter.tell("unpacking", digest=image.id)
            name = unpacker.finish()
        self._reporter.tell("unpacked", digest=image.id)
        return name

    def _download(self, blobs: Sequence[Descriptor], opened: Opened | None = None) -> None:
        """Fetch blobs side by side; the first that fails stops the others."""
        jobs = [partial(self._downloader.fetch, blob, opened) for blob in blobs]
        side_by_side(jobs, self._parallel, self._repository.stop)


def _distinct(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    """Each digest once, in order."""
    return list({blob.digest: blob for blob in blobs}.values())

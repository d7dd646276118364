"""Pull: from an image's name to content, snapshots and one new entry among the names.

The order is what makes it safe: all content is fetched under a lease and checked by digest and size, layers are
applied beside, and the one thing that makes the image visible, its name, is written last. A pull that fails leaves no
name, and what it fetched is kept only for the next attempt (by the lease) or collected.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sampan.errors import Corrupt, SampanError
from sampan.image.reference import Reference
from sampan.registry.blobs import Downloader, LocalFailure, Opened
from sampan.registry.credentials import Credentials
from sampan.registry.progress import Callback, Reporter
from sampan.registry.repository import Repository
from sampan.registry.resolver import Resolver
from sampan.registry.transport import Cancelled
from sampan.spec.image import (
    CONFIG_LIMIT,
    CONFIG_TYPES,
    FOREIGN_LAYER_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    select_platform,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.storage.records import Lease
    from sampan.storage.store import Store
    from sampan.storage.worker import Launch

#: What an interrupted pull fetched is kept this long for the next attempt.
_LEASE_SECONDS = 24 * 3600
#: An index in an index is allowed by the specification; one in that is a loop or a bad joke.
_DEPTH_LIMIT = 3
#: containerd's label: which repositories of a registry have a blob, for cross-repository mounts at a push.
SOURCE_LABEL = "containerd.io/distribution.source."
_SOURCES_LIMIT = 8


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


class _Found(NamedTuple):
    descriptor: Descriptor
    manifest: Manifest


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
            found = self._find_manifest(target, platform)
            manifest = found.manifest
            snapshot = self._content(manifest, unpack=unpack)
            blobs = _distinct((manifest.config, *manifest.layers))
            with self._store.transaction():
                remember_source(self._store, self._repository.reference, blobs)
                self._store.images(self._namespace).put(name, target, labels)
        return Pulled(
            name=name,
            target=target,
            manifest=found.descriptor,
            config=manifest.config.digest,
            snapshot=snapshot,
            size=sum(blob.size for blob in blobs),
        )

    def _find_manifest(self, target: Descriptor, platform: Platform | None) -> _Found:
        """Follow indexes to the platform's manifest, storing each document on the way."""
        descriptor = target
        for _ in range(_DEPTH_LIMIT):
            document = decode_manifest(self._document(descriptor), descriptor.media_type)
            if not isinstance(document, Index):
                return _Found(descriptor, document)
            descriptor = select_platform(document, platform)
        raise Corrupt(f"{self._repository.reference}: indexes are nested more than {_DEPTH_LIMIT} deep")

    def _document(self, descriptor: Descriptor) -> bytes:
        content = self._store.content
        self._lease.add_content(descriptor.digest)
        if content.exists(descriptor.digest):
            return content.read(descriptor.digest)
        data = self._repository.manifest(descriptor)
        content.put(data, descriptor.media_type, lease=self._lease)
        return data

    def _content(self, manifest: Manifest, *, unpack: bool) -> str:
        """Fetch configuration and layers, and unpack them where they are an image's; the snapshot's name."""
        layers = _distinct(manifest.layers)
        for layer in layers:
            if layer.media_type in FOREIGN_LAYER_TYPES:
                raise Corrupt(f"layer {layer.digest}: {layer.media_type}: foreign layers are not in the registry")
        if manifest.config.media_type not in CONFIG_TYPES or not unpack:
            self._download([*layers, *([manifest.config] if manifest.config.size else [])])
            return ""
        if manifest.config.size > CONFIG_LIMIT:
            raise Corrupt(f"image config {manifest.config.digest}: says {manifest.config.size} bytes, too many")
        self._downloader.fetch(manifest.config)
        config = decode_config(self._store.content.read(manifest.config.digest, CONFIG_LIMIT))
        return self._unpack(manifest, layers, config)

    def _unpack(self, manifest: Manifest, layers: Sequence[Descriptor], config: ImageConfig) -> str:
        from sampan.storage.unpack import Unpacker, snapshot_name, unpacked

        if unpacked(self._store, config):
            self._download(layers)
            name = snapshot_name(config)
            self._lease.add_snapshot(name)
            return name
        with Unpacker(self._store, config, manifest.layers, lease=self._lease, launch=self._launch) as unpacker:
            self._download(layers, unpacker.follow)
            self._reporter.tell("unpacking", digest=manifest.config.digest)
            name = unpacker.finish()
        self._reporter.tell("unpacked", digest=manifest.config.digest)
        return name

    def _download(self, blobs: Sequence[Descriptor], opened: Opened | None = None) -> None:
        """Fetch blobs side by side; the first that fails stops the others."""
        if not blobs:
            return
        stop = self._repository.stop
        failure: BaseException | None = None
        with (
            ThreadPoolExecutor(min(self._parallel, len(blobs)), thread_name_prefix="pull") as pool,
            ExitStack() as stack,
        ):
            # An interrupt of this thread must stop the others too, or leaving the pool would wait for them.
            stack.callback(_stop_unless_done, stop, futures := [pool.submit(self._one, b, opened) for b in blobs])
            for future in futures:
                error = future.exception()
                if error and (failure is None or isinstance(failure, Cancelled)):
                    failure = error
        if failure:
            raise failure

    def _one(self, blob: Descriptor, opened: Opened | None) -> None:
        try:
            self._downloader.fetch(blob, opened)
        except BaseException:
            self._repository.stop.set()
            raise


def remember_source(store: "Store", reference: Reference, blobs: Sequence[Descriptor]) -> None:
    """Note on blobs that a repository has them."""
    key = SOURCE_LABEL + reference.domain
    for blob in blobs:
        if not store.content.exists(blob.digest):
            continue
        known = [path for path in store.content.info(blob.digest).labels.get(key, "").split(",") if path]
        if reference.path not in known:
            store.content.label(blob.digest, {key: ",".join([reference.path, *known][:_SOURCES_LIMIT])})


def _stop_unless_done(stop: threading.Event, futures: Sequence[Future[None]]) -> None:
    if not all(future.done() for future in futures):
        stop.set()


def _distinct(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    """Each digest once, in order."""
    return list({blob.digest: blob for blob in blobs}.values())

"""Push: from the store to a registry. Content goes first, what names it last: a push that fails leaves no tag.

A blob that the repository has is not sent; one that another repository of the same registry is known to have is mounted
from there; else it is uploaded, whole or in chunks, and goes on where a connection breaks.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from sampan.errors import (
    Corrupt,
    Denied,
    InvalidInput,
    NotFound,
    SampanError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from sampan.image.reference import Reference
from sampan.registry.auth import scope
from sampan.registry.client import Client
from sampan.registry.credentials import Credentials
from sampan.registry.progress import Callback, Reporter
from sampan.registry.pulling import SOURCE_LABEL, remember_source
from sampan.registry.resolver import Resolver
from sampan.registry.transport import Answer, Cancelled, Watch
from sampan.spec.image import (
    FOREIGN_LAYER_TYPES,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode_manifest,
    select_platform,
)

if TYPE_CHECKING:
    from typing import BinaryIO

    from sampan.storage.store import Store

#: Larger blobs go in chunks of this size, so that a broken connection costs at most one.
CHUNK = 32 << 20
_PIECE = 1 << 20
_RESTARTS = 3
_FROM_ANOTHER = (NotFound, Denied, InvalidInput, Unsupported, Unauthenticated)


def push(
    store: "Store",
    namespace: str,
    name: str,
    resolver: Resolver,
    *,
    reference: str = "",
    platform: str | Platform | None = None,
    credentials: Credentials | None = None,
    progress: Callback | None = None,
    stop: threading.Event | None = None,
    chunk: int = CHUNK,
) -> Descriptor:
    """Send an image to a registry.

    Args:
        store: Where it is.
        namespace: Whose name it has.
        name: Its name.
        resolver: Hosts and credentials.
        reference: What to call it there; its name by default.
        platform: Send this one of an index alone; by default the whole index, which must be stored as a whole.
        credentials: The caller's own.
        progress: Called with each event.
        stop: Gives the push up when set.
        chunk: Most bytes of one upload request.

    Returns:
        What the name leads to at the registry.

    Raises:
        NotFound: There is no such image, or a part of it is not stored.
        Unavailable, TimedOut, Unauthenticated, Denied: What went wrong at the registry.
    """
    source = Reference.parse(name)
    target = Reference.parse(reference) if reference else source
    reporter = Reporter(str(target), progress)
    entry = store.images(namespace).get(str(source.with_digest(source.digest) if source.digest else source))
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    halt = stop or threading.Event()

    def retried(host: str, delay: float, error: SampanError) -> None:
        reporter.tell("retrying", host=host, message=f"{error.message}; again in {delay:.1f} s")

    repository = resolver.repository(target, credentials=credentials, notice=retried, stop=halt)
    job = Pusher(store, repository.pusher(), target, reporter, halt, chunk)
    sent = job.send(entry.target, wanted)
    reporter.tell("done", digest=sent.digest)
    return sent


class Pusher:
    """Sends one image to one host."""

    def __init__(
        self,
        store: "Store",
        client: Client,
        target: Reference,
        reporter: Reporter,
        stop: threading.Event,
        chunk: int = CHUNK,
    ) -> None:
        self._store = store
        self._client = client
        self._target = target
        self._reporter = reporter
        self._stop = stop
        self._chunk = chunk

    def send(self, target: Descriptor, platform: Platform | None) -> Descriptor:
        """Send all of an image, its name last."""
        documents: dict[str, tuple[Descriptor, bytes]] = {}
        blobs: dict[str, Descriptor] = {}
        root = self._gather(target, platform, documents, blobs)
        self._send_blobs(list(blobs.values()))
        with self._store.transaction():
            remember_source(self._store, self._target, list(blobs.values()))
        for descriptor, data in documents.values():
            by_name = descriptor == root
            name = self._target.target if by_name else descriptor.digest
            if by_name and self._target.digest and self._target.digest != root.digest:
                raise InvalidInput(f"the image has digest {root.digest}", field=f"reference {self._target}")
            self._client.push_manifest(name, data, descriptor.media_type)
        return root

    def _gather(
        self,
        descriptor: Descriptor,
        platform: Platform | None,
        documents: dict[str, tuple[Descriptor, bytes]],
        blobs: dict[str, Descriptor],
        depth: int = 0,
    ) -> Descriptor:
        """List what is to be sent, children before what speaks of them."""
        if depth > 3:
            raise Corrupt(f"{self._target}: indexes are nested more than 3 deep")
        data = self._read(descriptor)
        document = decode_manifest(data, descriptor.media_type)
        if isinstance(document, Index):
            if platform is not None:
                chosen = select_platform(document, platform)
                return self._gather(chosen, platform, documents, blobs, depth + 1)
            for child in document.manifests:
                if child.digest not in documents:  # an index may list one again and again
                    self._gather(child, None, documents, blobs, depth + 1)
        else:
            blobs.update(_blobs_of(document))
        documents[descriptor.digest] = (descriptor, data)
        return descriptor

    def _read(self, descriptor: Descriptor) -> bytes:
        try:
            return self._store.content.read(descriptor)
        except NotFound as error:
            raise NotFound(
                f"{self._target}: {error.message}",
                hint="only one platform of the index was pulled: push that one with --platform",
            ) from None

    def _send_blobs(self, blobs: Sequence[Descriptor]) -> None:
        if not blobs:
            return
        failure: BaseException | None = None
        workers = min(self._client.limits.parallel, len(blobs))
        with ThreadPoolExecutor(workers, thread_name_prefix="push") as pool:
            futures = [pool.submit(self._send_blob, blob) for blob in blobs]
            try:
                for future in futures:
                    error = future.exception()
                    if error and (failure is None or isinstance(failure, Cancelled)):
                        failure = error
            except BaseException:
                self._stop.set()
                raise
        if failure:
            raise failure

    def _send_blob(self, blob: Descriptor) -> None:
        try:
            self._place_blob(blob)
        except BaseException:
            self._stop.set()
            raise

    def _place_blob(self, blob: Descriptor) -> None:
        host = self._client.host.name
        known: dict[str, Any] = {"digest": blob.digest, "offset": blob.size, "total": blob.size, "host": host}
        if self._client.has_blob(blob.digest) in (blob.size, -1):
            self._reporter.tell("exists", **known)
            return
        uploader = Uploader(self._client, self._reporter, self._chunk)
        location = ""
        for source in self._sources(blob):
            location = uploader.mount(blob.digest, source)
            if not location:
                self._reporter.tell("mounted", **known)
                return
            break
        with self._store.content.open(blob.digest) as file:
            uploader.upload(blob, file, location)
        self._reporter.tell("uploaded", **known)

    def _sources(self, blob: Descriptor) -> list[str]:
        """Other repositories of the same registry that are known to have a blob."""
        labels = self._store.content.info(blob.digest).labels
        names = labels.get(SOURCE_LABEL + self._target.domain, "").split(",")
        return [name for name in names if name and name != self._target.path]


class Uploader:
    """Uploads blobs to one repository of one host."""

    def __init__(self, client: Client, reporter: Reporter, chunk: int = CHUNK) -> None:
        self._client = client
        self._reporter = reporter
        self._chunk = chunk

    def mount(self, digest: str, source: str) -> str:
        """Ask for a blob of another repository; the address of an upload where the host begins one instead."""
        watch = self._client.watch(self._client.limits.document)
        url = self._client.url("blobs/uploads/", {"mount": digest, "from": source})
        scopes = (scope(self._client.name, "pull,push"), scope(source, "pull"))
        try:
            answer = self._client.request("POST", url, ok=(201, 202), watch=watch, scopes=scopes, body=b"")
        except _FROM_ANOTHER:
            return self.begin()
        answer.close()
        return "" if answer.status == 201 else _location(answer)

    def begin(self) -> str:
        """Begin an upload; its address."""
        watch = self._client.watch(self._client.limits.document)
        url = self._client.url("blobs/uploads/")
        answer = self._client.request("POST", url, ok=(202,), watch=watch, actions="pull,push", body=b"")
        answer.close()
        return _location(answer)

    def upload(self, blob: Descriptor, file: "BinaryIO", location: str = "") -> None:
        """Send a blob's bytes, from the start or on from where a connection broke."""
        watch = self._client.watch(self._client.limits.blob)
        for attempt in range(1, _RESTARTS + 1):
            try:
                location = location or self.begin()
                if blob.size > self._chunk:
                    location = self._send_chunks(blob, file, location, watch)
                    self._finish(blob, location, b"", watch)
                else:
                    file.seek(0)
                    self._finish(blob, location, self._pieces(blob, file, 0, blob.size), watch)
                return
            except Cancelled:
                raise
            except (Unavailable, TimedOut, NotFound, InvalidInput) as error:
                # An upload the host has lost is begun anew.
                if attempt == _RESTARTS or self._client.has_blob(blob.digest) == blob.size:
                    if attempt == _RESTARTS:
                        raise
                    return
                self._client.pause(attempt, error, watch)
                location = ""

    def _finish(self, blob: Descriptor, location: str, body: "bytes | Iterator[bytes]", watch: Watch) -> None:
        url = f"{location}{'&' if urlsplit(location).query else '?'}digest={blob.digest.replace(':', '%3A')}"
        length = 0 if isinstance(body, bytes) else blob.size
        headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        request = {"actions": "pull,push", "headers": headers, "body": body}
        self._client.request("PUT", url, ok=(201, 204), watch=watch, **request).close()  # type: ignore[arg-type]

    def _send_chunks(self, blob: Descriptor, file: "BinaryIO", location: str, watch: Watch) -> str:
        offset, failures = 0, 0
        while offset < blob.size:
            end = min(offset + self._chunk, blob.size)
            file.seek(offset)
            headers = {
                "Content-Length": str(end - offset),
                "Content-Range": f"{offset}-{end - 1}",
                "Content-Type": "application/octet-stream",
            }
            pieces = self._pieces(blob, file, offset, end)
            try:
                answer = self._client.request(
                    "PATCH",
                    location,
                    ok=(202, 204, 416),
                    watch=watch,
                    actions="pull,push",
                    headers=headers,
                    body=pieces,
                )
                answer.close()
                location = _location(answer) if answer.header("Location") else location
                come = _received(answer)
                offset = end if come is None and answer.status != 416 else min(come or 0, blob.size)
                failures = 0 if answer.status != 416 else failures + 1
            except Cancelled:
                raise
            except (Unavailable, TimedOut) as error:
                failures += 1
                if failures >= self._client.limits.attempts:
                    raise
                self._client.pause(failures, error, watch)
                location, offset = self._status(location, watch)
            if failures >= self._client.limits.attempts:
                raise Unavailable(f"{self._client.host.name}: blob {blob.digest}: does not take the upload's chunks")
        return location

    def _status(self, location: str, watch: Watch) -> tuple[str, int]:
        """How much of an upload the host has."""
        answer = self._client.request("GET", location, ok=(204, 200), watch=watch, actions="pull,push")
        answer.close()
        fresh = _location(answer) if answer.header("Location") else location
        return fresh, _received(answer) or 0

    def _pieces(self, blob: Descriptor, file: "BinaryIO", offset: int, end: int) -> Iterator[bytes]:
        host = self._client.host.name
        while offset < end:
            data = file.read(min(_PIECE, end - offset))
            if not data:
                raise Corrupt(f"content {blob.digest}: has {offset} bytes, not {blob.size}")
            yield data
            offset += len(data)
            self._reporter.bytes("uploading", blob.digest, offset, blob.size, host)


def _location(answer: Answer) -> str:
    location = answer.header("Location")
    if not location:
        raise Unavailable(f"{answer.what}: {answer.status} without the upload's address")
    target = str(urljoin(answer.url, location))
    if urlsplit(answer.url).scheme == "https" and urlsplit(target).scheme != "https":
        raise Unavailable(f"{answer.what}: sends the upload from https to {urlsplit(target).scheme}")
    return target


def _received(answer: Answer) -> int | None:
    """Bytes the host has, by its Range header: ``0-0`` is nothing or one byte, and is taken for nothing."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.header("Range"))
    if not match:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0


def _blobs_of(manifest: Manifest) -> dict[str, Descriptor]:
    parts = (manifest.config, *manifest.layers)
    return {part.digest: part for part in parts if part.media_type not in FOREIGN_LAYER_TYPES}

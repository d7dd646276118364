"""``docker://``: a repository of a registry."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sampan.errors import InvalidInput, SampanError, TimedOut, Unavailable
from sampan.image.reference import Reference
from sampan.registry.client import Client
from sampan.registry.credentials import Credentials
from sampan.registry.origins import origins, remember_origin
from sampan.registry.places.interface import Source
from sampan.registry.progress import Reporter
from sampan.registry.repository import combine
from sampan.registry.resolver import Resolver
from sampan.registry.transport import Cancelled
from sampan.registry.uploading import CHUNK, Uploader
from sampan.spec.image import Descriptor

if TYPE_CHECKING:
    from sampan.storage.store import Store


class RemoteSource(Source):
    """An image in a registry, over all hosts that serve it."""

    def __init__(
        self,
        text: str,
        resolver: Resolver,
        reporter: Reporter,
        credentials: Credentials | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self._reporter = reporter
        self._shared = stop is not None
        self._repository = resolver.repository(text, credentials=credentials, notice=_retried(reporter), stop=stop)

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._repository.resolve()

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._repository.manifest(descriptor)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`; goes on where a connection breaks."""
        failures: list[SampanError] = []
        offset = 0
        for client in self._repository.clients("pull"):
            try:
                for chunk in self._from_host(client, descriptor, offset):
                    offset += len(chunk)
                    yield chunk
                return
            except (Cancelled, GeneratorExit):
                raise
            except SampanError as error:
                failures.append(error)
        raise combine(failures, f"{self._repository.reference.repository}: blob {descriptor.digest}", "pull")

    def _from_host(self, client: Client, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes from ``offset`` on, resumed where the connection breaks."""
        watch = client.watch(client.limits.blob)
        failures = 0
        while True:
            answer, start = client.open_blob(descriptor.digest, offset, watch)
            skip = offset - start
            try:
                for chunk in answer.chunks(watch):
                    fresh = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    offset += len(fresh)
                    yield fresh
                    self._reporter.bytes("downloading", descriptor.digest, offset, descriptor.size, client.host.name)
                if offset >= descriptor.size:
                    return
                raise Unavailable(f"{answer.what}: ended after {offset} of {descriptor.size} bytes")
            except Cancelled:
                raise
            except (Unavailable, TimedOut) as error:
                failures += 1
                if failures >= client.limits.attempts:
                    raise
                client.pause(failures, error, watch)
            finally:
                answer.close()

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Source`."""
        if not self._shared:
            self._repository.stop.set()


class RemoteSink:
    """A repository that an image is pushed to.

    A blob that the repository has is not sent; one that another repository of the same registry is known to have is
    mounted from there; else it is uploaded, whole or in chunks, and goes on where a connection breaks.

    Args:
        text: The image's name there.
        resolver: Hosts and credentials.
        reporter: Told how uploads go.
        credentials: The caller's own.
        store: Whose blobs need not be checked again before they are sent, and know repositories that have them.
        stop: Ends requests when set.
        chunk: Most bytes of one upload request.
    """

    def __init__(
        self,
        text: str,
        resolver: Resolver,
        reporter: Reporter,
        credentials: Credentials | None = None,
        *,
        store: "Store | None" = None,
        stop: threading.Event | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._reference = Reference.parse(text)
        self._shared = stop is not None
        self._stop = stop or threading.Event()
        repository = resolver.repository(
            self._reference, credentials=credentials, notice=_retried(reporter), stop=self._stop
        )
        self._client = repository.pusher()
        self._uploader = Uploader(self._client, reporter, chunk)
        self._store = store
        self._there: list[Descriptor] = []

    @property
    def host(self) -> str:
        """The host that it is pushed to."""
        return self._client.host.name

    def has(self, target: Descriptor) -> bool:
        """See :class:`~sampan.image.writing.Sink`."""
        self._there.append(target)
        return self._client.has_blob(target.digest) in (target.size, -1)

    def put_blob(self, target: Descriptor, pieces: Iterator[bytes]) -> str:
        """See :class:`~sampan.image.writing.Sink`."""
        if self._store is not None and self._store.content.exists(target.digest):
            return self._send(self._store, target)
        # On disk first: an upload that breaks goes on from a part, and nothing unchecked is ever sent.
        with tempfile.TemporaryFile(prefix="sampan-copy-") as file:
            file.writelines(pieces)
            file.flush()
            self._uploader.upload(target, file)
        return "uploaded"

    def _send(self, store: "Store", target: Descriptor) -> str:
        location = ""
        for name in origins(store, target, self._reference.domain):
            if name != self._reference.path:
                location = self._uploader.mount(target.digest, name)
                if not location:
                    return "mounted"
                break
        with store.content.open(target.digest) as file:
            self._uploader.upload(target, file, location)
        return "uploaded"

    def put_document(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        self._remember()
        self._client.push_manifest(target.digest, data, target.media_type)

    def finish(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        self._remember()
        if self._reference.digest and self._reference.digest != target.digest:
            raise InvalidInput(f"the image has digest {target.digest}", field=f"reference {self._reference}")
        self._client.push_manifest(self._reference.tag or target.digest, data, target.media_type)

    def _remember(self) -> None:
        """Note that the repository has the blobs, which come before any document."""
        there, self._there = self._there, []
        if self._store is not None and there:
            with self._store.transaction():
                remember_origin(self._store, self._reference, there)

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        if not self._shared:
            self._stop.set()


def _retried(reporter: Reporter) -> Callable[[str, float, SampanError], None]:
    def tell(host: str, delay: float, error: SampanError) -> None:
        reporter.tell("retrying", host=host, message=f"{error.message}; again in {delay:.1f} s")

    return tell

"""``docker://``: a repository of a registry."""

import tempfile
import threading
from collections.abc import Iterator

from sampan.errors import SampanError, TimedOut, Unavailable
from sampan.image.reference import Reference
from sampan.registry.client import Client
from sampan.registry.credentials import Credentials
from sampan.registry.progress import Reporter
from sampan.registry.pushing import Uploader
from sampan.registry.repository import combine
from sampan.registry.resolver import Resolver
from sampan.registry.transport import Cancelled
from sampan.spec.image import Descriptor


class RemoteSource:
    """An image in a registry, over all hosts that serve it."""

    def __init__(
        self, text: str, resolver: Resolver, reporter: Reporter, credentials: Credentials | None = None
    ) -> None:
        self._reporter = reporter

        def retried(host: str, delay: float, error: SampanError) -> None:
            reporter.tell("retrying", host=host, message=f"{error.message}; again in {delay:.1f} s")

        self._repository = resolver.repository(text, credentials=credentials, notice=retried)

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
        self._repository.stop.set()


class RemoteSink:
    """A repository that an image is pushed to."""

    def __init__(
        self, text: str, resolver: Resolver, reporter: Reporter, credentials: Credentials | None = None
    ) -> None:
        self._reference = Reference.parse(text)
        self._stop = threading.Event()
        self._client = resolver.repository(self._reference, credentials=credentials, stop=self._stop).pusher()
        self._uploader = Uploader(self._client, reporter)
        self._documents: dict[str, bytes] = {}

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        return self._client.has_blob(descriptor.digest) in (descriptor.size, -1)

    def put_blob(self, descriptor: Descriptor, data: Iterator[bytes]) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        # On disk first: an upload that breaks goes on from a part, and nothing unchecked is ever sent.
        with tempfile.TemporaryFile(prefix="sampan-copy-") as file:
            file.writelines(data)
            file.flush()
            self._uploader.upload(descriptor, file)

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        self._client.push_manifest(descriptor.digest, data, descriptor.media_type)
        self._documents[descriptor.digest] = data

    def finish(self, target: Descriptor) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        if self._reference.tag:
            self._client.push_manifest(self._reference.tag, self._documents[target.digest], target.media_type)

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        self._stop.set()

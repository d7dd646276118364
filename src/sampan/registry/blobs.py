"""Blobs from hosts into the content store: resumed, checked, one download for each over all processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sampan.errors import AlreadyExists, Corrupt, SampanError, StageFailed, TimedOut, Unavailable
from sampan.registry.client import Client
from sampan.registry.progress import Kind, Reporter
from sampan.registry.repository import Repository, combine
from sampan.registry.transport import Answer, Cancelled, Watch
from sampan.spec.image import Descriptor

if TYPE_CHECKING:
    from sampan.storage.content import Holder
    from sampan.storage.ingest import Writer
    from sampan.storage.store import Store

#: A download that goes on is resumed however often it breaks off, within reason.
_RESUMES_LIMIT = 100
#: Seconds to wait for another download of the same blob before it is asked whether to go on.
_TURN = 1.0
#: Bytes between two breaks that count as going on.
_PROGRESS = 64 << 10

#: Called with a blob's writer each time it starts from its first byte or from where an earlier download broke off.
Opened = Callable[[Descriptor, "Writer"], None]


class Downloader:
    """Fetches blobs of one repository into a store.

    Args:
        store: Where to.
        repository: Where from.
        lease: Keeps what comes until a name leads to it.
        reporter: Told how it goes.
    """

    def __init__(self, store: "Store", repository: Repository, lease: "Holder", reporter: Reporter) -> None:
        self._store = store
        self._repository = repository
        self._lease = lease
        self._reporter = reporter

    def fetch(self, descriptor: Descriptor, opened: Opened | None = None) -> None:
        """Bring a blob into the store, unless it is there; wait for whoever else is downloading it.

        Raises:
            SampanError: No host gave it; of the last host's kind, with what each said.
            Exhausted: The disk is full.
        """
        failures: list[SampanError] = []
        clients = self._repository.clients("pull")
        for client in clients:
            try:
                if self._from_host(client, descriptor, opened):
                    self._tell_whole("downloaded", descriptor, client.host.name)
                else:
                    self._tell_whole("exists", descriptor, "")
                return
            except (Cancelled, StageFailed, LocalFailure):
                raise
            except SampanError as error:
                failures.append(error)
        raise combine(failures, f"{self._repository.reference.repository}: blob {descriptor.digest}", "pull")

    def _tell_whole(self, kind: Kind, blob: Descriptor, host: str) -> None:
        self._reporter.tell(kind, digest=blob.digest, offset=blob.size, total=blob.size, host=host)

    def _from_host(self, client: Client, descriptor: Descriptor, opened: Opened | None) -> bool:
        """Download from one host; False if the blob was stored meanwhile."""
        watch = client.watch(client.limits.blob)
        for last in (False, True):
            try:
                writer = self._writer(descriptor, watch)
            except AlreadyExists:
                return False
            with writer:
                resumed = writer.offset
                if opened:
                    opened(descriptor, writer)
                self._fill(client, descriptor, writer, opened, watch)
                try:
                    writer.commit()
                    return True
                except Corrupt as error:
                    # What an earlier attempt left may have been the bad part: once more, from the first byte.
                    if last or not resumed:
                        raise Corrupt(f"{client.host.name}: {error.message}") from None
                except SampanError as error:
                    raise LocalFailure(error) from error
        raise AssertionError("unreachable")

    def _writer(self, descriptor: Descriptor, watch: Watch) -> "Writer":
        """A writer of the blob; waits for another one as long as the operation is wanted."""
        while True:
            watch.check(f"blob {descriptor.digest}")
            try:
                return self._store.content.writer(descriptor, lease=self._lease, timeout=_TURN)
            except TimedOut:
                self._reporter.tell("waiting", digest=descriptor.digest, total=descriptor.size)

    def _fill(
        self, client: Client, descriptor: Descriptor, writer: "Writer", opened: Opened | None, watch: Watch
    ) -> None:
        """Write all bytes, resuming where the connection breaks."""
        barren = 0
        for _ in range(_RESUMES_LIMIT):
            before = writer.offset
            if before == descriptor.size and before:
                return
            answer, start = client.open_blob(descriptor.digest, before, watch)
            try:
                if start != before:
                    writer.reset()
                    if opened:
                        opened(descriptor, writer)
                self._copy(client, answer, descriptor, writer, watch)
                return
            except Cancelled:
                raise
            except (Unavailable, TimedOut) as error:
                barren = 0 if writer.offset - start >= _PROGRESS else barren + 1
                if barren >= client.limits.attempts:
                    raise
                client.pause(barren + 1, error, watch)
            finally:
                answer.close()
        raise Unavailable(f"{client.host.name}: blob {descriptor.digest}: broke off {_RESUMES_LIMIT} times")

    def _copy(self, client: Client, answer: Answer, descriptor: Descriptor, writer: "Writer", watch: Watch) -> None:
        size = descriptor.size
        if answer.length is not None and writer.offset + answer.length != size:
            come = writer.offset + answer.length
            raise Corrupt(f"{answer.what}: has {come} bytes, the manifest says {size}")
        for chunk in answer.chunks(watch):
            if writer.offset + len(chunk) > size:
                raise Corrupt(f"{answer.what}: sends more than the {size} bytes that the manifest says")
            try:
                writer.write(chunk)
            except Corrupt:
                raise
            except SampanError as error:
                raise LocalFailure(error) from error
            self._reporter.bytes("downloading", descriptor.digest, writer.offset, size, client.host.name)
        if writer.offset < size:
            raise Unavailable(f"{answer.what}: ended after {writer.offset} of {size} bytes")
        answer.release()


class LocalFailure(SampanError):
    """This machine failed, not a host: asking another one is of no use. Its cause is what is to be told."""

    def __init__(self, cause: SampanError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.cause = cause

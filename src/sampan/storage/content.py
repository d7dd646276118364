"""Blobs named by their digest.

On disk::

    content/blobs/ALGORITHM/HEX     committed; immutable; 0444
    content/ingest/ALGORITHM-HEX    being written, or left from a download that broke off; locked (flock) by its writer
    content/ingest/put-TOKEN        the same, of a digest not known beforehand
    content/lock                    flock: shared while a blob is renamed and its row inserted, exclusive while the
                                    collector deletes rows and files

A blob is there when its row is; the row is inserted after the file was synced and renamed.
"""

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, Self

from sampan.errors import AlreadyExists, Corrupt, Exhausted, InvalidInput, NotFound, StageFailed, TimedOut, write_failed
from sampan.spec.image import Descriptor, check_digest, digest_of
from sampan.storage.database import Database
from sampan.storage.ingest import Writer

_CHUNK = 1 << 20
_READ_LIMIT = 16 << 20


class Holder(Protocol):
    """What keeps content from being collected while it is being put together: a lease."""

    def add_content(self, digest: str) -> None:
        """Keep this blob."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What is known of a blob without reading it. ``created_at`` in nanoseconds since the epoch."""

    digest: str
    size: int
    media_type: str
    labels: dict[str, str]
    created_at: int


@contextmanager
def locked(path: str, mode: int) -> Iterator[None]:
    """Hold flock(2) ``mode`` on the lock file ``path``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, mode)
        yield
    finally:
        os.close(fd)


class Content:
    """The blobs of one store."""

    def __init__(self, root: str, database: Database) -> None:
        self.root = root
        self._database = database
        self._blobs = os.path.join(root, "blobs")
        self.ingest_directory = os.path.join(root, "ingest")
        self.lock_path = os.path.join(root, "lock")

    # ---------------------------------------------------------------- looking

    def path(self, digest: str) -> str:
        """Where a blob lies, whether or not it does."""
        algorithm, encoded = check_digest(digest)
        return os.path.join(self._blobs, algorithm, encoded)

    def exists(self, digest: str) -> bool:
        """Whether the blob is stored."""
        return self._database.row("SELECT 1 FROM blobs WHERE digest=?", (digest,)) is not None

    def info(self, digest: str) -> BlobInfo:
        """What is known of a blob.

        Raises:
            NotFound: It is not stored.
        """
        row = self._database.row(
            "SELECT digest, size, media_type, labels, created_at FROM blobs WHERE digest=?", (digest,)
        )
        if row is None:
            raise NotFound(f"content {digest}: not in the store")
        return BlobInfo(row[0], row[1], row[2], json.loads(row[3]), row[4])

    def walk(self) -> list[BlobInfo]:
        """All blobs, by digest."""
        rows = self._database.rows("SELECT digest, size, media_type, labels, created_at FROM blobs ORDER BY digest")
        return [BlobInfo(row[0], row[1], row[2], json.loads(row[3]), row[4]) for row in rows]

    def strays(self) -> dict[str, int]:
        """Digest and size of each file that has no row: its writer died before, or its remover after, the row.

        Only with the content lock held exclusively, in a transaction: else it may be a file whose row is on its way.
        """
        known = {row[0] for row in self._database.rows("SELECT digest FROM blobs")}
        found = {}
        for algorithm in os.listdir(self._blobs):
            with os.scandir(os.path.join(self._blobs, algorithm)) as entries:
                for entry in entries:
                    digest = f"{algorithm}:{entry.name}"
                    if digest not in known and _is_digest(digest):
                        found[digest] = entry.stat(follow_symlinks=False).st_size
        return found

    # ---------------------------------------------------------------- reading

    def open(self, digest: str) -> BinaryIO:
        """The blob as a file, unverified.

        Raises:
            NotFound: It is not stored.
            Corrupt: It should be, but its file is gone.
        """
        self.info(digest)
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise Corrupt(f"content {digest}: its file is gone", hint="run `sampan fsck --repair`") from None
        except OSError as error:
            raise StageFailed("open content", error) from error

    def reader(self, digest: str, size: int | None = None) -> "VerifiedReader":
        """The blob as a stream that ends in :class:`Corrupt` if it is not what its digest says."""
        info = self.info(digest)
        return VerifiedReader(self.open(digest), digest, info.size if size is None else size)

    def read(self, target: Descriptor | str, limit: int = _READ_LIMIT) -> bytes:
        """A small blob, verified.

        Raises:
            NotFound: It is not stored.
            Corrupt: Its bytes differ from its digest or from the descriptor's size.
            Exhausted: It is larger than ``limit``.
        """
        digest = target if isinstance(target, str) else target.digest
        info = self.info(digest)
        if info.size > limit:
            raise Exhausted(f"content {digest}: {info.size} bytes are more than the {limit} to be read at once")
        size = info.size if isinstance(target, str) else target.size
        with VerifiedReader(self.open(digest), digest, size) as reader:
            return b"".join(reader.chunks())

    # ---------------------------------------------------------------- writing

    def put(self, data: bytes, media_type: str = "", *, lease: Holder | None = None) -> Descriptor:
        """Store a small blob; the same blob twice is no error."""
        descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        try:
            with self.writer(descriptor, lease=lease, resume=False) as writer:
                writer.write(data)
                return writer.commit()
        except AlreadyExists:
            return descriptor

    def writer(
        self,
        descriptor: Descriptor | None,
        *,
        lease: Holder | None = None,
        timeout: float | None = None,
        resume: bool = True,
    ) -> "Writer":
        """Start, or go on with, the writing of a blob.

        Args:
            descriptor: What is expected; None if that is known only at the end.
            lease: Keeps the blob from the moment it is visible.
            timeout: How long to wait for another writer of the same blob.
            resume: Whether to keep what an earlier attempt left.

        Raises:
            AlreadyExists: The blob is stored; ``lease`` holds it now.
            TimedOut: Another process has been writing it for all of ``timeout``.
        """
        if descriptor is None:
            name = "put-" + secrets.token_hex(16)
        else:
            self._raise_if_stored(descriptor, lease)
            name = "-".join(check_digest(descriptor.digest))
        fd = self._open_ingest(name, timeout)
        try:
            if descriptor is not None:
                if os.path.exists(self.path(descriptor.digest)):
                    # Its writer has moved the ingest away and is about to say so: see admit().
                    with locked(self.lock_path, fcntl.LOCK_EX):
                        pass
                self._raise_if_stored(descriptor, lease, forget=name)
            return Writer(self, fd, name, descriptor, lease, resume=resume)
        except BaseException:
            os.close(fd)
            raise

    def _raise_if_stored(self, descriptor: Descriptor, lease: Holder | None, forget: str = "") -> None:
        # The lease first: were the blob looked for first, it could be collected before the lease holds it.
        if lease is not None:
            lease.add_content(descriptor.digest)
        row = self._database.row("SELECT size FROM blobs WHERE digest=?", (descriptor.digest,))
        if row is None:
            return
        if forget:
            self.forget_ingest(forget)
        if row[0] != descriptor.size:
            raise Corrupt(f"content {descriptor.digest}: has {row[0]} bytes, not the {descriptor.size} promised")
        raise AlreadyExists(f"content {descriptor.digest}: is stored")

    def forget_ingest(self, name: str) -> None:
        """Throw away what was written of a blob; none is no error. For :class:`~sampan.storage.ingest.Writer`."""
        try:
            os.unlink(os.path.join(self.ingest_directory, name))
        except FileNotFoundError:
            pass

    def _open_ingest(self, name: str, timeout: float | None) -> int:
        path = os.path.join(self.ingest_directory, name)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise write_failed("start writing content", error) from error
            try:
                _flock_until(fd, deadline, name)
                # The one that held the lock may have renamed or removed the file that was opened here.
                if os.fstat(fd).st_nlink and os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def admit(self, fd: int, name: str, descriptor: Descriptor) -> None:
        """Make a complete, checked ingest visible. For :class:`~sampan.storage.ingest.Writer`."""
        target = self.path(descriptor.digest)
        os.fsync(fd)
        with locked(self.lock_path, fcntl.LOCK_SH):
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(os.path.join(self.ingest_directory, name), target)
            # Not before: another writer of it may be about to open the ingest for writing.
            os.fchmod(fd, 0o444)
            _sync_directory(os.path.dirname(target))
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT OR IGNORE INTO blobs (digest, size, media_type, created_at) VALUES (?, ?, ?, ?)",
                    (descriptor.digest, descriptor.size, descriptor.media_type, time.time_ns()),
                )

    # ---------------------------------------------------------------- changing

    def label(self, digest: str, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Set labels, or take away those whose value is None; returns all."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT labels FROM blobs WHERE digest=?", (digest,)).fetchone()
            if row is None:
                raise NotFound(f"content {digest}: not in the store")
            merged = {k: v for k, v in {**json.loads(row[0]), **labels}.items() if v is not None}
            connection.execute("UPDATE blobs SET labels=? WHERE digest=?", (json.dumps(merged), digest))
        return merged

    def delete(self, digest: str) -> None:
        """Remove a blob, whoever refers to it.

        Raises:
            NotFound: It is not stored.
        """
        if not self.delete_many([digest]):
            raise NotFound(f"content {digest}: not in the store")

    def delete_many(self, digests: list[str]) -> int:
        """Remove blobs; those that are not there are passed over. Returns how many were."""
        removed = 0
        with locked(self.lock_path, fcntl.LOCK_EX):
            with self._database.transaction(durable=True) as connection:
                for digest in digests:
                    removed += connection.execute("DELETE FROM blobs WHERE digest=?", (digest,)).rowcount
            for digest in digests:
                try:
                    os.unlink(self.path(digest))
                except FileNotFoundError:
                    pass
        return removed


class VerifiedReader:
    """A stream that checks what it gave out: the last read raises if digest or size are not as promised."""

    def __init__(self, source: BinaryIO, digest: str, size: int) -> None:
        self._source = source
        self._digest = digest
        self._size = size
        self._seen = 0
        self._hash = hashlib.new(check_digest(digest)[0])

    def read(self, size: int = _CHUNK) -> bytes:
        """Up to ``size`` bytes; empty at the end.

        Raises:
            Corrupt: At the end, or as soon as there is too much.
        """
        if size < 1:
            raise InvalidInput("must be positive", field="size")
        data = self._source.read(size)
        self._hash.update(data)
        self._seen += len(data)
        if self._seen > self._size or (not data and self._seen != self._size):
            raise Corrupt(f"content {self._digest}: has not the {self._size} bytes promised")
        if not data and self._hash.hexdigest() != self._digest.partition(":")[2]:
            raise Corrupt(f"content {self._digest}: the stored bytes have another digest", hint="run `sampan fsck`")
        return data

    def chunks(self, size: int = _CHUNK) -> Iterator[bytes]:
        """All that is left, in pieces."""
        while data := self.read(size):
            yield data

    def close(self) -> None:
        """Close the file beneath."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_digest(text: str) -> bool:
    try:
        check_digest(text)
    except InvalidInput:
        return False
    return True


def _flock_until(fd: int, deadline: float | None, name: str) -> None:
    if deadline is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    # flock has no time-out of its own, and alarms are not for libraries.
    pause = 0.005
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimedOut(f"content {name.replace('-', ':', 1)}: is being written by another process") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.1)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""One blob on its way into the store: written, read by others meanwhile, checked and made visible."""

import hashlib
import os
from typing import TYPE_CHECKING, Self

from sampan.errors import Corrupt, WrongState, write_failed
from sampan.spec.image import Descriptor, check_digest

if TYPE_CHECKING:
    from sampan.storage.content import Content, Holder

_CHUNK = 1 << 20


class Writer:
    """A blob being written. Not for use by several threads.

    ``write`` may be called any number of times, then ``commit`` once. ``close`` (also the end of a with-block) lets
    go of the ingest but leaves it for a later attempt; ``abort`` throws it away; both are idempotent, and after a
    commit do nothing.
    """

    def __init__(
        self,
        content: "Content",
        fd: int,
        name: str,
        descriptor: Descriptor | None,
        lease: "Holder | None",
        *,
        resume: bool,
    ) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self._content = content
        self._fd = fd
        self._name = name
        self._lease = lease
        self._algorithm = check_digest(descriptor.digest)[0] if descriptor else "sha256"
        self._hash = hashlib.new(self._algorithm)
        self._followers: list[int] = []
        size = os.fstat(fd).st_size
        if resume and size and (descriptor is None or size <= descriptor.size):
            self._rehash()
        elif size:
            os.ftruncate(fd, 0)

    def _rehash(self) -> None:
        while chunk := os.pread(self._fd, _CHUNK, self.offset):
            self._hash.update(chunk)
            self.offset += len(chunk)

    def follow(self) -> tuple[int, int]:
        """Let another process read the blob while it is written.

        Returns:
            Descriptors that the caller owns: of the file, opened for reading; and of a pipe in which a byte ``+``
            says that there is more to read, ``.`` that the blob is complete and checked, and whose end without
            ``.`` that the writer gave up. After ``reset`` the pipe ends.
        """
        data = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        self._followers.append(writer)
        return data, reader

    def write(self, data: bytes | memoryview) -> None:
        """Append.

        Raises:
            Corrupt: It is more than the descriptor promised.
            Exhausted: The disk is full.
        """
        if self._fd < 0:
            raise WrongState("content writer: is closed")
        if self.descriptor is not None and self.offset + len(data) > self.descriptor.size:
            raise Corrupt(f"content {self.descriptor.digest}: more than the {self.descriptor.size} bytes promised")
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, self.offset)
                self._hash.update(view[:done])
                self.offset += done
                view = view[done:]
        except OSError as error:
            raise write_failed("write content", error) from error
        self._tell(b"+")

    def reset(self) -> None:
        """Start over: a server would not resume."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self._algorithm)
        self.offset = 0
        self._drop_followers()

    def commit(self, media_type: str = "") -> Descriptor:
        """Check size and digest, sync, and make the blob visible.

        Raises:
            Corrupt: It is not what was promised; the ingest is thrown away.
        """
        digest = f"{self._algorithm}:{self._hash.hexdigest()}"
        expected = self.descriptor
        if expected is not None:
            if self.offset < expected.size:
                # Kept: a download that broke off is resumed.
                raise Corrupt(f"content {expected.digest}: {self.offset} of {expected.size} bytes came")
            if digest != expected.digest:
                self.abort()
                raise Corrupt(f"content {expected.digest}: the bytes that came have digest {digest}")
        done = expected or Descriptor(media_type=media_type, digest=digest, size=self.offset)
        if expected is None and self._lease is not None:
            self._lease.add_content(digest)
        # Followers check for themselves what they read, so that the sync below need not hold them up.
        self._tell(b".")
        try:
            self._content.admit(self._fd, self._name, done)
        except OSError as error:
            raise write_failed("commit content", error) from error
        self._release()
        return done

    def abort(self) -> None:
        """Throw the ingest away."""
        if self._fd >= 0:
            self._content.forget_ingest(self._name)
            self._release()

    def close(self) -> None:
        """Let go of the ingest; one of a known digest stays for resuming."""
        if self._fd >= 0 and (self.descriptor is None or self.offset == 0):
            self.abort()
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._drop_followers()

    def _drop_followers(self) -> None:
        followers, self._followers = self._followers, []
        for pipe in followers:
            os.close(pipe)

    def _tell(self, message: bytes) -> None:
        for pipe in tuple(self._followers):
            try:
                os.write(pipe, message)
            except BlockingIOError:
                # The pipe is full of news already. "complete" must arrive, though.
                if message == b".":
                    os.set_blocking(pipe, True)
                    self._last_word(pipe)
            except BrokenPipeError:
                self._followers.remove(pipe)
                os.close(pipe)

    @staticmethod
    def _last_word(pipe: int) -> None:
        try:
            os.write(pipe, b".")
        except BrokenPipeError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

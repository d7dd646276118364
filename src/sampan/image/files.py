"""Files that images are read from and written to: in parts, written beside and renamed; tar files read by offset."""

import os
import secrets
from collections.abc import Iterable, Iterator
from typing import IO

from sampan.errors import Corrupt, Exhausted, NotFound, SampanError, StageFailed
from sampan.image.decompress import bounded

CHUNK = 1 << 20
_MEMBERS_LIMIT = 100_000


def blob_chunks(path: str) -> Iterator[bytes]:
    """A file's bytes."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise NotFound(f"{path}: does not exist") from None
    except OSError as error:
        raise StageFailed("read", error, path=path) from error
    with file:
        while data := file.read(CHUNK):
            yield data


def read_small(path: str, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes."""
    data = b""
    for chunk in blob_chunks(path):
        data += chunk
        if len(data) > limit:
            raise Corrupt(f"{path}: more than the {limit} bytes that are read")
    return data


def write_file(path: str, data: Iterable[bytes]) -> None:
    """Write a file that is there when it is whole; ``data`` may raise, and then nothing is."""
    beside = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(beside, "xb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException as error:
        try:
            os.unlink(beside)
        except OSError:
            pass
        if isinstance(error, OSError) and not isinstance(error, SampanError):
            raise StageFailed("write", error, path=path) from error
        raise


class Archive:
    """The members of a tar file, compressed or not, by name and in any order."""

    def __init__(self, file: str) -> None:
        import tarfile  # for those alone who read archives: every command and the daemon import this module

        self.name = file
        try:
            opened = open(file, "rb")
        except FileNotFoundError:
            raise NotFound(f"{file}: does not exist") from None
        except OSError as error:
            raise StageFailed("read archive", error, path=file) from error
        self._file: IO[bytes] = opened
        if opened.read(4)[:3] in (b"\x1f\x8b\x08", b"\x28\xb5\x2f"):
            self._file = self._expanded(opened)
            opened.close()
        self._file.seek(0)
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number > _MEMBERS_LIMIT:
                        raise Exhausted(f"{file}: more than {_MEMBERS_LIMIT} entries")
                    name = os.path.normpath(member.name)
                    if member.isreg():
                        self._members[name] = (member.offset_data, member.size)
                    elif member.issym():
                        # docker save had each layer that two images share once, with links to it.
                        self._links[name] = os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
        except tarfile.TarError as error:
            self.close()
            raise Corrupt(f"{file}: not a tar archive: {error}") from None
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _expanded(file: IO[bytes]) -> IO[bytes]:
        import tempfile

        file.seek(0)
        whole = tempfile.TemporaryFile(prefix="sampan-archive-")
        whole.writelines(bounded(file.read))
        whole.flush()
        return whole

    def size(self, name: str) -> int:
        """A member's size."""
        return self._place(name)[1]

    def read(self, name: str, limit: int) -> bytes:
        """A whole member of at most ``limit`` bytes."""
        offset, size = self._place(name)
        if size > limit:
            raise Corrupt(f"{self.name}: {name}: {size} bytes are more than the {limit} that are read")
        return os.pread(self._file.fileno(), size, offset)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's bytes."""
        offset, left = self._place(name)
        while left:
            data = os.pread(self._file.fileno(), min(CHUNK, left), offset)
            if not data:
                raise Corrupt(f"{self.name}: {name}: the archive ends in it")
            yield data
            offset += len(data)
            left -= len(data)

    def _find(self, name: str) -> tuple[int, int] | None:
        for _ in range(8):
            if name in self._members:
                return self._members[name]
            name = self._links.get(name, "")
        return None

    def _place(self, name: str) -> tuple[int, int]:
        found = self._find(os.path.normpath(name))
        if found is None:
            raise NotFound(f"{self.name}: has no {name[:200]}")
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

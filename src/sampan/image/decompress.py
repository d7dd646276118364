"""A layer's bytes, from where they lie or arrive, to its tar stream with its digest.

The compression is told by the first bytes, as containerd does: media types lie. On the import diet; a codec is
imported when it is met.
"""

from __future__ import annotations

import _thread
import hashlib
import os
from _queue import SimpleQueue

from sampan.errors import Corrupt, Unavailable, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from sampan.image.tar import Limits

_READ = 256 << 10
#: The most that one step of a decompressor gives, so that a bomb is seen before it has gone off.
_STEP = 512 << 10
_AHEAD = 3
_ZSTD_WINDOW = 1 << 27

_MAGIC = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


class Stored:
    """Bytes that are all there: a blob's file."""

    __slots__ = ("_fd", "seen")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.seen = 0

    def peek(self) -> bytes:
        """The first bytes, where they can be looked at without being read."""
        return os.pread(self._fd, 8, 0)

    def read(self, size: int = _READ) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        data = os.read(self._fd, size)
        self.seen += len(data)
        return data


class Arriving:
    """Bytes of a file that another process is writing; see :meth:`sampan.storage.ingest.Writer.follow`."""

    __slots__ = ("_complete", "_fd", "_news", "seen")

    def __init__(self, fd: int, news: int) -> None:
        self._fd = fd
        self._news = news
        self._complete = False
        self.seen = 0

    def peek(self) -> bytes:
        """The first bytes, waiting for them."""
        data = self.read(8)
        self.seen = 0
        return data

    def read(self, size: int = _READ) -> bytes:
        """Up to ``size`` bytes, waiting for them; empty when the blob is complete.

        Raises:
            Unavailable: The writer gave up.
        """
        while True:
            data = os.pread(self._fd, size, self.seen)
            if data or self._complete:
                self.seen += len(data)
                return data
            news = os.read(self._news, 65536)
            if not news:
                raise Unavailable("layer: the download it was read from broke off")
            self._complete = b"." in news


class TarStream:
    """The uncompressed archive, piece by piece, inflated and hashed in a thread of its own.

    Args:
        source: :class:`Stored` or :class:`Arriving`.
        limits: Bounds of size and ratio.
    """

    def __init__(self, source: Stored | Arriving, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._hash = hashlib.sha256()
        self.size = 0
        self._queue: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._credit: SimpleQueue[None] = SimpleQueue()
        for _ in range(_AHEAD):
            self._credit.put(None)
        _thread.start_new_thread(self._run, ())

    def pull(self) -> bytes:
        """The next piece; empty at the end.

        Raises:
            Corrupt: The compressed bytes are damaged.
            Exhausted: There is more than the limits allow.
        """
        piece = self._queue.get()
        if isinstance(piece, BaseException):
            raise piece
        self._credit.put(None)
        return piece

    @property
    def digest(self) -> str:
        """The diff ID; complete once :meth:`pull` has given the empty piece."""
        return "sha256:" + self._hash.hexdigest()

    def _run(self) -> None:
        try:
            for piece in inflate(self._source.read):
                self._hash.update(piece)
                self.size += len(piece)
                self._limits.check(self.size, self._source.seen)
                self._credit.get()
                self._queue.put(piece)
            self._queue.put(b"")
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that pulls
            self._queue.put(error)


def inflate(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Decompress what ``read`` gives, by whatever it is compressed with, if at all.

    Raises:
        Corrupt: The compressed bytes are damaged or cut off.
        Unsupported: It is a compression that layers don't have.
    """
    first = b""
    while len(first) < 8 and (more := read(_READ)):
        first += more
    kind = next((name for magic, name in _MAGIC if first.startswith(magic)), "")
    if not kind and len(first) >= 4 and first[1:4] == b"\x2a\x4d\x18" and first[0] & 0xF0 == 0x50:
        kind = "zstd"  # a skippable frame comes first
    if kind == "gzip":
        return _gunzip(first, read)
    if kind == "zstd":
        return _unzstd(first, read)
    if kind:
        raise Unsupported(f"layer: compressed with {kind}; layers are tar, gzip or zstd")
    return _plain(first, read)


def bounded(read: Callable[[int], bytes], limits: Limits | None = None) -> Iterator[bytes]:
    """:func:`inflate` for what is no layer and has no :class:`TarStream`: an archive of images.

    Raises:
        Exhausted: There is more than the limits allow.
    """
    from sampan.image.tar import Limits

    bounds = limits or Limits()
    seen = size = 0

    def counted(wanted: int) -> bytes:
        nonlocal seen
        data = read(wanted)
        seen += len(data)
        return data

    for piece in inflate(counted):
        size += len(piece)
        bounds.check(size, seen)
        yield piece


def _plain(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    while data:
        yield data
        data = read(_STEP)


def _gunzip(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952), zeros after the last one allowed."""
    from isal import igzip_lib

    failure: Any = igzip_lib.IsalError
    while data:
        member: Any = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            if not data and member.needs_input:
                raise Corrupt("layer: the gzip stream is cut off")
            try:
                piece = member.decompress(data, _STEP)
            except (failure, EOFError) as error:
                raise Corrupt(f"layer: damaged gzip stream: {error}") from None
            if piece:
                yield piece
            data = read(_READ) if member.needs_input and not member.eof else b""
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := read(_READ)):
            data = more.lstrip(b"\0")
        if data and not data.startswith(b"\x1f"):
            raise Corrupt("layer: something follows the gzip stream")


def _unzstd(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """All frames of a zstd file (RFC 8878), skippable ones passed over: that reads zstd:chunked too."""
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    source: Any = _Prefixed(data, read)
    reader = context.stream_reader(source, read_size=_READ, read_across_frames=True)
    try:
        while piece := reader.read(_STEP):
            yield piece
    except zstandard.ZstdError as error:
        raise Corrupt(f"layer: damaged zstd stream: {error}") from None


class _Prefixed:
    """A file-like object: bytes read already, then the rest."""

    __slots__ = ("_first", "_read")

    def __init__(self, first: bytes, read: Callable[[int], bytes]) -> None:
        self._first = first
        self._read = read

    def read(self, size: int) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._read(size)

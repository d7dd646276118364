"""Writing tar archives: POSIX pax, reproducible, streamed.

The same files give the same bytes: members in the caller's order, no time of writing, extended headers only where the
plain header can't say it.
"""

import struct
from collections.abc import Callable, Iterable

from sampan.image import tar
from sampan.image.tar import BLOCK, Entry

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_NANO = 1_000_000_000
_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777


class Writer:
    """Writes members one after the other; ``close`` ends the archive.

    Args:
        write: Takes the archive's bytes.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def member(self, entry: Entry, data: Iterable[bytes] = ()) -> None:
        """Write a member. ``data`` must give ``entry.size`` bytes.

        Raises:
            ValueError: It gave more or fewer: a file changed while it was read.
        """
        name = entry.name + b"/" if entry.type == tar.DIRECTORY and not entry.name.endswith(b"/") else entry.name
        records = _pax_records(entry, name)
        if records:
            self._extended(name, records)
        size = entry.size if entry.type == tar.REGULAR else 0
        self._write(_header(entry, name, size))
        seen = 0
        for piece in data:
            seen += len(piece)
            if seen > size:
                break
            self._write(piece)
        if seen != size:
            raise ValueError(f"{entry.name!r} gave {seen} bytes, not {size}")
        self._write(bytes(-size % BLOCK))

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""
        entry = Entry()
        entry.name, entry.mode, entry.size = name.encode(), 0o644, len(data)
        self.member(entry, [data])

    def close(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * BLOCK))

    def _extended(self, name: bytes, records: list[tuple[bytes, bytes]]) -> None:
        body = b"".join(_record(key, value) for key, value in records)
        entry = Entry()
        entry.name, entry.mode = b"PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2][:80], 0o644
        entry.type = b"x"
        self._write(_header(entry, entry.name, len(body)) + body + bytes(-len(body) % BLOCK))


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _pax_records(entry: Entry, name: bytes) -> list[tuple[bytes, bytes]]:
    records: list[tuple[bytes, bytes]] = []
    if len(name) > 100 or not name.isascii():
        records.append((b"path", name))
    if len(entry.linkname) > 100 or not entry.linkname.isascii():
        records.append((b"linkpath", entry.linkname))
    if entry.size > _OCTAL_11 and entry.type == tar.REGULAR:
        records.append((b"size", b"%d" % entry.size))
    records += [(key, b"%d" % value) for key, value in ((b"uid", entry.uid), (b"gid", entry.gid)) if value > _OCTAL_7]
    if entry.mtime % _NANO or not 0 <= entry.mtime // _NANO <= _OCTAL_11:
        records.append((b"mtime", _seconds(entry.mtime)))
    records += [(b"SCHILY.xattr." + key, value) for key, value in sorted((entry.xattrs or {}).items())]
    return records


def _seconds(nanoseconds: int) -> bytes:
    whole, fraction = divmod(abs(nanoseconds), _NANO)
    text = f"{whole}.{fraction:09d}".rstrip("0").rstrip(".")
    return f"{'-' if nanoseconds < 0 else ''}{text}".encode()


def _octal(value: int, width: int) -> bytes:
    limit = 8 ** (width - 1)
    return b"%0*o\0" % (width - 1, value if 0 <= value < limit else 0)


def _header(entry: Entry, name: bytes, size: int) -> bytes:
    block = bytearray(
        _HEADER.pack(
            name[:100],
            _octal(entry.mode, 8),
            _octal(entry.uid, 8),
            _octal(entry.gid, 8),
            _octal(size, 12),
            _octal(entry.mtime // _NANO, 12),
            b" " * 8,
            entry.type,
            entry.linkname[:100],
            b"ustar\0",
            b"00",
            b"",
            b"",
            _octal(entry.major, 8),
            _octal(entry.minor, 8),
            b"",
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)

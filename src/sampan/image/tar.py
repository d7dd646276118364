"""A streaming reader of tar archives: ustar, GNU, PAX, star; one pass, no seeking, bounded memory.

POSIX.1-2017 pax, "pax Interchange Format" and "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format" and
"Storing Sparse Files". Names are bytes, as on Linux. It does no I/O of its own and makes no file: see apply.py.

On the import diet: the layer worker is a process of its own. It exists because :mod:`tarfile` takes five times as long.
"""

from __future__ import annotations

import struct
from zlib import adler32

from sampan.errors import Corrupt, Exhausted, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: Name, (mode, uid, gid), (atime, mtime), data.
    Plain = tuple[bytes, tuple[int, int, int], tuple[int, int], memoryview]

BLOCK = 512

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHARACTER = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
_CONTIGUOUS = b"7"
_GNU_SPARSE = b"S"
_GNU_LONG_NAME = b"L"
_GNU_LONG_LINK = b"K"
_PAX = b"x"
_PAX_GLOBAL = b"g"
_SOLARIS_PAX = b"X"
_KNOWN = frozenset((REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
_REFUSED = {
    b"V": "a volume label",
    b"M": "part of a file of several volumes",
    b"D": "a GNU incremental dump",
    b"N": "GNU's old form of long names",
    b"A": "a Solaris access list",
}

#: name mode uid gid size mtime checksum type linkname magic uname+gname major minor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
#: What is to be looked at in a plain file's: name mode+uid+gid size mtime checksum type magic prefix star's mark
_PLAIN = struct.Struct("100s24s12s12s8sc100x8s80x155s8x4s")
_ZEROS = bytes(BLOCK)
#: How many owners and times are remembered, since most headers of an archive say the same.
_REMEMBERED = 4096
#: The most that an extended header or a long name may take.
_EXTENDED_LIMIT = 1 << 20
_SPARSE_LIMIT = 1 << 20
_XATTR = b"SCHILY.xattr."
#: Seconds from the epoch, in either direction, that the kernel's time has no room for.
_TIME_LIMIT = 1 << 62


class Limits:
    """What a layer may ask for before it is taken for an attack.

    Attributes:
        entries: Files, directories, links...
        size: Bytes of the whole expanded archive, and of a sparse file.
        depth: Components of a path.
        ratio: How many times larger than its compressed form it may grow, beyond ``ratio_floor`` bytes. (Deflate can
            at most do 1032.)
        xattrs: Bytes of all extended attributes of one entry.
    """

    __slots__ = ("depth", "entries", "ratio", "ratio_floor", "size", "xattrs")

    def __init__(
        self,
        entries: int = 4_000_000,
        size: int = 256 << 30,
        depth: int = 256,
        ratio: int = 200,
        ratio_floor: int = 1 << 30,
        xattrs: int = 256 << 10,
    ) -> None:
        self.entries = entries
        self.size = size
        self.depth = depth
        self.ratio = ratio
        self.ratio_floor = ratio_floor
        self.xattrs = xattrs

    def check(self, size: int, compressed: int) -> None:
        """See whether ``compressed`` bytes may have become ``size`` ones.

        Raises:
            Exhausted: They may not.
        """
        if size > self.size:
            raise Exhausted(f"layer: expands to more than {self.size} bytes")
        if size > self.ratio_floor and size > self.ratio * compressed:
            raise Exhausted(f"layer: expands to more than {self.ratio} times its size", hint="a decompression bomb?")


class Entry:
    """One member. Times in nanoseconds; ``size`` is that of the file, ``stored`` of its data in the archive."""

    __slots__ = (
        "atime",
        "gid",
        "linkname",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "size",
        "sparse",
        "stored",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = b""
        self.linkname = b""
        self.type = REGULAR
        self.mode = self.uid = self.gid = self.size = self.stored = self.mtime = self.major = self.minor = 0
        self.atime: int | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        #: Pieces (offset, length) of the file that are in the archive, or None if all of it is.
        self.sparse: list[tuple[int, int]] | None = None


class Reader:
    """Reads members one after the other: ``next()``, then ``copy()`` or nothing, then ``next()``...

    Args:
        pull: Gives the next piece of the archive, of any size; empty at its end.
    """

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._buffer = memoryview(b"")
        self._position = 0
        self._left = 0  # data of the present member, with padding
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, tuple[int, int]] = {}

    # ---------------------------------------------------------------- bytes

    def _take(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the archive's end."""
        start = self._position
        end = start + size
        if end <= len(self._buffer):
            self._position = end
            return bytes(self._buffer[start:end])
        parts = [bytes(self._buffer[start:])]
        size -= len(parts[0])
        while size:
            if not self._refill():
                break
            part = bytes(self._buffer[:size])
            self._position = len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _refill(self) -> bool:
        self._buffer = memoryview(self._pull())
        self._position = 0
        return len(self._buffer) > 0

    def _need(self, size: int, what: str) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise Corrupt(f"layer: ends in {what}")
        return data

    def copy(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Hand ``size`` bytes of the present member's data to ``write``, in pieces."""
        if size > self._left:
            raise Corrupt("layer: a sparse file's map claims more data than there is")
        self._left -= size
        while size:
            if self._position == len(self._buffer) and not self._refill():
                raise Corrupt("layer: ends in a file's data")
            piece = self._buffer[self._position : self._position + size]
            write(piece)
            self._position += len(piece)
            size -= len(piece)

    def _skip(self) -> None:
        self.copy(self._left, len)

    def drain(self) -> None:
        """Read the rest of the archive, which is padding."""
        while self._refill():
            pass

    # ---------------------------------------------------------------- members

    def plain(self) -> Iterator[Plain]:
        """The members that come next, as long as they are what most are: small files with ordinary headers.

        Ends before the first that is anything else, is damaged, or is not wholly in memory: :meth:`next` goes on from
        there. It gives what :meth:`next` and :meth:`copy` would, in a fifth of the time.
        """
        if self._left:
            self._skip()
        buffer, position = self._buffer, self._position
        owners, times = self._owners, self._times
        while (start := position + BLOCK) <= len(buffer):
            name, owner, size, time, checksum, kind, magic, prefix, star = _PLAIN.unpack_from(buffer, position)
            length = _plain_size(size, checksum, buffer[position:start]) if kind == REGULAR else -1
            end = start + length
            if length < 0 or end > len(buffer):
                return
            name = name.partition(b"\0")[0]
            if prefix[0] and magic[:6] == b"ustar\0":
                if star == b"tar\0":
                    return
                name = prefix.partition(b"\0")[0] + b"/" + name
            if owner not in owners or time not in times:
                self._remember(owner, time)
            self._position = end
            self._left = -length % BLOCK
            yield name, owners[owner], times[time], buffer[start:end]
            position = end + -length % BLOCK

    def _remember(self, owner: bytes, time: bytes) -> None:
        for remembered in (self._owners, self._times):
            if len(remembered) >= _REMEMBERED:
                remembered.clear()
        self._owners[owner] = (_number(owner[:8]) & 0o7777, _number(owner[8:16]), _number(owner[16:]))
        self._times[time] = (_time(time),) * 2

    def next(self) -> Entry | None:
        """The next member, or None at the end.

        Raises:
            Corrupt: The archive is damaged or cut off.
            Unsupported: A member is of a type that layers don't have.
            Exhausted: An extended header is too large.
        """
        records: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            if self._left:
                self._skip()
            header = self._take(BLOCK)
            if len(header) < BLOCK:
                if header.strip(b"\0") or records or long_name or long_link:
                    raise Corrupt("layer: ends in a header")
                return None
            if header == _ZEROS:
                self.drain()
                return None
            entry, kind = _parse(header)
            if kind in (_PAX, _PAX_GLOBAL, _SOLARIS_PAX, _GNU_LONG_NAME, _GNU_LONG_LINK):
                data = self._extended(entry.stored)
                if kind in (_PAX, _SOLARIS_PAX):
                    records = parse_pax(data)
                elif kind == _GNU_LONG_NAME:
                    long_name = data.rstrip(b"\0")
                elif kind == _GNU_LONG_LINK:
                    long_link = data.rstrip(b"\0")
                # Global records are passed over, as Docker and containerd do.
                continue
            return self._finish(entry, kind, header, records, long_name, long_link)

    def _extended(self, size: int) -> bytes:
        if size > _EXTENDED_LIMIT:
            raise Exhausted(f"layer: an extended header of {size} bytes is more than {_EXTENDED_LIMIT}")
        return self._need(size + -size % BLOCK, "an extended header")[:size]

    def _finish(
        self,
        entry: Entry,
        kind: bytes,
        header: bytes,
        records: list[tuple[bytes, bytes]],
        long_name: bytes,
        long_link: bytes,
    ) -> Entry:
        entry.name = long_name or entry.name
        entry.linkname = long_link or entry.linkname
        sparse: dict[bytes, bytes] = {}
        if records:
            sparse = _apply_pax(entry, records)
        if kind == b"\0":
            kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
        elif kind == _CONTIGUOUS:
            kind = REGULAR
        if kind == _GNU_SPARSE:
            self._old_sparse(entry, header)
            kind = REGULAR
        elif kind not in _KNOWN:
            what = _REFUSED.get(kind, "of an unknown type")
            raise Unsupported(f'layer: entry "{show(entry.name)}" is {what} ({show(kind)})')
        entry.type = kind
        if kind != REGULAR:
            # As Go's archive/tar has it, only files have data: others' sizes are left-overs of old writers.
            entry.size = entry.stored = 0
        self._left = entry.stored + -entry.stored % BLOCK
        if sparse and kind == REGULAR:
            self._pax_sparse(entry, sparse)
        if b"\0" in entry.name or b"\0" in entry.linkname:
            raise Corrupt(f'layer: entry "{show(entry.name)}" has a NUL in its name')
        return entry

    # ---------------------------------------------------------------- sparse files

    def _old_sparse(self, entry: Entry, header: bytes) -> None:
        """GNU's old sparse form: the map is in the header and in blocks that follow it."""
        fields = header[386:482]
        more = header[482]
        size = _number(header[483:495])
        pieces: list[tuple[int, int]] = []
        while True:
            for at in range(0, len(fields) - 23, 24):
                if fields[at] in (0, 0x20):
                    break
                pieces.append((_number(fields[at : at + 12]), _number(fields[at + 12 : at + 24])))
            if not more:
                break
            if len(pieces) > _SPARSE_LIMIT:
                raise Exhausted(f'layer: "{show(entry.name)}" has too many sparse pieces')
            block = self._need(BLOCK, "a sparse file's map")
            fields, more = block[:504], block[504]
        _set_sparse(entry, pieces, size)

    def _pax_sparse(self, entry: Entry, sparse: dict[bytes, bytes]) -> None:
        if name := sparse.get(b"GNU.sparse.name"):
            entry.name = name
        size = _decimal(sparse.get(b"GNU.sparse.realsize") or sparse.get(b"GNU.sparse.size") or b"%d" % entry.size)
        if sparse.get(b"GNU.sparse.major") == b"1":
            numbers = self._sparse_map_in_data(entry)
        else:
            numbers = [_decimal(number) for number in sparse.get(b"GNU.sparse.map", b"").split(b",") if number]
        if len(numbers) % 2:
            raise Corrupt(f'layer: "{show(entry.name)}" has half a sparse piece')
        _set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)), size)

    def _sparse_map_in_data(self, entry: Entry) -> list[int]:
        """GNU's sparse form 1.0: decimal lines at the start of the data, padded to a block."""
        text = b""
        numbers: list[int] = []
        count = -1
        while count < 0 or len(numbers) < 2 * count:
            if self._left < BLOCK:
                raise Corrupt(f'layer: "{show(entry.name)}" has a sparse map without an end')
            self._left -= BLOCK
            entry.stored -= BLOCK
            text += self._need(BLOCK, "a sparse file's map")
            *lines, text = text.split(b"\n")
            for line in lines:
                if count < 0:
                    count = _decimal(line)
                elif len(numbers) < 2 * count:
                    numbers.append(_decimal(line))
            if count > _SPARSE_LIMIT or len(text) > BLOCK * 2:
                raise Exhausted(f'layer: "{show(entry.name)}" has too many sparse pieces')
        return numbers


class Held:
    """A member's data that are in memory, to be copied as :meth:`Reader.copy` does."""

    __slots__ = ("_data",)

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def copy(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Hand the first ``size`` bytes to ``write``, at once."""
        write(self._data[:size])


def show(name: bytes) -> str:
    """A hostile name in a message."""
    return name[:200].decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")


def _parse(header: bytes) -> tuple[Entry, bytes]:
    name, mode, uid, gid, size, mtime, checksum, kind, linkname, magic, major, minor, prefix = _HEADER.unpack(header)
    # The sum of all bytes, the checksum's own counted as blanks. adler32's low half is one more than the sum of the
    # bytes modulo 65521: the same check in a tenth of the time.
    if (adler32(header) & 0xFFFF) != (_number(checksum) - 256 + sum(checksum) + 1) % 65521:
        raise Corrupt("layer: a header's checksum is wrong: not a tar archive, or a damaged one")
    entry = Entry()
    entry.name = name.partition(b"\0")[0]
    entry.linkname = linkname.partition(b"\0")[0]
    entry.mode = _number(mode) & 0o7777
    entry.uid = _number(uid)
    entry.gid = _number(gid)
    entry.size = entry.stored = _size(_number(size))
    entry.mtime = _time(mtime)
    if kind in b"34":
        entry.major = _number(major)
        entry.minor = _number(minor)
    if magic[:6] == b"ustar\0":
        if header[508:] == b"tar\0":
            prefix = prefix[:131]  # star: times follow
        if prefix[0]:
            entry.name = prefix.partition(b"\0")[0] + b"/" + entry.name
    return entry, kind


def _plain_size(size: bytes, checksum: bytes, header: memoryview) -> int:
    """A header's size field if it and the checksum are as most writers write them, and the checksum holds; or -1."""
    size, end = size[:11], size[11]
    digits = checksum[:6]
    if not size.isdigit() or end not in b"\0 " or not digits.isdigit() or checksum[6:] != b"\0 ":
        return -1
    try:
        if (adler32(header) & 0xFFFF) != (int(digits, 8) - 256 + (adler32(checksum) & 0xFFFF)) % 65521:
            return -1
        return int(size, 8)
    except ValueError:
        return -1


def _number(field: bytes) -> int:
    """An octal field, or one in GNU's base 256."""
    text = field[:-1]
    if text.isdigit() and field[-1] in b"\0 ":
        try:
            return int(text, 8)
        except ValueError:
            raise Corrupt("layer: a header has a number that is not octal") from None
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    if not text.isdigit():
        raise Corrupt("layer: a header has a number that is none")
    try:
        return int(text, 8)
    except ValueError:
        raise Corrupt("layer: a header has a number that is not octal") from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Corrupt("layer: an extended header has a number that is none")
    return int(text)


def _size(size: int) -> int:
    if not 0 <= size < 1 << 62:
        raise Corrupt("layer: a header has an impossible size")
    return size


def _time(field: bytes) -> int:
    """A header's time, in nanoseconds."""
    seconds = _number(field)
    if not -_TIME_LIMIT < seconds < _TIME_LIMIT:
        raise Corrupt("layer: a header has an impossible time")
    return seconds * 1_000_000_000


def _set_sparse(entry: Entry, pieces: list[tuple[int, int]], size: int) -> None:
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0:
            raise Corrupt(f'layer: "{show(entry.name)}" has overlapping sparse pieces')
        end = offset + length
    if end > size or _size(size) != size or sum(length for _, length in pieces) > entry.stored:
        raise Corrupt(f'layer: "{show(entry.name)}" has a sparse map that does not fit its size')
    entry.sparse = pieces
    entry.size = size


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a PAX header: ``LENGTH KEY=VALUE\\n`` each."""
    records = []
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        if blank < 0 or not data[position:blank].isdigit():
            if not data[position:].strip(b"\0"):
                break
            raise Corrupt("layer: an extended header is malformed")
        end = position + int(data[position:blank])
        if end > len(data) or end <= blank + 1 or data[end - 1] != 0x0A:
            raise Corrupt("layer: an extended header is malformed")
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise Corrupt("layer: an extended header has a record without a proper key")
        records.append((key, value))
        position = end
    return records


def pax_time(text: bytes) -> int:
    """Seconds with a fraction as nanoseconds; times before 1970 are negative, and the fraction counts downwards."""
    negative = text.startswith(b"-")
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not (whole or fraction) or not (whole + fraction).isdigit() or len(whole) > 18:
        raise Corrupt("layer: an extended header has a time that is none")
    value = int(whole or b"0") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


_PAX_FIELDS = {
    b"mtime": ("mtime", pax_time),
    b"atime": ("atime", pax_time),
    b"uid": ("uid", _decimal),
    b"gid": ("gid", _decimal),
}


def _apply_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Overlay a header's fields with its PAX records; returns what there is about sparseness."""
    sparse: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    for key, value in records:
        if key in _PAX_FIELDS:
            field, convert = _PAX_FIELDS[key]
            setattr(entry, field, convert(value))
        elif key == b"path":
            entry.name = value or entry.name
        elif key == b"linkpath":
            entry.linkname = value or entry.linkname
        elif key == b"size":
            entry.size = entry.stored = _size(_decimal(value))
        elif key.startswith((_XATTR, b"SCHILY.acl.")):
            if entry.xattrs is None:
                entry.xattrs = {}
            entry.xattrs[key.removeprefix(_XATTR)] = value
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pieces.append(value)
        elif key.startswith(b"GNU.sparse."):
            sparse[key] = value
    if pieces:
        sparse[b"GNU.sparse.map"] = b",".join(pieces)
    return sparse

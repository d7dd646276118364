"""Lines of a container's log as the Container Runtime Interface wants them. Does no I/O.

The format (Kubernetes design proposal "CRI: Log management for container stdout/stderr streams"):

    2016-10-06T00:17:09.669794202Z stdout F a whole line
    2016-10-06T00:17:09.669794203Z stderr P the beginning of a line that was too long, or had not ended,
    2016-10-06T00:17:09.669794204Z stderr F and its end

What a container writes may be a gigabyte of short lines, so the encoder does nothing for each line: one
``bytes.replace`` sets the prefix before every line of a read, and all of a read's lines have its time. Only reads that
hold a line over the limit are cut up one by one.
"""

from __future__ import annotations

import os
import time

from sampan.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: As containerd and CRI-O have it.
MAX_LINE = 16 * 1024

_second = -1
_second_text = ""


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 with nine decimals, in UTC: ``2016-10-06T00:17:09.669794202Z``."""
    global _second, _second_text
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    if seconds != _second:
        _second_text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))
        _second = seconds
    return f"{_second_text}{rest:09d}Z".encode()


class Encoder:
    """Log lines of one stream of one container.

    Args:
        stream: ``stdout`` or ``stderr``.
        max_line: Bytes of text after which a line is cut into partial ones.
    """

    __slots__ = ("_full", "_kept", "_partial", "max_line")

    def __init__(self, stream: str, max_line: int = MAX_LINE) -> None:
        self._full = b" " + stream.encode() + b" F "
        self._partial = b" " + stream.encode() + b" P "
        #: The beginning of a line whose end has not been read; shorter than ``max_line``.
        self._kept = b""
        self.max_line = max_line

    def feed(self, data: bytes, now: bytes) -> list[bytes]:
        """Buffers to be written, by one writev(2), for what was just read.

        Args:
            data: The bytes, cut anywhere.
            now: :func:`timestamp` of the read.
        """
        end = data.rfind(b"\n")
        if end < 0:
            self._kept += data
            return self._cut_kept(now) if len(self._kept) > self.max_line else []
        lines = self._kept + data[:end] if self._kept else data[:end]
        self._kept = data[end + 1 :]
        if _has_longer_line(lines, self.max_line):
            buffers = self._cut_lines(lines, now)
        else:
            prefix = now + self._full
            buffers = [prefix, lines.replace(b"\n", b"\n" + prefix), b"\n"]
        if len(self._kept) > self.max_line:
            buffers += self._cut_kept(now)
        return buffers

    def flush(self, now: bytes) -> list[bytes]:
        """Buffers for a last line that was never ended: a partial one, so that no newline is made up."""
        kept, self._kept = self._kept, b""
        return [now, self._partial, kept, b"\n"] if kept else []

    def _cut_kept(self, now: bytes) -> list[bytes]:
        buffers: list[bytes] = []
        prefix = now + self._partial
        size = self.max_line
        # The last piece is kept, even if it is of full size: a newline may be all that is still to come.
        start = 0
        while len(self._kept) - start > size:
            buffers += (prefix, self._kept[start : start + size], b"\n")
            start += size
        self._kept = self._kept[start:]
        return buffers

    def _cut_lines(self, lines: bytes, now: bytes) -> list[bytes]:
        whole = now + self._full
        partial = now + self._partial
        size = self.max_line
        buffers: list[bytes] = []
        for line in lines.split(b"\n"):
            start = 0
            while len(line) - start > size:
                buffers += (partial, line[start : start + size], b"\n")
                start += size
            buffers += (whole, line[start:], b"\n")
        return buffers


def _has_longer_line(lines: bytes, limit: int) -> bool:
    """Whether a line of ``lines`` is longer than ``limit``, in about len/limit steps: each leaps over many lines."""
    start = 0
    length = len(lines)
    while length - start > limit:
        newline = lines.rfind(b"\n", start, start + limit + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False


class Line:
    """A parsed line.

    Args:
        time: As written.
        stream: ``stdout`` or ``stderr``.
        partial: Whether the text goes on in the stream's next line.
        text: What the container wrote, without the newline.
    """

    __slots__ = ("partial", "stream", "text", "time")

    def __init__(self, time: str, stream: str, partial: bool, text: bytes) -> None:
        self.time = time
        self.stream = stream
        self.partial = partial
        self.text = text

    @property
    def content(self) -> bytes:
        """The container's bytes: the text, with the newline that a whole line ended with."""
        return self.text if self.partial else self.text + b"\n"


def parse(line: bytes) -> Line:
    """The parts of a line, given with or without its newline.

    Tags after the first, divided by colons, are ignored as the format demands of readers.

    Raises:
        InvalidInput: It is none.
    """
    parts = line.rstrip(b"\n").split(b" ", 3)
    if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr"):
        raise InvalidInput(f"not a line of a CRI log: {line[:80]!r}")
    tag = parts[2].split(b":", 1)[0]
    if tag not in (b"F", b"P"):
        raise InvalidInput(f"not a tag of a CRI log line: {parts[2][:20]!r}")
    text = parts[3] if len(parts) == 4 else b""
    return Line(parts[0].decode("ascii", "replace"), parts[1].decode(), tag == b"P", text)


def nanoseconds(text: str) -> int:
    """A line's time, RFC 3339 with any zone and up to nine decimals, as nanoseconds since the epoch.

    Raises:
        InvalidInput: It is none.
    """
    import calendar  # dear to import, and readers of times are not on a container's way to its start

    try:
        clock, zone = (text[:-1], 0) if text.endswith(("Z", "z")) else (text[:-6], _zone(text[-6:]))
        whole, _, fraction = clock.partition(".")
        if fraction and not fraction.isdecimal():
            raise ValueError(fraction)
        seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) - zone
        return seconds * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    except (ValueError, IndexError):
        raise InvalidInput(f"not a time: {text[:40]!r}", hint="write 2006-01-02T15:04:05.999999999Z") from None


def _zone(text: str) -> int:
    sign = {"+": 1, "-": -1}[text[0]] if text[0] in "+-" else 0
    if not sign or text[3] != ":":
        raise ValueError(text)
    return sign * (int(text[1:3]) * 3600 + int(text[4:6]) * 60)


def tail_offset(fd: int, lines: int) -> int:
    """Where the last ``lines`` whole lines of a log begin; a line in pieces counts once.

    Args:
        fd: The log file; its position is not used.
        lines: How many; 0 gives the end.
    """
    end = os.fstat(fd).st_size
    if lines <= 0:
        return end
    found = 0
    for offset, line in _backwards(fd, end):
        # Pieces of a line come before its end, so a line begins after the end of the one before it.
        fields = line.split(b" ", 3)
        if len(fields) > 2 and fields[2][:1] == b"P":
            continue
        if found == lines:
            return offset + len(line) + 1
        found += 1
    return 0


def _backwards(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their offsets, the last first; reads 64 KiB at a time."""
    rest = b""
    position = end
    first = True
    while position > 0:
        size = min(65536, position)
        position -= size
        block = os.pread(fd, size, position) + rest
        if first and block.endswith(b"\n"):
            block = block[:-1]
        first = False
        pieces = block.split(b"\n")
        offset = position + len(block)
        for piece in reversed(pieces[1:]):
            offset -= len(piece)
            yield offset, piece
            offset -= 1
        rest = pieces[0]
    if end > 0:
        yield 0, rest

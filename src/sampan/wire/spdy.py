"""SPDY/3.1 frames, as far as Kubernetes' streaming speaks them, with no I/O.

The rules, from "SPDY Protocol, Draft 3.1":

- A control frame is ``1 | version 3 (15 bits) | type (16) | flags (8) | length (24)``; a data frame is
  ``0 | stream (31 bits) | flags (8) | length (24)``. All numbers are big-endian.
- SYN_STREAM opens a stream; odd numbers are the client's, even ones the server's, each side's only ever grow.
  SYN_REPLY accepts it. FLAG_FIN (0x01) on either, or on data, half-closes the sender's side. RST_STREAM ends it.
- Header blocks are pairs of length-prefixed texts, compressed by zlib with the dictionary below; one compressor for
  each direction lives as long as the connection, so that every block must pass through it, wanted or not.
- PING with a number of the other side's parity is answered with the same number.
- WINDOW_UPDATE and SETTINGS are read and left aside: the peers of Kubernetes keep no windows but TCP's.

States of a stream, by who may still send:

    both --- we finish --> peer --- peer finishes --> gone
      \\---- peer finishes --> us --- we finish ----> gone         RST_STREAM: gone at once
"""

import struct
import zlib
from typing import NamedTuple

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset="
    "iso-8859-1,utf-,*,enq=0."
)
#: The draft's compression dictionary (section 2.6.10.1); its Adler-32 is 0xE3C6A7C2.
DICTIONARY = (
    b"".join(struct.pack(">I", len(word)) + word.replace("|", " ").encode() for word in _WORDS.split()) + _TAIL.encode()
)

VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 0x01

PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 1, 3, 5

#: Bounds on what a peer may make us hold: a frame, a header block when expanded, streams open at once.
MAX_FRAME = 1 << 20
MAX_HEADERS = 64 << 10
MAX_STREAMS = 1024


class SpdyError(Exception):
    """The peer broke the protocol; the connection can't go on."""


class Opened(NamedTuple):
    """The peer opened a stream."""

    stream: int
    headers: dict[str, str]
    finished: bool


class Data(NamedTuple):
    """The peer sent data on a stream; empty data comes only with the end."""

    stream: int
    data: bytes
    finished: bool


class Reset(NamedTuple):
    """The peer ended a stream at once."""

    stream: int
    status: int


class Replied(NamedTuple):
    """The peer accepted a stream of ours."""

    stream: int
    headers: dict[str, str]


class GoneAway(NamedTuple):
    """The peer opens and accepts no more streams."""

    last_stream: int


Event = Opened | Data | Reset | Replied | GoneAway


class Connection:
    """One side of a connection: bytes in, events out; calls in, bytes out.

    Args:
        client: Whether this is the side that opens odd streams.
    """

    def __init__(self, *, client: bool = False) -> None:
        self._parity = 1 if client else 0
        self._next = 1 if client else 2
        self._last_peer = 0
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        #: Stream -> [we may send, peer may send].
        self._open: dict[int, list[bool]] = {}
        self._reply = bytearray()

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the peer.

        Returns:
            What they mean; answers that the protocol itself asks for are added to :meth:`pending`.

        Raises:
            SpdyError: The bytes are no SPDY/3.1, or exceed a bound.
        """
        self._buffer += data
        events: list[Event] = []
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if length > MAX_FRAME:
                raise SpdyError(f"a frame of {length} bytes is more than {MAX_FRAME}")
            if len(self._buffer) < 8 + length:
                break
            payload = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            if first >> 31:
                events += self._control(first, flags, payload)
            else:
                events += self._data(first, flags, payload)
        return events

    def pending(self) -> bytes:
        """Bytes owed to the peer by the protocol itself; each is returned once."""
        owed = bytes(self._reply)
        self._reply.clear()
        return owed

    def _control(self, first: int, flags: int, payload: bytes) -> list[Event]:
        version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
        if version != VERSION:
            raise SpdyError(f"version {version} is not {VERSION}")
        if kind == SYN_STREAM:
            return self._syn_stream(flags, payload)
        if kind in (SYN_REPLY, HEADERS):
            return self._syn_reply(kind, flags, payload)
        if kind == RST_STREAM:
            stream, status = _unpack(">II", payload)
            return [Reset(stream, status)] if self._open.pop(stream, None) else []
        if kind == PING:
            (number,) = _unpack(">I", payload)
            if number % 2 != self._parity:
                self._reply += _frame(PING, 0, payload[:4])
            return []
        if kind == GOAWAY:
            (last,) = _unpack(">I", payload)
            return [GoneAway(last & 0x7FFFFFFF)]
        return []

    def _syn_stream(self, flags: int, payload: bytes) -> list[Event]:
        (stream,) = _unpack(">I", payload)
        stream &= 0x7FFFFFFF
        headers = self._headers(payload[10:])
        if stream % 2 == self._parity or stream <= self._last_peer:
            raise SpdyError(f"stream {stream} is out of order")
        self._last_peer = stream
        if len(self._open) >= MAX_STREAMS:
            self._reply += _frame(RST_STREAM, 0, struct.pack(">II", stream, REFUSED_STREAM))
            return []
        self._open[stream] = [True, not flags & FIN]
        return [Opened(stream, headers, bool(flags & FIN))]

    def _syn_reply(self, kind: int, flags: int, payload: bytes) -> list[Event]:
        (stream,) = _unpack(">I", payload)
        headers = self._headers(payload[4:])
        if stream not in self._open:
            return []
        events: list[Event] = [Replied(stream, headers)] if kind == SYN_REPLY else []
        if flags & FIN:
            self._half_close(stream, 1)
            events.append(Data(stream, b"", finished=True))
        return events

    def _data(self, stream: int, flags: int, payload: bytes) -> list[Event]:
        sides = self._open.get(stream)
        if sides is None or not sides[1]:
            return []  # crossed with our reset
        if flags & FIN:
            self._half_close(stream, 1)
        return [Data(stream, payload, bool(flags & FIN))] if payload or flags & FIN else []

    def _half_close(self, stream: int, side: int) -> None:
        sides = self._open[stream]
        sides[side] = False
        if not any(sides):
            del self._open[stream]

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            text = self._inflate.decompress(block, MAX_HEADERS)
        except zlib.error as error:
            raise SpdyError(f"header block: {error}") from error
        if self._inflate.unconsumed_tail:
            raise SpdyError(f"a header block expands to more than {MAX_HEADERS} bytes")
        return _parse_headers(text)

    def open(self, headers: dict[str, str], *, finished: bool = False) -> tuple[int, bytes]:
        """Open a stream: its number, and the bytes that say so."""
        stream, self._next = self._next, self._next + 2
        self._open[stream] = [not finished, True]
        payload = struct.pack(">IIBB", stream, 0, 0, 0) + self._compress(headers)
        return stream, _frame(SYN_STREAM, FIN if finished else 0, payload)

    def accept(self, stream: int, headers: dict[str, str] | None = None) -> bytes:
        """Accept a stream of the peer's."""
        return _frame(SYN_REPLY, 0, struct.pack(">I", stream) + self._compress(headers or {}))

    def send(self, stream: int, data: bytes, *, finished: bool = False) -> bytes:
        """Send data, in frames of bounded size; nothing on a stream that the peer has reset."""
        sides = self._open.get(stream)
        if sides is None or not sides[0]:
            return b""
        frames = bytearray()
        view = memoryview(data)
        while True:
            part, view = view[: MAX_FRAME // 2], view[MAX_FRAME // 2 :]
            last = finished and not view
            frames += struct.pack(">II", stream, (FIN if last else 0) << 24 | len(part)) + part
            if not view:
                break
        if finished:
            self._half_close(stream, 0)
        return bytes(frames) if data or finished else b""

    def reset(self, stream: int, status: int = CANCEL) -> bytes:
        """End a stream at once; nothing when it is gone already."""
        if self._open.pop(stream, None) is None:
            return b""
        return _frame(RST_STREAM, 0, struct.pack(">II", stream, status))

    def _compress(self, headers: dict[str, str]) -> bytes:
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += struct.pack(">I", len(text)) + text
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">II", 1 << 31 | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def _unpack(form: str, payload: bytes) -> tuple[int, ...]:
    if len(payload) < struct.calcsize(form):
        raise SpdyError("a control frame is too short")
    return struct.unpack_from(form, payload)


def _parse_headers(block: bytes) -> dict[str, str]:
    (count,) = _unpack(">I", block)
    place, texts = 4, []
    # Each text takes four bytes at least, so a count beyond that is a lie and not an invitation to loop.
    if count * 8 > len(block):
        raise SpdyError(f"{count} headers don't fit into {len(block)} bytes")
    for _ in range(2 * count):
        (length,) = _unpack(">I", block[place : place + 4])
        text = block[place + 4 : place + 4 + length]
        if len(text) < length:
            raise SpdyError("a header is longer than its block")
        texts.append(text.decode("utf-8", "replace"))
        place += 4 + length
    return {name.lower(): value for name, value in zip(texts[::2], texts[1::2], strict=True)}

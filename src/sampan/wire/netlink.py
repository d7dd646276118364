"""The netlink protocol, without I/O: netlink(7), RFC 3549 section 2.2-2.3, Documentation/userspace-api/netlink.

A message is a 16-byte header (length, type, flags, sequence, port), a family's fixed header, then attributes: 16-bit
length, 16-bit type, value, padding to four bytes. All in the machine's byte order. A request that asks for it is
answered by an NLMSG_ERROR of code 0; a dump by many NLM_F_MULTI messages and one NLMSG_DONE. An error may carry, after
the echoed header, attributes that say in words what was wrong ("extended ack").

Lengths are 16 bits wide and are checked before they are written: a value that does not fit is refused, never cut, so
that no value from outside can spill into an attribute of its own (CVE-2021-43784).

This module is on the path of a container's start: it imports struct and os only.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4
#: Types below this one belong to the protocol itself.
NLMSG_MIN_TYPE = 0x10

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_ECHO = 0x08
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
# Of answers of type NLMSG_ERROR and NLMSG_DONE.
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
_NLA_TYPE_MASK = 0x3FFF

_NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
HEADER_SIZE = _HEADER.size
#: The most bytes an attribute's value can have.
MAX_VALUE = 0xFFFF - _ATTRIBUTE.size
#: A bound of ours on one answer's attributes, far above what the kernel sends.
_MAX_ATTRIBUTES = 4096

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class BadMessage(ValueError):
    """Bytes received are not netlink, or a value to be sent does not fit into it."""


class Message:
    """One message, received."""

    __slots__ = ("body", "flags", "kind", "port", "sequence")

    def __init__(self, kind: int, flags: int, sequence: int, port: int, body: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.sequence = sequence
        self.port = port
        self.body = body


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute.

    Raises:
        BadMessage: ``value`` is longer than the 16-bit length can say.
    """
    size = len(value)
    if size > MAX_VALUE:
        raise BadMessage(f"netlink attribute {kind} of {size} bytes; at most {MAX_VALUE} fit")
    return _ATTRIBUTE.pack(size + 4, kind) + value + _PADDING[size & 3]


def nested(kind: int, *children: bytes) -> bytes:
    """Encode attributes inside one, marked as such."""
    return attribute(kind | NLA_F_NESTED, b"".join(children))


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string.

    Raises:
        BadMessage: A NUL inside would cut the string short.
    """
    if "\0" in value:
        raise BadMessage(f"netlink attribute {kind}: NUL inside a string")
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Encode an 8-bit number."""
    return attribute(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    """Encode a 16-bit number."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number."""
    return attribute(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Encode a 64-bit number."""
    return attribute(kind, struct.pack("=Q", value))


def be32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number in network byte order, as netfilter's families want them."""
    return attribute(kind, struct.pack(">I", value))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Encode one message."""
    size = HEADER_SIZE + len(body)
    if size > 0x7FFFFFFF:
        raise BadMessage(f"netlink message of {size} bytes")
    return _HEADER.pack(size, kind, flags, sequence, 0) + body + _PADDING[size & 3]


def messages(data: bytes) -> Iterator[Message]:
    """Split what one recv(2) gave.

    Raises:
        BadMessage: A length points outside of ``data``.
    """
    offset, end = 0, len(data)
    while end - offset >= HEADER_SIZE:
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if size < HEADER_SIZE or offset + size > end:
            raise BadMessage(f"netlink message at {offset} claims {size} of {end - offset} bytes")
        yield Message(kind, flags, sequence, port, data[offset + HEADER_SIZE : offset + size])
        offset += (size + 3) & ~3
    if offset < end:
        raise BadMessage(f"{end - offset} bytes after the last netlink message")


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, as (type without flags, value)."""
    end = len(data)
    for _ in range(_MAX_ATTRIBUTES):
        if end - offset < 4:
            return
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            raise BadMessage(f"netlink attribute at {offset} claims {size} of {end - offset} bytes")
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    raise BadMessage(f"more than {_MAX_ATTRIBUTES} netlink attributes")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type; of a repeated one the last counts."""
    return dict(each_attribute(data, offset))


def string(value: bytes | None) -> str:
    """Decode a NUL-terminated string; absent is empty."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if value else ""


def number(value: bytes | None) -> int:
    """Decode an unsigned number of the machine's byte order, of any width; absent is 0."""
    if not value:
        return 0
    return int.from_bytes(value[:8], _ORDER)


_ORDER: _Order = "little" if struct.pack("=H", 1) == b"\x01\0" else "big"
if TYPE_CHECKING:
    from typing import Literal

    _Order = Literal["little", "big"]


def failure(answer: Message) -> OSError | None:
    """The error that an NLMSG_ERROR or NLMSG_DONE message reports, with the kernel's own words if it gave any."""
    if len(answer.body) < 4:
        if answer.kind == NLMSG_DONE:
            return None
        raise BadMessage("netlink error message without a code")
    code = _ERROR.unpack_from(answer.body)[0]
    if code >= 0:
        return None
    said = ""
    if answer.flags & NLM_F_ACK_TLVS:
        start = 4
        if answer.kind == NLMSG_ERROR:
            echoed = _HEADER.size
            if not answer.flags & NLM_F_CAPPED and len(answer.body) >= 8:
                echoed = struct.unpack_from("=I", answer.body, 4)[0]
            start += (echoed + 3) & ~3
        if start <= len(answer.body):
            said = string(attributes(answer.body, start).get(_NLMSGERR_ATTR_MSG))
    reason = os.strerror(-code)
    return OSError(-code, f"{reason}: {said}" if said else reason)


class Exchange:
    """Requests sent together, and what is still to come for them.

    Each request gets a sequence number of its own and asks for an acknowledgement; the exchange is complete when each
    has had its acknowledgement, its error or the end of its dump. Answers to other sequences (an earlier exchange that
    was given up) are ignored.
    """

    __slots__ = ("_pending", "answers", "errors", "first", "interrupted")

    def __init__(self, first: int) -> None:
        self.first = first
        self._pending: set[int] = set()
        #: Answers of each request, in the requests' order.
        self.answers: list[list[Message]] = []
        #: The error of each request, or None.
        self.errors: list[OSError | None] = []
        #: The kernel's tables changed during a dump: it may lack entries and should be asked for again.
        self.interrupted = False

    def request(self, kind: int, flags: int, body: bytes, *, ack: bool = True) -> bytes:
        """Encode the next request; with ``ack=False`` (batch begin and end of nftables) no answer is waited for."""
        sequence = (self.first + len(self.answers)) & 0xFFFFFFFF
        self.answers.append([])
        self.errors.append(None)
        if not ack:
            return message(kind, flags | NLM_F_REQUEST, sequence, body)
        self._pending.add(sequence)
        return message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, sequence, body)

    @property
    def complete(self) -> bool:
        """Whether every answer is in."""
        return not self._pending

    def feed(self, data: bytes) -> None:
        """Take in what one recv(2) gave."""
        for answer in messages(data):
            index = (answer.sequence - self.first) & 0xFFFFFFFF
            if index >= len(self.answers):
                continue
            if answer.flags & NLM_F_DUMP_INTR:
                self.interrupted = True
            if answer.kind in (NLMSG_ERROR, NLMSG_DONE):
                self.errors[index] = failure(answer)
                self._pending.discard(answer.sequence)
            elif answer.kind == NLMSG_OVERRUN:
                raise BadMessage("netlink answers were lost")
            elif answer.kind >= NLMSG_MIN_TYPE:
                self.answers[index].append(answer)

    def raise_first(self) -> None:
        """Raise the first request's error there is, if any."""
        for error in self.errors:
            if error is not None:
                raise error

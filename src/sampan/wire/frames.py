"""Frames of the control sockets between a daemon or a command line, the zygote and the monitors. Does no I/O.

Rules:

1. The carrier is a stream socket of the unix domain. A frame is a header of 12 bytes, little endian, and a body.

       u32 length of the body    u32 request id    u8 kind    u8 number of descriptors    u16 zero

2. The body is a JSON object, at most :data:`MAX_BODY` bytes; none at all stands for ``{}``.
3. A ``REQUEST`` is answered by exactly one ``REPLY`` or ``ERROR`` with its id, in any order. An ``EVENT`` carries the
   id of the request that subscribed to it, and comes after that request's reply.
4. Descriptors travel by SCM_RIGHTS with the *first* byte of their frame. The kernel delivers them no later than that
   byte and in order (unix(7)), so a receiver queues what arrives, and each complete frame takes as many from the queue
   as its header says.
5. An ``ERROR`` has ``error`` (name of a class of :mod:`sampan.errors`), ``message``, ``hint`` and, where the class has
   it, ``field``.

A violation is :class:`FrameError`; the connection cannot be used after it.
"""

from __future__ import annotations

import struct

from sampan import errors
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUEST = 0
REPLY = 1
ERROR = 2
EVENT = 3

#: Holds the largest arguments and environment that execve(2) takes on a default stack, with JSON's quoting.
MAX_BODY = 8 * 1024 * 1024
#: Of one frame; the kernel's own bound is SCM_MAX_FD, 253.
MAX_DESCRIPTORS = 16

_HEADER = struct.Struct("<IIBBH")
HEADER_SIZE = _HEADER.size


class FrameError(errors.SampanError):
    """The peer broke the rules of the frames."""


class Frame:
    """One message.

    Args:
        kind: ``REQUEST``, ``REPLY``, ``ERROR`` or ``EVENT``.
        request: Id of the request that it is, answers or follows.
        body: The JSON object.
        descriptors: What came with it; the receiver's to close.
    """

    __slots__ = ("body", "descriptors", "kind", "request")

    def __init__(self, kind: int, request: int, body: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        self.kind = kind
        self.request = request
        self.body = body
        self.descriptors = descriptors


def encode(kind: int, request: int, body: dict[str, Any], descriptors: int = 0) -> bytes:
    """A frame's bytes; ``descriptors`` many are to be sent along with the first of them.

    Raises:
        Exhausted: The body is larger than :data:`MAX_BODY`, or there are too many descriptors.
    """
    text = jsontext.dumps(body).encode("ascii") if body else b""
    if len(text) > MAX_BODY:
        raise errors.Exhausted(f"a control message of {len(text)} bytes exceeds the limit of {MAX_BODY}")
    if descriptors > MAX_DESCRIPTORS:
        raise errors.Exhausted(f"{descriptors} descriptors exceed the limit of {MAX_DESCRIPTORS} for a control message")
    return _HEADER.pack(len(text), request, kind, descriptors, 0) + text


class Decoder:
    """Turns what is read from the socket into frames: :meth:`feed`, then :meth:`next` until it returns ``None``."""

    __slots__ = ("_buffer", "_descriptors", "_header")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self._header: tuple[int, int, int, int, int] | None = None

    def feed(self, data: bytes, descriptors: list[int] | tuple[int, ...] = ()) -> None:
        """Take what one recvmsg(2) returned."""
        self._buffer += data
        self._descriptors.extend(descriptors)

    def next(self) -> Frame | None:
        """The next complete frame.

        Raises:
            FrameError: The bytes break the rules.
        """
        if self._header is None:
            if len(self._buffer) < HEADER_SIZE:
                return None
            self._header = _checked(_HEADER.unpack_from(self._buffer))
        length, request, kind, count, _ = self._header
        end = HEADER_SIZE + length
        if len(self._buffer) < end:
            return None
        if len(self._descriptors) < count:
            raise FrameError(f"a control message promises {count} descriptors, {len(self._descriptors)} came")
        body = _parse(bytes(self._buffer[HEADER_SIZE:end]))
        del self._buffer[:end]
        self._header = None
        taken = tuple(self._descriptors[:count])
        del self._descriptors[:count]
        return Frame(kind, request, body, taken)

    @property
    def idle(self) -> bool:
        """Whether no part of a frame is waiting for the rest."""
        return not self._buffer

    def steal_descriptors(self) -> list[int]:
        """What arrived and belongs to no complete frame, for the owner of a broken connection to close."""
        taken, self._descriptors = self._descriptors, []
        return taken


def _checked(header: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int]:
    length, _, kind, count, zero = header
    if kind > EVENT or zero:
        raise FrameError(f"a control message of unknown kind {kind}")
    if length > MAX_BODY or count > MAX_DESCRIPTORS:
        raise FrameError(f"a control message of {length} bytes and {count} descriptors is over the limits")
    return header


def _parse(text: bytes) -> dict[str, Any]:
    if not text:
        return {}
    try:
        body = jsontext.loads(text)
    except ValueError as error:
        raise FrameError(f"a control message is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise FrameError("a control message is not a JSON object")
    return body


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as the body of an ``ERROR`` frame.

    What is not of the domain keeps its text under ``SampanError``: the peer can do no more with it than show it.
    """
    if isinstance(error, errors.SampanError):
        body: dict[str, Any] = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        if isinstance(error, errors.InvalidInput) and error.field:
            body["field"] = error.field
        if isinstance(error, errors.StageFailed):
            body.update(stage=error.stage, errno=error.errno, path=error.path)
        return body
    if isinstance(error, OSError):
        return {"error": "SampanError", "message": str(error), "hint": ""}
    return {"error": "SampanError", "message": f"{type(error).__name__}: {error}", "hint": ""}


class RemoteFailure(errors.StageFailed):
    """A system call failed in the process at the other end.

    Args:
        body: What the other end told of it.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        message = str(body.get("message", "an error without a message"))
        errors.SampanError.__init__(self, message, hint=str(body.get("hint", "")))
        number = body.get("errno")
        self.stage = str(body.get("stage", message))
        self.errno = number if isinstance(number, int) else None
        self.path = str(body.get("path", ""))


class RemoteProgramFailure(RemoteFailure, errors.ProgramFailed):
    """The same of a container's program."""


class RemoteRefusal(RemoteFailure, errors.ValueRefused):
    """The same of a value that the kernel does not take."""


def restore_error(body: dict[str, Any]) -> errors.SampanError:
    """The exception that an ``ERROR`` frame tells of."""
    name = str(body.get("error", ""))
    message = str(body.get("message", "an error without a message"))
    hint = str(body.get("hint", ""))
    if name in {"StageFailed", "RemoteFailure"}:
        return RemoteFailure(body)
    if name in {"ProgramFailed", "RemoteProgramFailure"}:
        return RemoteProgramFailure(body)
    if name in {"ValueRefused", "RemoteRefusal"}:
        return RemoteRefusal(body)
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.SampanError)):
        return errors.SampanError(message, hint=hint)
    restored: errors.SampanError = kind(message, hint=hint)
    if isinstance(restored, errors.InvalidInput):
        restored.field = str(body.get("field", ""))
    return restored

"""The talk between the runtime and the container's init while it is being set up.

A pair of SOCK_SEQPACKET sockets, one message a packet: a letter and fields. Both ends are one program and one
version, forked from each other, so the form is the interpreter's own (marshal). The child's end is
close-on-exec: the parent reads end-of-file when the child has become another program.
"""

from __future__ import annotations

# The C module: the socket module would bring enum, re and selectors, 10 ms of a cold start.
import _socket
import marshal
import os
import sys

from sampan.errors import ProgramFailed, StageFailed, ValueRefused
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The child failed: (errno, text, stage, path, hint, whole message, kind).
FAILED = "F"
#: An intermediate process made the init: (pid,).
BORN = "B"
#: The child is in its user namespace without mappings, and waits.
MAP = "M"
#: The environment exists and nothing is pivoted yet: prestart and createRuntime hooks run now.
ENVIRONMENT = "E"
#: The terminal's master, as a descriptor beside the message.
CONSOLE = "C"
#: The listener of a seccomp filter: (its number in the process that loaded the filter, whether it may be sent
#: otherwise), or a descriptor beside the message.
LISTENER = "L"
#: The child is about to execute its program; end-of-file follows when it has.
READY = "X"
#: Limits may be set on the child now.
LIMITS = "R"
#: Something was done less well than asked: (text,).
WARNING = "W"
#: The child's steps: (rows,).
TRACE = "T"
#: The parent has done what the child waits for.
GO = "G"
#: The parent cannot take the listener itself: it is to be sent beside a message.
BESIDE = "D"

_SIZE = 1 << 17
_KINDS = {kind.__name__: kind for kind in (StageFailed, ProgramFailed, ValueRefused)}


class Channel:
    """One end."""

    __slots__ = ("_end",)

    def __init__(self, end: _socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two joined ends, both close-on-exec."""
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        left, right = _socket.socketpair(_socket.AF_UNIX, kind)
        return cls(left), cls(right)

    @property
    def fd(self) -> int:
        """The descriptor, -1 when closed."""
        return self._end.fileno()

    def set_patience(self, milliseconds: int) -> None:
        """Have :meth:`receive` give up after so long (SO_RCVTIMEO of socket(7))."""
        seconds, rest = divmod(milliseconds, 1000)
        interval = seconds.to_bytes(8, sys.byteorder) + (rest * 1000).to_bytes(8, sys.byteorder)
        self._end.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, interval)

    def close(self) -> None:
        """Let go of this end; a second call does nothing."""
        self._end.close()

    def send(self, letter: str, *fields: Any, fd: int = -1) -> None:
        """Send one message, with a descriptor beside it."""
        beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        self._end.sendmsg([marshal.dumps((letter, fields))], beside, _socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[str, tuple[Any, ...], int]:
        """The next message: letter, fields, and the descriptor beside it or -1. The letter is empty at the end.

        Raises:
            BlockingIOError: None has come for as long as :meth:`set_patience` said.
        """
        try:
            data, beside, _, _ = self._end.recvmsg(_SIZE, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return "", (), -1
        fd = -1
        for level, kind, content in beside:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fd = int.from_bytes(content[:4], sys.byteorder)
        if not data:
            return "", (), -1
        letter, fields = marshal.loads(data)
        return letter, fields, fd

    def silent(self) -> bool:
        """Whether there is no message now, nor the end."""
        try:
            self._end.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False

    def drain(self) -> None:
        """Forget the messages that are there."""
        while True:
            try:
                data, beside, _, _ = self._end.recvmsg(
                    _SIZE, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
                )
            except OSError:
                return
            for _, _, content in beside:
                os.close(int.from_bytes(content[:4], sys.byteorder))
            if not data:
                return

    def ask(self, letter: str, *fields: Any, fd: int = -1) -> None:
        """Send a message and wait until the other side has done what it asks."""
        self.send(letter, *fields, fd=fd)
        if self.receive()[0] != GO:
            # The runtime died or gave up: nobody is there who could start this container.
            os._exit(1)

    def offer_listener(self, number: int, *, beside: bool) -> None:
        """Have the other side take the listener of the filter that the caller has just loaded, and hand it on.

        The filter may send any call but write(2) to that very listener, and the caller would wait for an agent that
        does not have it yet. So nothing else is called here until the other side has heard of it.

        Args:
            number: The listener.
            beside: The filter leaves alone what sends it beside a message, where the other side may not take it.
        """
        os.write(self._end.fileno(), marshal.dumps((LISTENER, (number, beside))))
        reply = self.receive()[0]
        if reply == BESIDE:
            self.ask(LISTENER, fd=number)
        elif reply != GO:
            os._exit(1)

    def fail(self, error: BaseException) -> None:
        """Tell the other side why this one ends."""
        hint, message = getattr(error, "hint", ""), ""
        kind = type(error).__name__ if isinstance(error, StageFailed) else ""
        if isinstance(error, OSError):
            path = os.fsdecode(error.filename) if error.filename else ""
            fields = (error.errno or 0, error.strerror or str(error), trace.stage, trace.path or path, hint)
        elif isinstance(error, StageFailed):
            fields = (error.errno or 0, "", error.stage, error.path, hint)
            message = error.message
        else:
            fields = (0, f"{type(error).__name__}: {error}", trace.stage, trace.path, hint)
        try:
            if trace.enabled():
                self.send(TRACE, trace.take())
            self.send(FAILED, *fields, message, kind)
        except OSError:  # nobody listens any more
            pass


def error_of(fields: tuple[Any, ...]) -> StageFailed:
    """The error that a FAILED message tells of."""
    number, text, stage, path, hint, message, kind = fields
    error = _KINDS.get(kind, StageFailed)(stage, OSError(number, text), path=path, hint=hint)
    if message:
        error.message = message
    return error

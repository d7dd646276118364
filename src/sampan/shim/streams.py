"""Writing to and reading from descriptors that are somebody else's too, without ever waiting for them.

A client of the monitor passes its pipes, sockets or terminal. Their O_NONBLOCK belongs to the open file and is shared
with the client, its parent, perhaps its user's shell, so it must not be set. In its place: a pipe or a terminal is
opened once more (a new open file on the same pipe, proc(5) on /proc/PID/fd), and a socket is used with MSG_DONTWAIT.
"""

from __future__ import annotations

import _socket
import os

from sampan.shim import loop as events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.shim.loop import Loop, Timer

READ_SIZE = 65536
#: Bytes that may wait for a reader that is slower than the writer, before the writer has to wait.
BACKLOG = 256 * 1024
#: Seconds without a byte taken after which a client with a full backlog is given up.
PATIENCE = 10.0

_S_IFMT = 0o170000
_S_IFSOCK = 0o140000
_S_IFIFO = 0o010000
_S_IFCHR = 0o020000
_PTMX = os.makedev(5, 2)


def private(fd: int, mode: int) -> tuple[int, _socket.socket | None]:
    """``fd``, or what replaces it, for use without waiting; and the socket that it is, if it is one.

    Args:
        fd: Becomes the result's, or is closed.
        mode: ``os.O_RDONLY`` or ``os.O_WRONLY``.
    """
    status = os.fstat(fd)
    kind = status.st_mode & _S_IFMT
    if kind == _S_IFSOCK:
        return fd, _socket.socket(fileno=fd)
    if kind == _S_IFCHR and status.st_rdev == _PTMX:
        os.set_blocking(fd, False)  # a pty's master: opening it again would make another pty
        return fd, None
    if kind in (_S_IFIFO, _S_IFCHR):
        try:
            again = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            # A pipe without a reader (ENXIO), or a terminal of another mount namespace. What is written next tells.
            os.set_blocking(fd, False)
            return fd, None
        os.close(fd)
        return again, None
    return fd, None


class Sink:
    """Where bytes are to go, with a bounded backlog.

    Args:
        loop: The event loop.
        fd: Becomes the sink's.
        on_gone: Called once, with a reason, when it was closed by its reader or given up; not by :meth:`close`.
        patience: Seconds after which a reader that takes nothing is given up; 0 is never.
    """

    __slots__ = (
        "_closing",
        "_loop",
        "_on_gone",
        "_on_room",
        "_patience",
        "_pending",
        "_socket",
        "_timer",
        "fd",
    )

    def __init__(self, loop: Loop, fd: int, on_gone: Callable[[str], None], *, patience: float = PATIENCE) -> None:
        self._loop = loop
        self._on_gone = on_gone
        self._patience = patience
        self._pending = bytearray()
        self._on_room: list[Callable[[], None]] = []
        self._timer: Timer | None = None
        self._closing = False
        self.fd, self._socket = private(fd, os.O_WRONLY)

    @property
    def full(self) -> bool:
        """Whether whoever writes should wait for :meth:`when_room`."""
        return len(self._pending) >= BACKLOG

    def send(self, data: bytes) -> None:
        """Write, or keep for later; never fails, never waits."""
        if self.fd < 0 or self._closing:
            return
        if self._pending:
            self._pending += data
        else:
            taken = self._write(data)
            if taken < 0 or taken == len(data):
                return
            self._pending += data[taken:]
            try:
                self._loop.watch(self.fd, events.WRITABLE, self._flush)
            except PermissionError:  # a regular file, which can't be waited for: it took less since its disk is full
                self._gone("it takes no more")
                return
        if self.full and self._patience and self._timer is None:
            self._timer = self._loop.later(self._patience, lambda: self._gone("it took nothing for too long"))

    def when_room(self, call: Callable[[], None]) -> None:
        """Call once when the backlog is no longer full, or the sink is gone."""
        self._on_room.append(call)

    def finish(self) -> None:
        """Close when the backlog is written; a reader that takes nothing is given up as before."""
        if self.fd < 0 or self._closing:
            return
        if not self._pending:
            self.close()
            return
        self._closing = True
        if self._timer is None and self._patience:
            self._timer = self._loop.later(self._patience, self.close)

    def close(self) -> None:
        """Close at once; a second call does nothing."""
        if self.fd < 0:
            return
        self._loop.forget(self.fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending.clear()
        fd, self.fd = self.fd, -1
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(fd)
        self._notify()

    def _flush(self, _: int) -> None:
        taken = self._write(bytes(self._pending[:READ_SIZE]))
        if taken <= 0:
            return
        del self._pending[:taken]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.later(self._patience, self.close) if self._closing else None
        if not self._pending:
            self._loop.forget(self.fd)
            if self._closing:
                self.close()
                return
        if not self.full:
            self._notify()

    def _write(self, data: bytes) -> int:
        """Bytes taken; -1 if the sink is gone."""
        try:
            if self._socket is not None:
                return self._socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._gone(error.strerror or "an error")
            return -1

    def _gone(self, reason: str) -> None:
        if self.fd >= 0:
            self.close()
            self._on_gone(reason)

    def _notify(self) -> None:
        calls, self._on_room = self._on_room, []
        for call in calls:
            call()


class Source:
    """Where bytes come from, on their way into a sink.

    Args:
        loop: The event loop.
        fd: Becomes the source's.
        sink: Reading pauses while it is full.
        on_end: Called once at the end of the stream, not by :meth:`close`.
    """

    __slots__ = ("_loop", "_on_end", "_sink", "_socket", "fd")

    def __init__(self, loop: Loop, fd: int, sink: Sink, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._sink = sink
        self._on_end = on_end
        self.fd, self._socket = private(fd, os.O_RDONLY)
        self._resume()

    def close(self) -> None:
        """A second call does nothing."""
        if self.fd < 0:
            return
        self._loop.forget(self.fd)
        fd, self.fd = self.fd, -1
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(fd)

    def hang_up(self) -> None:
        """Its writer is gone: pass on what is there and the sink takes, and end."""
        while self.fd >= 0 and not self._sink.full and self._take():
            pass
        if self.fd >= 0:
            self._end()

    def _resume(self) -> None:
        if self.fd < 0:
            return
        try:
            self._loop.watch(self.fd, events.READABLE, self._read)
        except PermissionError:  # a regular file or /dev/null is always ready, and epoll does not take it
            self._loop.later(0, lambda: self._read(events.READABLE))

    def _read(self, _: int) -> None:
        if self.fd < 0:
            return
        if not self._take():
            return
        if self._sink.full:
            self._loop.forget(self.fd)
            self._sink.when_room(self._resume)
        elif not self._loop.watches(self.fd):
            self._resume()

    def _take(self) -> bool:
        """Pass on some; whether there was something."""
        if self._sink.fd < 0:
            self._end()
            return False
        try:
            if self._socket is not None:
                data = self._socket.recv(READ_SIZE, _socket.MSG_DONTWAIT)
            else:
                data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        self._sink.send(data)
        return True

    def _end(self) -> None:
        self.close()
        self._on_end()

"""A container's output on its way to the log and to attached clients."""

from __future__ import annotations

import os
import time

from sampan.shim import loop as events
from sampan.shim.streams import READ_SIZE, Sink
from sampan.wire import crilog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.shim.logfile import LogFile
    from sampan.shim.loop import Loop

#: Bytes read at most from one stream when its container has ended, before anybody is told of the end.
_DRAIN = 4 * 1024 * 1024
#: Seconds between looks at a pty whose last user closed it while the container lives.
_PTY_PAUSE = 0.05


class Output:
    """One stream of one container: the reading end of a pipe, or a pty's master.

    Args:
        loop: The event loop.
        fd: Not blocking; becomes the output's.
        encoder: Makes log lines of it.
        log: Where they go.
        on_end: Called once when there is nothing more to come.
        tty: Whether ``fd`` is a pty's master, whose reads fail while nobody has the other side open.
    """

    __slots__ = ("_encoder", "_log", "_loop", "_on_end", "_sinks", "_tty", "closing", "fd")

    def __init__(
        self,
        loop: Loop,
        fd: int,
        encoder: crilog.Encoder,
        log: LogFile,
        on_end: Callable[[], None],
        *,
        tty: bool = False,
    ) -> None:
        self._loop = loop
        self.fd = fd
        self._encoder = encoder
        self._log = log
        self._on_end = on_end
        self._tty = tty
        self._sinks: list[Sink] = []
        #: The container has ended: a pty without users is now a stream at its end.
        self.closing = False
        os.set_blocking(fd, False)
        loop.watch(fd, events.READABLE, self._read)

    def add(self, sink: Sink) -> None:
        """Copy what comes from now on to ``sink`` too."""
        self._sinks.append(sink)

    def remove(self, sink: Sink) -> None:
        """No longer copy to ``sink``; no error if it was never added."""
        if sink in self._sinks:
            self._sinks.remove(sink)

    def drain(self) -> None:
        """Read what is there now, slow clients or not: the container has ended."""
        self.closing = True
        left = _DRAIN
        while self.fd >= 0 and left > 0:
            got = self._take()
            if got <= 0:
                return
            left -= got

    def close(self) -> None:
        """Flush the last line to the log and end; a second call does nothing."""
        if self.fd < 0:
            return
        self._loop.forget(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._log.write(self._encoder.flush(crilog.timestamp(time.time_ns())))
        self._on_end()

    def _read(self, _: int) -> None:
        self._take()
        for sink in self._sinks:
            if sink.full and self.fd >= 0:
                # The container waits for its slowest client, as it would for a pipe's reader; the client is given
                # up if it takes nothing, so this ends.
                self._loop.forget(self.fd)
                sink.when_room(self._resume)
                return

    def _resume(self) -> None:
        if self.fd >= 0:
            self._loop.watch(self.fd, events.READABLE, self._read)

    def _take(self) -> int:
        """Copy one read; bytes read, 0 if there are none now, -1 at the end."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:
            if self._tty and not self.closing:  # EIO: the program closed its terminal, and may open it again
                self._loop.forget(self.fd)
                self._loop.later(_PTY_PAUSE, self._resume)
                return 0
            data = b""
        if not data:
            self.close()
            return -1
        self._log.write(self._encoder.feed(data, crilog.timestamp(time.time_ns())))
        for sink in tuple(self._sinks):
            sink.send(data)
        return len(data)

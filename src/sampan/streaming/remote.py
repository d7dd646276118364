"""One exec or attach session: a client's channels joined to a process's descriptors, in one thread and one poll loop.

Each side's reading stops while what the other side has not taken exceeds a bound, so that neither a slow client nor a
process that doesn't read can make us hold its peer's output.
"""

import json
import os
import select
import time
from typing import NamedTuple, Protocol

from sampan.errors import SampanError
from sampan.streaming.channels import RESIZE, STDERR, STDIN, STDOUT, Channels, Said, Wanted
from sampan.streaming.link import HIGH_WATER, Link

_CHUNK = 1 << 16
#: Seconds for a client to open its channels; seconds that output may come after the process's end.
CREATION_TIME = 30.0
DRAIN_TIME = 2.0


class Process(Protocol):
    """What a session is joined to: a command, or a container's own first process."""

    #: Readable at the process's end; or -1.
    ended: int

    def resize(self, width: int, height: int) -> None:
        """Tell its pty a size."""

    def outcome(self) -> int:
        """Its exit code, once it has ended."""

    def abandon(self) -> None:
        """The client has gone."""


class Ends(NamedTuple):
    """Our ends of the process's streams; -1 for one that is not wanted. With a pty both are its master."""

    stdin: int
    stdout: int
    stderr: int


def status(code: int, *, version: str) -> bytes:
    """The outcome of a process as the error channel carries it: nothing for success before version 4."""
    if version[:2] not in ("v4", "v5"):
        return b"" if code == 0 else f"command terminated with non-zero exit code: {code}".encode()
    if code == 0:
        return b'{"metadata":{},"status":"Success"}'
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": causes},
        }
    ).encode()


def failure(error: SampanError, *, version: str) -> bytes:
    """An error of ours as the error channel carries it."""
    if version[:2] not in ("v4", "v5"):
        return str(error).encode()
    return json.dumps(
        {"metadata": {}, "status": "Failure", "message": str(error), "reason": "InternalError", "code": 500}
    ).encode()


def await_channels(link: Link, channels: Channels) -> list[Said] | None:
    """Wait until the client has opened its channels; what it said meanwhile, or None if it gave up or took too long."""
    said: list[Said] = []
    deadline = time.monotonic() + CREATION_TIME
    poll = select.poll()
    poll.register(link.sock, select.POLLIN)
    while True:
        heard = channels.receive()
        if heard is None:
            return None
        said += heard
        if channels.ready:
            return said
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None


class Session:
    """The join itself.

    Args:
        link: The client's connection.
        channels: Its channels, all open.
        process: What it is joined to.
        ends: Our ends of the process's streams; closed by the session.
        wanted: Which of them the client has.
    """

    def __init__(self, link: Link, channels: Channels, process: Process, ends: Ends, wanted: Wanted) -> None:
        self._link = link
        self._channels = channels
        self._process = process
        self._wanted = wanted
        self._stdin = ends.stdin
        self._outputs = {fd: channel for fd, channel in ((ends.stdout, STDOUT), (ends.stderr, STDERR)) if fd >= 0}
        self._pending = bytearray()
        self._stdin_ends = False
        self._sizes = b""
        for fd in {ends.stdin, ends.stdout, ends.stderr} - {-1}:
            os.set_blocking(fd, False)

    def run(self, said: list[Said]) -> bool:
        """Copy until the process has ended and its output is sent; False when the client went first.

        Args:
            said: What the client said while it opened its channels.
        """
        try:
            self._hear(said)
            return self._loop()
        finally:
            for fd in {self._stdin, *self._outputs} - {-1}:
                os.close(fd)

    def _loop(self) -> bool:
        deadline: float | None = None
        while self._outputs or deadline is None:
            if not self._outputs and self._process.ended < 0:
                return True
            ready = self._poll(deadline, watch_end=deadline is None)
            if not ready and deadline is not None:
                return True
            for fd, _ in ready:
                if fd == self._link.sock.fileno():
                    self._link.flush()
                    said = self._channels.receive()
                    if said is None:
                        return False
                    self._hear(said)
                elif fd == self._process.ended:
                    deadline = time.monotonic() + DRAIN_TIME
                elif fd == self._stdin and fd not in self._outputs:
                    self._feed()
                else:
                    self._take(fd)
                    self._feed()
        return True

    def _poll(self, deadline: float | None, *, watch_end: bool) -> list[tuple[int, int]]:
        poll = select.poll()
        congested = self._link.backlog() > HIGH_WATER
        listening = len(self._pending) <= HIGH_WATER
        poll.register(
            self._link.sock,
            (select.POLLIN if listening else 0) | (select.POLLOUT if self._link.backlog() else 0),
        )
        for fd in self._outputs:
            feed = select.POLLOUT if fd == self._stdin and self._pending else 0
            poll.register(fd, (0 if congested else select.POLLIN) | feed)
        if self._stdin >= 0 and self._stdin not in self._outputs:
            poll.register(self._stdin, select.POLLOUT if self._pending else 0)
        if watch_end and self._process.ended >= 0:
            poll.register(self._process.ended, select.POLLIN)
        return poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)

    def _hear(self, said: list[Said]) -> None:
        for channel, data, finished in said:
            if channel == STDIN and self._stdin >= 0:
                self._pending += data
                self._stdin_ends = self._stdin_ends or finished
            elif channel == RESIZE:
                self._sizes = (self._sizes + data)[-4096:]
                self._resize()
        self._feed()

    def _resize(self) -> None:
        """Sizes come as JSON objects, which may be cut anywhere."""
        decoder = json.JSONDecoder()
        text = self._sizes.decode("utf-8", "replace").lstrip()
        while text:
            try:
                size, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            width, height = (size.get(key) for key in ("Width", "Height")) if isinstance(size, dict) else (None, None)
            if isinstance(width, int) and isinstance(height, int) and 0 < width < 65536 and 0 < height < 65536:
                try:
                    self._process.resize(width, height)
                except SampanError:
                    pass  # it has ended
        self._sizes = text.encode()

    def _feed(self) -> None:
        """Write to the process what the client has typed, as far as it reads."""
        while self._pending and self._stdin >= 0:
            try:
                sent = os.write(self._stdin, memoryview(self._pending)[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._pending.clear()  # the process reads no more
                self._close_stdin()
                return
            del self._pending[:sent]
        if self._stdin_ends:
            self._close_stdin()

    def _close_stdin(self) -> None:
        # A pty's master is the output too: its end would hang the process up.
        if self._stdin >= 0 and self._stdin not in self._outputs:
            os.close(self._stdin)
            self._stdin = -1

    def _take(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the last holder of the pty's other side has closed it
        if data:
            self._channels.send(self._outputs[fd], data)
            return
        del self._outputs[fd]
        if fd == self._stdin:
            self._stdin = -1
        os.close(fd)

"""One exec or attach session: a client's channels joined to a process's descriptors, in one thread and one poll loop.

Each side's reading stops while what the other side has not taken exceeds a bound, so that neither a slow client nor a
process that doesn't read can make us hold its peer's output.
"""

import json
import os
import select
import time
from typing import NamedTuple, Protocol

from sampan.errors import SampanError, TimedOut
from sampan.streaming.channels import RESIZE, STDERR, STDIN, STDOUT, Channels, Said
from sampan.streaming.link import DEAF_WATER, HIGH_WATER, Link, watch

_CHUNK = 1 << 16
#: Seconds for a client to open its channels; seconds that output may come after the process's end.
CREATION_TIME = 30.0
DRAIN_TIME = 2.0
#: Seconds without a byte in either direction after which a session ends: the kubelet's own default. 0: never.
IDLE_TIME = 4 * 3600.0

_FAULTS = select.POLLERR | select.POLLHUP | select.POLLNVAL


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


def await_channels(link: Link, channels: Channels, patience: float = CREATION_TIME) -> list[Said] | None:
    """Wait until the client has opened its channels; what it said meanwhile, or None if it has gone.

    Raises:
        TimedOut: It took longer than ``patience`` seconds.
    """
    said: list[Said] = []
    deadline = time.monotonic() + patience
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
        if left <= 0 or not (link.hidden() or poll.poll(left * 1000)):
            raise TimedOut(f"not all of the streams were opened in {patience:g} s")


class Session:
    """The join itself.

    Args:
        link: The client's connection.
        channels: Its channels, all open.
        process: What it is joined to.
        ends: Our ends of the process's streams; closed by the session.
        idle: Seconds of silence after which it ends; 0: never.
    """

    def __init__(self, link: Link, channels: Channels, process: Process, ends: Ends, idle: float = IDLE_TIME) -> None:
        self._link = link
        self._channels = channels
        self._process = process
        self._idle = idle
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

        Raises:
            TimedOut: Nothing happened for too long.
        """
        try:
            self._hear(said)
            return self._loop()
        finally:
            for fd in {self._stdin, *self._outputs} - {-1}:
                os.close(fd)

    def _loop(self) -> bool:
        # Set once the process has ended: until then, whoever still holds its pipes is heard.
        deadline = None if self._process.ended >= 0 else time.monotonic() + DRAIN_TIME
        while self._outputs or deadline is None:
            congested = self._link.backlog() > HIGH_WATER
            for fd, what in self._poll(deadline, congested=congested):
                if fd == self._link.sock.fileno():
                    if not self._serve_link(what):
                        return False
                elif fd == self._process.ended:
                    deadline = time.monotonic() + DRAIN_TIME
                else:
                    self._serve_stream(fd, what)
            # Time in which the client's slowness kept us from reading doesn't count.
            if deadline is not None and not congested and time.monotonic() >= deadline:
                return True
        return True

    def _poll(self, deadline: float | None, *, congested: bool) -> list[tuple[int, int]]:
        poll = select.poll()
        listening = len(self._pending) <= HIGH_WATER and self._link.backlog() <= DEAF_WATER
        watch(poll, self._link, listening=listening)
        for fd in self._outputs:
            feed = select.POLLOUT if fd == self._stdin and self._pending else 0
            poll.register(fd, (0 if congested else select.POLLIN) | feed)
        if self._stdin >= 0 and self._stdin not in self._outputs:
            poll.register(self._stdin, select.POLLOUT if self._pending else 0)
        if deadline is None:
            poll.register(self._process.ended, select.POLLIN)
        if listening and self._link.hidden():
            return [*poll.poll(0), (self._link.sock.fileno(), select.POLLIN)]
        draining = deadline is not None and not congested
        wait = max(0.0, (deadline or 0.0) - time.monotonic()) if draining else self._idle
        ready = poll.poll(wait * 1000 if draining or wait else None)
        if not ready and not draining:
            raise TimedOut(f"nothing was said on this stream for {self._idle:g} s")
        return ready

    def _serve_link(self, what: int) -> bool:
        """Send what waits, hear what has come; False when the client has gone."""
        self._link.flush()
        if what & select.POLLIN:
            said = self._channels.receive()
            if said is None:
                return False
            self._hear(said)
            return True
        return not what & (select.POLLRDHUP | _FAULTS)

    def _serve_stream(self, fd: int, what: int) -> None:
        if fd in self._outputs and what & (select.POLLIN | _FAULTS):
            self._take(fd)
        if fd == self._stdin:
            if fd not in self._outputs and what & _FAULTS:
                self._pending.clear()  # the process has closed it
                self._close_stdin()
            else:
                self._feed()

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
        text = self._sizes.decode("utf-8", "replace")
        # What stands before an object is no size.
        while text := text[text.find("{") :] if "{" in text else "":
            try:
                size, end = decoder.raw_decode(text)
            except ValueError:
                break
            except RecursionError:
                text = ""
                break
            text = text[end:]
            width, height = size.get("Width"), size.get("Height")
            if isinstance(width, int) and isinstance(height, int) and 0 < width < 65536 and 0 < height < 65536:
                try:
                    self._process.resize(width, height)
                except (SampanError, OSError):
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

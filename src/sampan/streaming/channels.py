"""The channels of an exec or attach, whichever way they travel: SPDY streams, or WebSocket messages with a first byte.

Both follow Kubernetes' remote-command protocol: standard streams, an error channel that carries the outcome once, and
a channel of window sizes. Versions 4 and 5 give the outcome as a JSON Status; 5 adds half-close to WebSocket.
"""

from typing import NamedTuple, Protocol

from sampan.streaming.link import Link
from sampan.wire import spdy

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255

_NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}


class Wanted(NamedTuple):
    """Which standard streams a session has."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def channels(self, protocol: str) -> set[int]:
        """The channels that a client of ``protocol`` opens."""
        chosen = {ERROR}
        chosen |= {STDIN} if self.stdin else set()
        chosen |= {STDOUT} if self.stdout else set()
        chosen |= {STDERR} if self.stderr and not self.tty else set()
        # Sizes came with version 3.
        chosen |= {RESIZE} if self.tty and protocol[:2] in ("v3", "v4", "v5") else set()
        return chosen


class Said(NamedTuple):
    """Something a client said on a channel."""

    channel: int
    data: bytes
    finished: bool


class Channels(Protocol):
    """A client's channels."""

    @property
    def ready(self) -> bool:
        """Whether every channel that the client opens is open."""

    def receive(self) -> list[Said] | None:
        """What the client says; None when it has gone."""

    def send(self, channel: int, data: bytes) -> None:
        """Send data on a channel."""

    def finish(self, outcome: bytes) -> None:
        """Send the outcome on the error channel, and end every channel."""


class SpdyChannels:
    """Channels as SPDY streams, named by their ``streamtype`` header.

    Args:
        link: The connection.
        expected: The channels that the client will open.
    """

    def __init__(self, link: Link, expected: set[int]) -> None:
        self._link = link
        self._expected = expected
        self._spdy = spdy.Connection()
        self._channel_of: dict[int, int] = {}
        self._stream_of: dict[int, int] = {}

    @property
    def ready(self) -> bool:
        """See :class:`Channels`."""
        return self._expected <= self._stream_of.keys()

    def receive(self) -> list[Said] | None:
        """See :class:`Channels`."""
        messages = self._link.read()
        if messages is None:
            return None
        try:
            events = [event for data in messages for event in self._spdy.receive(data)]
        except spdy.SpdyError:
            return None
        said = [item for event in events for item in self._handle(event)]
        self._link.write(self._spdy.pending())
        return said

    def _handle(self, event: spdy.Event) -> list[Said]:
        if isinstance(event, spdy.Opened):
            channel = _NAMES.get(event.headers.get("streamtype", ""), -1)
            if channel not in self._expected or channel in self._stream_of:
                self._link.write(self._spdy.reset(event.stream, spdy.REFUSED_STREAM))
                return []
            self._channel_of[event.stream] = channel
            self._stream_of[channel] = event.stream
            self._link.write(self._spdy.accept(event.stream))
            return [Said(channel, b"", finished=True)] if event.finished else []
        if isinstance(event, spdy.Data) and event.stream in self._channel_of:
            return [Said(self._channel_of[event.stream], event.data, event.finished)]
        if isinstance(event, spdy.Reset) and event.stream in self._channel_of:
            return [Said(self._channel_of[event.stream], b"", finished=True)]
        return []

    def send(self, channel: int, data: bytes) -> None:
        """See :class:`Channels`."""
        stream = self._stream_of.get(channel)
        if stream is not None:
            self._link.write(self._spdy.send(stream, data))

    def finish(self, outcome: bytes) -> None:
        """See :class:`Channels`."""
        for channel in (STDOUT, STDERR, ERROR, STDIN, RESIZE):
            stream = self._stream_of.get(channel)
            if stream is not None:
                data = outcome if channel == ERROR else b""
                self._link.write(self._spdy.send(stream, data, finished=True))


class WebSocketChannels:
    """Channels as WebSocket messages whose first byte is the channel.

    Args:
        link: The connection.
        expected: The channels that there are; they need no opening.
    """

    def __init__(self, link: Link, expected: set[int]) -> None:
        self._link = link
        self._expected = expected
        # The kubelet's server speaks first, on the lowest channel that it writes, and some clients wait for that.
        link.write(bytes((min(expected & {STDOUT, STDERR, ERROR}),)))

    @property
    def ready(self) -> bool:
        """See :class:`Channels`: nothing has to be opened."""
        return True

    def receive(self) -> list[Said] | None:
        """See :class:`Channels`."""
        messages = self._link.read()
        if messages is None:
            return None
        said = []
        for message in messages:
            if len(message) == 2 and message[0] == CLOSE:
                said.append(Said(message[1], b"", finished=True))
            elif len(message) > 1:
                said.append(Said(message[0], message[1:], finished=False))
        return said

    def send(self, channel: int, data: bytes) -> None:
        """See :class:`Channels`."""
        if channel in self._expected and data:
            self._link.write(bytes((channel,)) + data)

    def finish(self, outcome: bytes) -> None:
        """See :class:`Channels`."""
        if outcome:
            self._link.write(bytes((ERROR,)) + outcome)

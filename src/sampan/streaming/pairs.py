"""What the client of a port-forward says, whichever way it travels: connections opened, their bytes, their ends.

Two ways: pairs of SPDY streams, one for data and one for errors, opened for each connection; and the older WebSocket
protocol ``v4.channel.k8s.io``, with two channels for each port that the request names and one connection to each.
"""

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from sampan.streaming.link import Link
from sampan.wire import spdy

#: Connections of one client at once.
MOST = 512
#: Seconds for the second stream of a pair to follow the first, and bytes that may come before it.
CREATION_TIME = 30.0
MOST_EARLY = 1 << 20


class What(Enum):
    """Kinds of :class:`Heard`."""

    OPEN = "open"
    DATA = "data"
    END = "end"
    RESET = "reset"


class Heard(NamedTuple):
    """Something a client said about a connection."""

    name: str
    what: What
    data: bytes = b""
    port: int = 0


class Pairs(Protocol):
    """A client's side of its connections."""

    def receive(self) -> list[Heard] | None:
        """What the client says; None when it has gone."""

    def send(self, name: str, data: bytes) -> None:
        """What the pod has sent on a connection."""

    def end(self, name: str) -> None:
        """The pod sends no more on it; the client still may."""

    def close(self, name: str, error: str = "") -> None:
        """It is over, for this reason if there is one."""

    def overdue(self) -> float | None:
        """Give up pairs that stayed incomplete; seconds until there is more to give up, None if nothing waits."""

    def exhausted(self) -> bool:
        """Whether the client can open no more connections."""


@dataclass
class _Streams:
    """The two streams of one connection."""

    port: int
    since: float
    data: int = -1
    error: int = -1
    #: What came before both were there.
    early: list[Heard] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.data >= 0 and self.error >= 0


class SpdyPairs:
    """Pairs of SPDY streams, joined by their ``requestid`` header.

    Args:
        link: The connection, plain or tunnelled in a WebSocket.
        ports: Ports that may be asked for; empty: any.
        patience: Seconds for the second stream of a pair to follow the first.
    """

    def __init__(self, link: Link, ports: set[int], patience: float = CREATION_TIME) -> None:
        self._link = link
        self._ports = ports
        self._patience = patience
        self._spdy = spdy.Connection()
        self._pairs: dict[str, _Streams] = {}
        self._names: dict[int, str] = {}

    def receive(self) -> list[Heard] | None:
        """See :class:`Pairs`."""
        messages = self._link.read()
        if messages is None:
            return None
        try:
            events = [event for data in messages for event in self._spdy.receive(data)]
        except spdy.SpdyError:
            return None
        heard = [item for event in events for item in self._handle(event)]
        self._link.write(self._spdy.pending())
        return heard

    def _handle(self, event: spdy.Event) -> list[Heard]:
        if isinstance(event, spdy.Opened):
            return self._opened(event)
        if not isinstance(event, (spdy.Data, spdy.Reset)) or event.stream not in self._names:
            return []
        name = self._names[event.stream]
        pair = self._pairs[name]
        if isinstance(event, spdy.Reset):
            complete = pair.complete
            self.close(name)
            return [Heard(name, What.RESET)] if complete else []
        if event.stream != pair.data:
            return []
        said = [Heard(name, What.DATA, event.data)] if event.data else []
        said += [Heard(name, What.END)] if event.finished else []
        if pair.complete:
            return said
        pair.early += said
        if sum(len(item.data) for item in pair.early) > MOST_EARLY:
            self.close(name)
        return []

    def _opened(self, event: spdy.Opened) -> list[Heard]:
        kind, port = event.headers.get("streamtype", ""), _port(event.headers.get("port", ""))
        # Clients of long ago send no requestid, and open the data stream right after the error stream.
        first = event.stream - 2 if kind == "data" else event.stream
        name = event.headers.get("requestid") or f"stream {first}"
        pair = self._pairs.get(name) or _Streams(port, time.monotonic())
        known = name in self._pairs
        allowed = kind in ("data", "error") and port == pair.port > 0 and (not self._ports or port in self._ports)
        if not allowed or (not known and len(self._pairs) >= MOST) or getattr(pair, kind) >= 0:
            self._link.write(self._spdy.reset(event.stream, spdy.REFUSED_STREAM))
            return []
        self._pairs[name] = pair
        self._names[event.stream] = name
        setattr(pair, kind, event.stream)
        self._link.write(self._spdy.accept(event.stream))
        early, ended = pair.early, kind == "data" and event.finished
        early += [Heard(name, What.END)] if ended else []
        if not pair.complete:
            return []
        pair.early = []
        return [Heard(name, What.OPEN, port=port), *early]

    def send(self, name: str, data: bytes) -> None:
        """See :class:`Pairs`."""
        self._link.write(self._spdy.send(self._pairs[name].data, data))

    def end(self, name: str) -> None:
        """See :class:`Pairs`. kubectl keeps its side open until the error stream ends."""
        pair = self._pairs[name]
        self._link.write(self._spdy.send(pair.data, b"", finished=True))
        self._link.write(self._spdy.send(pair.error, b"", finished=True))

    def close(self, name: str, error: str = "") -> None:
        """See :class:`Pairs`."""
        pair = self._pairs.pop(name)
        for stream, data in ((pair.error, error.encode()), (pair.data, b"")):
            self._names.pop(stream, None)
            self._link.write(self._spdy.send(stream, data, finished=True))

    def overdue(self) -> float | None:
        """See :class:`Pairs`."""
        now = time.monotonic()
        waiting = {name: pair.since + self._patience - now for name, pair in self._pairs.items() if not pair.complete}
        for name, left in waiting.items():
            if left <= 0:
                self.close(name, f"the second stream of request {name} did not follow in {self._patience:g} s")
        return min((left for left in waiting.values() if left > 0), default=None)

    def exhausted(self) -> bool:
        """See :class:`Pairs`: there is always another pair."""
        return False


def _port(text: str) -> int:
    good = text.isascii() and text.isdigit() and len(text) <= 5
    return int(text) if good and int(text) < 65536 else 0


class ChannelPairs:
    """Two WebSocket channels for each port, the data's ``2 * n`` and the errors' ``2 * n + 1``; no half-close.

    Each channel starts with the port's number, two bytes, the lower first.

    Args:
        link: The connection.
        ports: The ports, in the request's order.
    """

    def __init__(self, link: Link, ports: list[int]) -> None:
        self._link = link
        self._ports = ports[:127]
        self._open: set[int] = set()
        self._begun = False

    def receive(self) -> list[Heard] | None:
        """See :class:`Pairs`."""
        heard = [] if self._begun else self._begin()
        messages = self._link.read()
        if messages is None:
            return None
        for message in messages:
            number, odd = divmod(message[0] if message else 1, 2)
            if not odd and number in self._open and len(message) > 1:
                heard.append(Heard(str(number), What.DATA, message[1:]))
        return heard

    def _begin(self) -> list[Heard]:
        self._begun = True
        for number, port in enumerate(self._ports):
            for channel in (2 * number, 2 * number + 1):
                self._link.write(bytes((channel,)) + port.to_bytes(2, "little"))
        self._open = set(range(len(self._ports)))
        return [Heard(str(number), What.OPEN, port=port) for number, port in enumerate(self._ports)]

    def send(self, name: str, data: bytes) -> None:
        """See :class:`Pairs`."""
        self._link.write(bytes((2 * int(name),)) + data)

    def end(self, name: str) -> None:
        """See :class:`Pairs`: the protocol has no word for it."""

    def close(self, name: str, error: str = "") -> None:
        """See :class:`Pairs`."""
        self._open.discard(int(name))
        if error:
            self._link.write(bytes((2 * int(name) + 1,)) + error.encode())

    def overdue(self) -> float | None:
        """See :class:`Pairs`."""
        return None

    def exhausted(self) -> bool:
        """See :class:`Pairs`."""
        return self._begun and not self._open

"""A connection that has been upgraded: bytes in and out without blocking, plain or inside WebSocket messages.

A link never blocks before :meth:`Link.close`: what the socket won't take is queued, and :meth:`Link.backlog` lets a
session stop reading from the other side meanwhile.
"""

import select
import socket
import ssl
import time
from typing import Protocol

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

_CHUNK = 1 << 16
#: Bytes waiting to be sent above which nothing more is read from the other side; also the longest message.
HIGH_WATER = 1 << 20
#: Bytes waiting to be sent above which the peer is not heard either: its pings, say, ask for answers.
DEAF_WATER = 4 * HIGH_WATER
#: Seconds that a closing link waits for a peer that takes nothing, and for the peer's own end.
CLOSE_TIME = 10.0
LINGER_TIME = 5.0


class Link(Protocol):
    """What a session sees of its connection."""

    sock: socket.socket

    def read(self) -> list[bytes] | None:
        """What has come: one item for a message (or whatever came, of a plain link); None at the end."""

    def hidden(self) -> bool:
        """Whether something has come that poll() on the socket does not show."""

    def write(self, data: bytes) -> None:
        """Send, or queue what the socket won't take now. On a WebSocket one call is one message."""

    def flush(self) -> None:
        """Send more of what is queued."""

    def backlog(self) -> int:
        """Bytes queued."""

    def close(self) -> None:
        """Say goodbye, send what is queued as long as the peer takes any of it, and close."""


def watch(poll: "select.poll", link: Link, *, listening: bool) -> None:
    """Have ``poll`` report what a session must know of its link: always, that the peer has gone."""
    events = select.POLLRDHUP | (select.POLLOUT if link.backlog() else 0)
    poll.register(link.sock, events | (select.POLLIN if listening else 0))


class PlainLink:
    """Bytes on a socket.

    Args:
        sock: Connected; becomes non-blocking and the link's own.
        early: Bytes that came with the request's end.
    """

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        self.sock = sock
        self._early = early
        self._out = bytearray()
        sock.setblocking(False)

    def read(self) -> list[bytes] | None:
        """See :class:`Link`."""
        early, self._early = self._early, b""
        data = self._receive()
        if data is None:
            return [early] if early else None
        return [part for part in (early, data) if part]

    def _receive(self) -> bytes | None:
        parts = bytearray()
        try:
            # Of TLS a read gives one record at most, so that more is likely to be there.
            while len(parts) < HIGH_WATER:
                data = self.sock.recv(_CHUNK)
                if not data:
                    return bytes(parts) or None
                parts += data
                if len(data) < _CHUNK and not isinstance(self.sock, ssl.SSLSocket):
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            return bytes(parts) or None
        return bytes(parts)

    def hidden(self) -> bool:
        """See :class:`Link`."""
        return bool(self._early) or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0)

    def write(self, data: bytes) -> None:
        """See :class:`Link`."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """See :class:`Link`."""
        while self._out:
            try:
                # OpenSSL wants a write that it has put off again, from the same place and no shorter: as it is here.
                sent = self.sock.send(memoryview(self._out)[:_CHUNK])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                self._out.clear()  # the peer is gone; reading will say so
                return
            del self._out[:sent]

    def backlog(self) -> int:
        """See :class:`Link`."""
        return len(self._out)

    def close(self) -> None:
        """See :class:`Link`."""
        try:
            self._send_the_rest()
            if isinstance(self.sock, ssl.SSLSocket):
                _close_notify(self.sock)
            # Not SSLSocket's own, which forgets the TLS state under a thread that reads.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            self._linger()
        except OSError:
            pass
        self.sock.close()

    def _send_the_rest(self) -> None:
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        while self._out and poll.poll(CLOSE_TIME * 1000):
            self.flush()

    def _linger(self) -> None:
        """Read on, to the peer's end: closing with bytes unread resets, and the peer loses what we sent last."""
        deadline = time.monotonic() + LINGER_TIME
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            if not socket.socket.recv(self.sock, _CHUNK):
                return


def _close_notify(sock: ssl.SSLSocket) -> None:
    try:
        sock.unwrap()
    except (OSError, ValueError):
        pass  # it is sent; the peer's own is not waited for


class WebSocketLink:
    """Binary WebSocket messages on a socket (RFC 6455), after the handshake.

    Args:
        sock: Connected; becomes non-blocking and the link's own.
        early: Bytes that came with the request's end.
    """

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        self._plain = PlainLink(sock, early)
        self._protocol = Connection(ConnectionType.SERVER)
        self._message = bytearray()
        self._over = False
        self.sock = sock

    def read(self) -> list[bytes] | None:
        """See :class:`Link`."""
        received = None if self._over else self._plain.read()
        if received is None:
            return None
        messages: list[bytes] = []
        for data in received:
            self._protocol.receive_data(data)
            if not self._events(messages):
                self._over = True
                return messages or None
        return messages

    def _events(self, messages: list[bytes]) -> bool:
        """Collect whole messages; False when there is no more to come."""
        for event in self._protocol.events():
            if isinstance(event, (BytesMessage, TextMessage)):
                self._message += event.data.encode() if isinstance(event.data, str) else event.data
                if len(self._message) > HIGH_WATER:
                    self._say_goodbye(CloseReason.MESSAGE_TOO_BIG)
                    return False
                if event.message_finished:
                    messages.append(bytes(self._message))
                    self._message.clear()
            elif isinstance(event, Ping):
                if self._protocol.state is ConnectionState.OPEN:
                    self._plain.write(self._protocol.send(event.response()))
            elif isinstance(event, CloseConnection):
                self._say_goodbye(event.code)
                return False
        return True

    def _say_goodbye(self, code: int) -> None:
        if self._protocol.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            self._plain.write(self._protocol.send(CloseConnection(code=code)))

    def hidden(self) -> bool:
        """See :class:`Link`."""
        return self._over or self._plain.hidden()

    def write(self, data: bytes) -> None:
        """See :class:`Link`."""
        if data and self._protocol.state is ConnectionState.OPEN:
            self._plain.write(self._protocol.send(BytesMessage(data=data)))

    def flush(self) -> None:
        """See :class:`Link`."""
        self._plain.flush()

    def backlog(self) -> int:
        """See :class:`Link`."""
        return self._plain.backlog()

    def close(self) -> None:
        """See :class:`Link`."""
        self._say_goodbye(CloseReason.NORMAL_CLOSURE)
        self._plain.close()

"""A connection that has been upgraded: bytes in and out without blocking, plain or inside WebSocket messages."""

import socket
import ssl
from typing import Protocol

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

_CHUNK = 1 << 16
#: Bytes waiting to be sent above which nothing more is read from the other side.
HIGH_WATER = 1 << 20


class Link(Protocol):
    """What a session sees of its connection."""

    sock: socket.socket

    def read(self) -> list[bytes] | None:
        """What has come: one item for a message (or whatever came, of a plain link); None at the end."""

    def write(self, data: bytes) -> None:
        """Send, or queue what the socket won't take now. On a WebSocket one call is one message."""

    def flush(self) -> None:
        """Send more of what is queued."""

    def backlog(self) -> int:
        """Bytes queued."""

    def close(self) -> None:
        """Say goodbye, send what is queued as far as the peer takes it, and close."""


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
        if self._early:
            early, self._early = self._early, b""
            return [early]
        data = self._receive()
        return None if data is None else [data] if data else []

    def _receive(self) -> bytes | None:
        parts = bytearray()
        try:
            # TLS may hold more than poll() can see, so that reading goes on until it would block.
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

    def write(self, data: bytes) -> None:
        """See :class:`Link`."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """See :class:`Link`."""
        while self._out:
            try:
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
        self.sock.settimeout(5)
        try:
            self.sock.sendall(self._out)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.sock.close()


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
        self.sock = sock

    def read(self) -> list[bytes] | None:
        """See :class:`Link`."""
        received = self._plain.read()
        if received is None:
            return None
        messages: list[bytes] = []
        for data in received:
            self._protocol.receive_data(data)
            if not self._events(messages):
                return messages or None
        return messages

    def _events(self, messages: list[bytes]) -> bool:
        """Collect whole messages; False when the peer has closed."""
        for event in self._protocol.events():
            if isinstance(event, (BytesMessage, TextMessage)):
                self._message += event.data.encode() if isinstance(event.data, str) else event.data
                if len(self._message) > HIGH_WATER:
                    return False
                if event.message_finished:
                    messages.append(bytes(self._message))
                    self._message.clear()
            elif isinstance(event, Ping):
                self._plain.write(self._protocol.send(event.response()))
            elif isinstance(event, CloseConnection):
                if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                    self._plain.write(self._protocol.send(event.response()))
                return False
        return True

    def write(self, data: bytes) -> None:
        """See :class:`Link`."""
        if self._protocol.state is ConnectionState.OPEN:
            self._plain.write(self._protocol.send(BytesMessage(data=data)))

    def flush(self) -> None:
        """See :class:`Link`."""
        self._plain.flush()

    def backlog(self) -> int:
        """See :class:`Link`."""
        return self._plain.backlog()

    def close(self) -> None:
        """See :class:`Link`."""
        if self._protocol.state is ConnectionState.OPEN:
            self._plain.write(self._protocol.send(CloseConnection(code=1000)))
        self._plain.close()

"""A client of the streaming endpoints for tests: SPDY and WebSocket, in blocking calls with time-outs."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from sampan.wire import spdy

#: Seconds for anything to come.
PATIENCE = 30.0

NAMES = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}


class Refused(Exception):
    """The server's answer is not 101; the text holds its head and body."""


def connect(url: str, *, context: ssl.SSLContext | None = None) -> socket.socket:
    """A connection to the server of ``url``."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock, server_hostname=parts.hostname) if context else sock


def upgrade(sock: socket.socket, url: str, headers: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Ask for an upgrade: the answer's headers, and what came after them."""
    lines = [f"GET {urlsplit(url).path} HTTP/1.1", "Host: test", "Connection: Upgrade"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(4096)
        if not data:
            break
        answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        while data := sock.recv(4096):
            rest += data
        raise Refused((head + b"\n" + rest).decode())
    fields = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
    return {name.lower(): value for name, _, value in fields}, rest


class Spdy:
    """A connection with SPDY streams.

    Args:
        sock: Upgraded.
        early: What came with the answer.
    """

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        self.sock = sock
        self.protocol = spdy.Connection(client=True)
        #: What has come on each stream, and which have ended.
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.refused: set[int] = set()
        self.closed = False
        self._take(early)

    @classmethod
    def to(cls, url: str, protocol: str, *, context: ssl.SSLContext | None = None) -> Spdy:
        """Connect and upgrade."""
        sock = connect(url, context=context)
        try:
            return cls(sock, upgrade(sock, url, {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol})[1])
        except BaseException:
            sock.close()
            raise

    def open(self, **headers: str) -> int:
        """Open a stream."""
        stream, data = self.protocol.open(headers)
        self.data[stream] = bytearray()
        self._write(data)
        return stream

    def send(self, stream: int, data: bytes, *, finished: bool = False) -> None:
        """Send on a stream."""
        self._write(self.protocol.send(stream, data, finished=finished))

    def until(self, *streams: int, text: bytes = b"") -> None:
        """Receive until the streams have ended, or ``text`` has come on the first."""
        while not self.closed and not self.ended >= set(streams):
            if text and text in self.data[streams[0]]:
                return
            data = self._read()
            self.closed = not data
            self._take(data)

    def _take(self, data: bytes) -> None:
        for event in self.protocol.receive(data):
            if isinstance(event, spdy.Data):
                self.data[event.stream] += event.data
            if isinstance(event, spdy.Reset):
                self.refused.add(event.stream)
            if isinstance(event, spdy.Reset) or (isinstance(event, spdy.Data) and event.finished):
                self.ended.add(event.stream)
        self._write(self.protocol.pending())

    def _write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _read(self) -> bytes:
        return self.sock.recv(1 << 16)

    def close(self) -> None:
        """Go."""
        self.sock.close()


class Messages:
    """A WebSocket with binary messages.

    Args:
        url: Where to.
        protocol: The sub-protocol.
    """

    def __init__(self, url: str, protocol: str, *, context: ssl.SSLContext | None = None) -> None:
        self.sock = connect(url, context=context)
        headers = {
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": protocol,
        }
        try:
            answer, early = upgrade(self.sock, url, headers)
        except BaseException:
            self.sock.close()
            raise
        self.chosen = answer.get("sec-websocket-protocol", "")
        self.protocol = Connection(ConnectionType.CLIENT)
        self.close_code = 0
        self._partial = bytearray()
        self._early = early

    def send(self, message: bytes) -> None:
        """Send one message."""
        self.sock.sendall(self.protocol.send(BytesMessage(data=message)))

    def receive(self) -> list[bytes] | None:
        """The next messages; None at the end."""
        data, self._early = self._early or self.sock.recv(1 << 16), b""
        if not data:
            return None
        self.protocol.receive_data(data)
        messages = []
        for event in self.protocol.events():
            if isinstance(event, BytesMessage):
                self._partial += event.data
                if event.message_finished:
                    messages.append(bytes(self._partial))
                    self._partial.clear()
            if isinstance(event, CloseConnection):
                self.close_code = event.code
                self.sock.sendall(self.protocol.send(event.response()))
                return messages or None
        return messages

    def close(self) -> None:
        """Go."""
        self.sock.close()


class Tunnel(Spdy):
    """SPDY in WebSocket messages."""

    def __init__(self, url: str) -> None:
        self._messages = Messages(url, "SPDY/3.1+portforward.k8s.io")
        self._waiting: list[bytes] = []
        super().__init__(self._messages.sock)

    def _write(self, data: bytes) -> None:
        if data:
            self._messages.send(data)

    def _read(self) -> bytes:
        while not self._waiting:
            received = self._messages.receive()
            if received is None:
                return b""
            self._waiting += received
        return self._waiting.pop(0)


class Remote:
    """Exec or attach, over either transport: channels by name, and the outcome.

    Args:
        url: Where to.
        protocol: ``v4.channel.k8s.io`` and so on.
        streams: Names of the standard streams, and ``resize`` with a terminal.
        websocket: Whether to go by WebSocket.
    """

    def __init__(
        self,
        url: str,
        streams: str = "stdout stderr",
        *,
        protocol: str = "v4.channel.k8s.io",
        websocket: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.received: dict[str, bytearray] = {name: bytearray() for name in NAMES}
        self._spdy: Spdy | None = None
        if websocket:
            self._messages = Messages(url, protocol, context=context)
            self.sock = self._messages.sock
            return
        self._spdy = Spdy.to(url, protocol, context=context)
        self.sock = self._spdy.sock
        self._streams = {name: self._spdy.open(streamType=name) for name in ["error", *streams.split()]}
        self.received = {name: self._spdy.data[stream] for name, stream in self._streams.items()}

    def send(self, name: str, data: bytes) -> None:
        """Send on a channel."""
        if self._spdy is not None:
            self._spdy.send(self._streams[name], data)
        else:
            self._messages.send(bytes((NAMES[name],)) + data)

    def end(self, name: str) -> None:
        """Half-close a channel."""
        if self._spdy is not None:
            self._spdy.send(self._streams[name], b"", finished=True)
        else:
            self._messages.send(bytes((255, NAMES[name])))

    def until(self, text: bytes, name: str = "stdout") -> None:
        """Receive until ``text`` has come."""
        while text not in self.received[name]:
            if not self._receive():
                raise EOFError(f"{text!r} did not come: {self.received}")

    def outcome(self) -> dict[str, Any]:
        """Receive to the end; the Status that came."""
        while self._receive():
            pass
        self.close()
        return dict(json.loads(bytes(self.received["error"])))

    def _receive(self) -> bool:
        if self._spdy is not None:
            self._spdy._take(data := self._spdy._read())
            return bool(data)
        messages = self._messages.receive()
        for message in messages or ():
            names = list(NAMES)
            self.received[names[message[0]]] += message[1:]
        return messages is not None

    def close(self) -> None:
        """Go."""
        self.sock.close()

"""The HTTP request that opens a stream, and its answer: 101 to SPDY or to WebSocket, or a plain refusal."""

import base64
import hashlib
import socket
import time
from typing import NamedTuple

import h11

from sampan.streaming.link import PlainLink

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_REQUEST = 64 << 10
#: Seconds for the whole request to come, however it trickles.
REQUEST_TIME = 10.0

#: Protocols of exec and attach, best first.
REMOTE_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
FORWARD_PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = "SPDY/3.1+" + FORWARD_PROTOCOL
CHANNEL_PROTOCOL = "v4.channel.k8s.io"


class Request(NamedTuple):
    """An opening request."""

    path: str
    headers: dict[str, list[str]]
    #: Bytes that came after it.
    early: bytes

    def listed(self, name: str) -> list[str]:
        """The values of a header that is a comma-separated list, over all its lines."""
        return [item.strip() for line in self.headers.get(name, ()) for item in line.split(",") if item.strip()]

    def wants(self, protocol: str) -> bool:
        """Whether the request asks to be upgraded to ``protocol``."""
        connection = {item.lower() for item in self.listed("connection")}
        return "upgrade" in connection and protocol.lower() in (item.lower() for item in self.listed("upgrade"))


class Refused(Exception):
    """The request can't be served.

    Args:
        status: HTTP status code.
        reason: A line for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def read_request(sock: socket.socket) -> Request:
    """Read one request's head.

    Raises:
        Refused: It is malformed, too large, or too slow.
    """
    deadline = time.monotonic() + REQUEST_TIME
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                data = sock.recv(1 << 14)
                connection.receive_data(data)
                if not data:
                    raise Refused(400, "the request ends too early")
            elif isinstance(event, h11.Request):
                if event.method not in (b"GET", b"POST"):
                    raise Refused(405, "only GET and POST open a stream")
                headers: dict[str, list[str]] = {}
                for name, value in event.headers:
                    headers.setdefault(name.decode().lower(), []).append(value.decode("latin-1"))
                sock.settimeout(REQUEST_TIME)
                return Request(event.target.decode("latin-1"), headers, connection.trailing_data[0])
            else:
                raise Refused(400, "a request was expected")
    except h11.RemoteProtocolError as error:
        raise Refused(error.error_status_hint or 400, str(error)) from error
    except TimeoutError as error:
        raise Refused(408, "the request took too long") from error


def refuse(sock: socket.socket, refusal: Refused) -> None:
    """Answer a request that can't be served, and close."""
    body = (refusal.reason + "\n").encode()
    head = f"HTTP/1.1 {refusal.status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    link = PlainLink(sock)
    link.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    link.close()


def to_spdy(sock: socket.socket, request: Request, supported: tuple[str, ...]) -> str:
    """Answer 101 to SPDY/3.1; the stream protocol agreed on.

    Raises:
        Refused: None of the client's protocols is supported.
    """
    offered = request.listed("x-stream-protocol-version")
    # A client of long ago that names none speaks the first version.
    protocol = next((name for name in supported if name in offered), "" if offered else supported[-1])
    if not protocol:
        raise Refused(403, f"none of the protocols {', '.join(offered)} is one of {', '.join(supported)}")
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"X-Stream-Protocol-Version: " + protocol.encode() + b"\r\n\r\n"
    )
    return protocol


def to_websocket(sock: socket.socket, request: Request, supported: tuple[str, ...]) -> str:
    """Answer 101 to WebSocket (RFC 6455, section 4.2.2); the sub-protocol agreed on, empty for none.

    Raises:
        Refused: The handshake is wrong, or none of the client's protocols is supported.
    """
    keys = [key.strip() for key in request.headers.get("sec-websocket-key", [])]
    if request.listed("sec-websocket-version") != ["13"] or len(keys) != 1 or not _is_key(keys[0]):
        raise Refused(400, "not a WebSocket handshake of version 13")
    offered = request.listed("sec-websocket-protocol")
    protocol = next((name for name in supported if name in offered), "")
    if offered and not protocol:
        raise Refused(403, f"none of the protocols {', '.join(offered)} is one of {', '.join(supported)}")
    digest = base64.b64encode(hashlib.sha1(keys[0].encode() + _GUID, usedforsecurity=False).digest())
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    answer += b"Sec-WebSocket-Accept: " + digest + b"\r\n"
    if protocol:
        answer += b"Sec-WebSocket-Protocol: " + protocol.encode() + b"\r\n"
    sock.sendall(answer + b"\r\n")
    return protocol


def _is_key(text: str) -> bool:
    """Whether this is 16 bytes in base64, as the handshake wants them."""
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except ValueError:
        return False

"""Port forwarding: pairs of SPDY streams, each pair a TCP connection to a port inside the pod.

The session's thread enters the pod's network namespace and stays there until it ends; the client's own socket was
made outside and stays outside.
"""

import errno
import os
import select
import socket
from dataclasses import dataclass, field

from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.streaming.link import HIGH_WATER, Link
from sampan.wire import spdy

_CHUNK = 1 << 16
#: TCP connections of one client at once.
MOST = 512


@dataclass
class _Pair:
    """The two streams of one connection, and the connection."""

    port: int
    data: int = -1
    error: int = -1
    sock: socket.socket | None = None
    connected: bool = False
    outgoing: bytearray = field(default_factory=bytearray)
    #: The client sends no more; the pod sends no more.
    client_done: bool = False
    pod_done: bool = False


class Forward:
    """One client's port-forward session.

    Args:
        link: Its connection, plain or tunnelled in a WebSocket; carries SPDY.
        netns: File of the pod's network namespace; empty: the machine's.
        ports: Ports that were asked for; empty: any.
    """

    def __init__(self, link: Link, netns: str, ports: list[int]) -> None:
        self._link = link
        self._netns = netns
        self._ports = set(ports)
        self._spdy = spdy.Connection()
        self._pairs: dict[str, _Pair] = {}
        self._by_stream: dict[int, tuple[str, _Pair]] = {}

    def run(self) -> None:
        """Forward until the client goes."""
        if self._netns:
            fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
        try:
            while self._turn():
                pass
        finally:
            for pair in list(self._pairs.values()):
                if pair.sock is not None:
                    pair.sock.close()

    def _turn(self) -> bool:
        poll = select.poll()
        backlog = self._link.backlog()
        held = max((len(pair.outgoing) for pair in self._pairs.values()), default=0)
        poll.register(self._link.sock, (select.POLLIN if held < HIGH_WATER else 0) | (select.POLLOUT if backlog else 0))
        owners = {}
        for name, pair in self._pairs.items():
            if pair.sock is not None:
                events = 0 if backlog > HIGH_WATER or pair.pod_done or not pair.connected else select.POLLIN
                events |= select.POLLOUT if pair.outgoing or not pair.connected else 0
                poll.register(pair.sock, events)
                owners[pair.sock.fileno()] = (name, pair)
        for fd, _ in poll.poll():
            if fd in owners:
                self._serve(*owners[fd])
            elif not self._hear():
                return False
        return True

    def _hear(self) -> bool:
        self._link.flush()
        messages = self._link.read()
        if messages is None:
            return False
        try:
            for event in [event for data in messages for event in self._spdy.receive(data)]:
                self._handle(event)
        except spdy.SpdyError:
            return False
        self._link.write(self._spdy.pending())
        return True

    def _handle(self, event: spdy.Event) -> None:
        if isinstance(event, spdy.Opened):
            self._opened(event)
        elif isinstance(event, spdy.Data) and event.stream in self._by_stream:
            name, pair = self._by_stream[event.stream]
            if event.stream == pair.data:
                pair.outgoing += event.data
                pair.client_done = pair.client_done or event.finished
                self._push(name, pair)
        elif isinstance(event, spdy.Reset) and event.stream in self._by_stream:
            self._end(*self._by_stream[event.stream])

    def _opened(self, event: spdy.Opened) -> None:
        headers = event.headers
        kind, port = headers.get("streamtype", ""), headers.get("port", "")
        name = headers.get("requestid") or port
        allowed = port.isascii() and port.isdigit() and 0 < int(port) < 65536
        allowed = allowed and (not self._ports or int(port) in self._ports) and kind in ("data", "error")
        if not allowed or (name not in self._pairs and len(self._pairs) >= MOST):
            self._link.write(self._spdy.reset(event.stream, spdy.REFUSED_STREAM))
            return
        pair = self._pairs.setdefault(name, _Pair(int(port)))
        self._by_stream[event.stream] = (name, pair)
        self._link.write(self._spdy.accept(event.stream))
        if kind == "data":
            pair.data = event.stream
        else:
            pair.error = event.stream
        if pair.data >= 0 and pair.error >= 0 and pair.sock is None:
            self._connect(name, pair)

    def _connect(self, name: str, pair: _Pair) -> None:
        """Begin a connection to the pod's own loopback, IPv4 first."""
        pair.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = pair.sock.connect_ex(("127.0.0.1", pair.port))
        if code not in (0, errno.EINPROGRESS):
            self._refused(name, pair, code)

    def _refused(self, name: str, pair: _Pair, code: int) -> None:
        if pair.sock is not None and pair.sock.family == socket.AF_INET:
            pair.sock.close()
            pair.sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = pair.sock.connect_ex(("::1", pair.port))
            if code in (0, errno.EINPROGRESS):
                return
        text = f"connecting to port {pair.port} in the pod: {os.strerror(code)}"
        self._link.write(self._spdy.send(pair.error, text.encode(), finished=True))
        self._end(name, pair)

    def _serve(self, name: str, pair: _Pair) -> None:
        if pair.sock is None:
            return
        if not pair.connected:
            code = pair.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._refused(name, pair, code)
                return
            pair.connected = True
        self._push(name, pair)
        if pair.sock is not None and not pair.pod_done:
            self._pull(name, pair)

    def _push(self, name: str, pair: _Pair) -> None:
        """Send the pod what the client has sent."""
        while pair.outgoing and pair.connected and pair.sock is not None:
            try:
                sent = pair.sock.send(memoryview(pair.outgoing)[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._end(name, pair)
                return
            del pair.outgoing[:sent]
        if pair.client_done and pair.connected and not pair.outgoing and pair.sock is not None:
            if pair.pod_done:
                self._end(name, pair)
                return
            try:
                pair.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._end(name, pair)

    def _pull(self, name: str, pair: _Pair) -> None:
        """Send the client what the pod has sent."""
        if pair.sock is None:
            return
        try:
            data = pair.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._link.write(self._spdy.send(pair.data, data, finished=not data))
        if not data:
            pair.pod_done = True
            if pair.client_done:
                self._end(name, pair)
            else:
                # Nothing waits for the client's goodbye: kubectl keeps its stream open until the error stream ends.
                self._link.write(self._spdy.send(pair.error, b"", finished=True))

    def _end(self, name: str, pair: _Pair) -> None:
        for stream in (pair.data, pair.error):
            if stream >= 0:
                self._link.write(self._spdy.send(stream, b"", finished=True))
                self._by_stream.pop(stream, None)
        if pair.sock is not None:
            pair.sock.close()
        self._pairs.pop(name, None)

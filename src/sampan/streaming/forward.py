"""Port forwarding: a client's connections, each joined to a TCP connection to a port inside the pod.

The session's thread enters the pod's network namespace and stays there until it ends; the client's own socket was
made outside and stays outside.
"""

import errno
import os
import select
import socket
from dataclasses import dataclass, field

from sampan.errors import StageFailed
from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.streaming.link import DEAF_WATER, HIGH_WATER, Link, watch
from sampan.streaming.pairs import Heard, Pairs, What
from sampan.streaming.remote import IDLE_TIME

_CHUNK = 1 << 16
#: The pod's own loopback, in the order in which it is tried.
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_FAULTS = select.POLLERR | select.POLLHUP | select.POLLNVAL


@dataclass
class _Connection:
    """A connection to a port of the pod."""

    port: int
    sock: socket.socket | None = None
    connected: bool = False
    #: What the client has sent and the pod has not taken.
    outgoing: bytearray = field(default_factory=bytearray)
    #: The client sends no more, and the pod has been told; the pod sends no more.
    client_done: bool = False
    told: bool = False
    pod_done: bool = False
    #: What is left to try, and why the first attempt failed.
    untried: list[tuple[socket.AddressFamily, str]] = field(default_factory=lambda: list(_LOOPBACK))
    fault: int = 0


class Forward:
    """One client's port-forward session.

    Args:
        link: The client's connection.
        pairs: What is said on it.
        netns: File of the pod's network namespace; empty: the machine's.
        idle: Seconds of silence after which it ends; 0: never.
    """

    def __init__(self, link: Link, pairs: Pairs, netns: str, idle: float = IDLE_TIME) -> None:
        self._link = link
        self._pairs = pairs
        self._netns = netns
        self._idle = idle
        self._open: dict[str, _Connection] = {}

    def run(self) -> None:
        """Forward until the client goes, or is silent for too long.

        Raises:
            StageFailed: The pod's network namespace can't be entered.
        """
        if self._netns:
            self._enter()
        try:
            # What came with the request is seen by no poll().
            more = self._hear()
            while more:
                more = self._turn()
        finally:
            for connection in self._open.values():
                if connection.sock is not None:
                    connection.sock.close()

    def _enter(self) -> None:
        try:
            fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
        except OSError as error:
            raise StageFailed("enter the pod's network", error, path=self._netns) from error

    def _turn(self) -> bool:
        """Wait for something and serve it; False when the session is over."""
        poll = select.poll()
        owners = self._register(poll)
        overdue = self._pairs.overdue()
        waits = [seconds for seconds in (overdue, self._idle or None) if seconds is not None]
        hidden = self._listening() and self._link.hidden()
        ready = poll.poll(0 if hidden else min(waits) * 1000 if waits else None)
        if not ready and not hidden and overdue is None:
            return False
        for fd, what in ready:
            if fd in owners:
                self._serve(*owners[fd], what)
            elif not self._serve_link(what):
                return False
        return (not hidden or self._hear()) and not (self._pairs.exhausted() and not self._open)

    def _listening(self) -> bool:
        held = max((len(each.outgoing) for each in self._open.values()), default=0)
        return held < HIGH_WATER and self._link.backlog() <= DEAF_WATER

    def _register(self, poll: "select.poll") -> dict[int, tuple[str, _Connection]]:
        congested = self._link.backlog() > HIGH_WATER
        watch(poll, self._link, listening=self._listening())
        owners = {}
        for name, connection in self._open.items():
            if connection.sock is not None:
                reading = connection.connected and not connection.pod_done and not congested
                writing = bool(connection.outgoing) or not connection.connected
                poll.register(connection.sock, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
                owners[connection.sock.fileno()] = (name, connection)
        return owners

    def _serve_link(self, what: int) -> bool:
        self._link.flush()
        if what & select.POLLIN:
            return self._hear()
        return not what & (select.POLLRDHUP | _FAULTS)

    def _hear(self) -> bool:
        heard = self._pairs.receive()
        for item in heard or ():
            self._handle(item)
        return heard is not None

    def _handle(self, heard: Heard) -> None:
        if heard.what is What.OPEN:
            connection = self._open[heard.name] = _Connection(heard.port)
            self._try_next(heard.name, connection)
            return
        found = self._open.get(heard.name)
        if found is None:
            return
        if heard.what is What.RESET:
            self._forget(heard.name, found)
            return
        found.outgoing += heard.data
        found.client_done = found.client_done or heard.what is What.END
        self._push(heard.name, found)

    def _try_next(self, name: str, connection: _Connection) -> None:
        """Begin a connection to the pod's loopback, at the next address that there is."""
        while connection.untried:
            family, address = connection.untried.pop(0)
            if connection.sock is not None:
                connection.sock.close()
                connection.sock = None
            try:
                connection.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                code = connection.sock.connect_ex((address, connection.port))
            except OSError as error:
                code = error.errno or errno.EIO
            if code in (0, errno.EINPROGRESS):
                return
            connection.fault = connection.fault or code
        text = f"connecting to port {connection.port} in the pod: {os.strerror(connection.fault)}"
        self._end(name, connection, text)

    def _serve(self, name: str, connection: _Connection, what: int) -> None:
        if connection.sock is None:
            return  # ended by what was served before it
        if not connection.connected:
            code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                connection.fault = connection.fault or code
                self._try_next(name, connection)
                return
            connection.connected = True
        if connection.pod_done and what & _FAULTS:
            self._end(name, connection)
            return
        self._push(name, connection)
        if what & (select.POLLIN | _FAULTS) and not connection.pod_done:
            self._pull(name, connection)

    def _push(self, name: str, connection: _Connection) -> None:
        """Send the pod what the client has sent."""
        if connection.sock is None or not connection.connected:
            return
        try:
            while connection.outgoing:
                sent = connection.sock.send(memoryview(connection.outgoing)[:_CHUNK])
                del connection.outgoing[:sent]
            if connection.client_done and not connection.told:
                connection.told = True
                connection.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(name, connection, f"sending to port {connection.port} in the pod: {error.strerror}")
            return
        if connection.told and connection.pod_done:
            self._end(name, connection)

    def _pull(self, name: str, connection: _Connection) -> None:
        """Send the client what the pod has sent."""
        if connection.sock is None:
            return
        try:
            data = connection.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(name, connection, f"receiving from port {connection.port} in the pod: {error.strerror}")
            return
        if data:
            self._pairs.send(name, data)
            return
        connection.pod_done = True
        if connection.told:
            self._end(name, connection)
        else:
            self._pairs.end(name)

    def _end(self, name: str, connection: _Connection, error: str = "") -> None:
        self._pairs.close(name, error)
        self._forget(name, connection)

    def _forget(self, name: str, connection: _Connection) -> None:
        self._open.pop(name, None)
        if connection.sock is not None:
            connection.sock.close()
            connection.sock = None

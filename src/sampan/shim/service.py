"""The control socket of a monitor: connections, requests, replies."""

from __future__ import annotations

import _socket
import os

from sampan.errors import InvalidInput, NotFound, SampanError, StageFailed
from sampan.shim import loop as events
from sampan.shim import sockets
from sampan.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sampan.shim.loop import Loop

#: Bytes that a client may leave unread before it is hung up on.
_MAX_UNREAD = 2 * frames.MAX_BODY


class Call:
    """A request that is being served. It is answered once, now or later.

    Args:
        connection: Where it came from.
        frame: The request; its descriptors are closed after the first serving, unless taken.
    """

    __slots__ = ("_connection", "_request", "body", "descriptors")

    def __init__(self, connection: Connection, frame: frames.Frame) -> None:
        self._connection = connection
        self._request = frame.request
        self.body = frame.body
        self.descriptors = list(frame.descriptors)

    def text(self, name: str, default: str | None = None) -> str:
        """A field that is a string.

        Raises:
            InvalidInput: It is not one, or is missing and has no default.
        """
        value = self.body.get(name, default)
        if not isinstance(value, str):
            raise InvalidInput("must be a string", field=name)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A field that is a number."""
        value = self.body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidInput("must be a number", field=name)
        return value

    def flag(self, name: str) -> bool:
        """A field that is true; absent is false."""
        return self.body.get(name, False) is True

    def document(self, name: str) -> dict[str, Any]:
        """A field that is an object."""
        value = self.body.get(name)
        if not isinstance(value, dict):
            raise InvalidInput("must be an object", field=name)
        return value

    def streams(self) -> dict[str, int]:
        """The passed descriptors by name, as the field ``streams`` lists them; now the caller's to close."""
        names = self.body.get("streams", [])
        known = ("stdin", "stdout", "stderr")
        if not isinstance(names, list) or len(names) != len(self.descriptors) or len(set(names)) != len(names):
            raise InvalidInput("must name each descriptor that is passed", field="streams")
        if any(name not in known for name in names):
            raise InvalidInput(f"must be of {', '.join(known)}", field="streams")
        taken, self.descriptors = self.descriptors, []
        return dict(zip(names, taken, strict=True))

    def reply(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Answer; ``descriptors`` are sent along and closed."""
        self._connection.send(frames.REPLY, self._request, body, descriptors)

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self._connection.send(frames.ERROR, self._request, frames.describe_error(error))

    def event(self, body: dict[str, Any]) -> None:
        """Tell something more, after the answer."""
        self._connection.send(frames.EVENT, self._request, body)

    def on_hangup(self, call: Callable[[], None]) -> None:
        """Call once when the client has gone, or was hung up on."""
        self._connection.on_close.append(call)

    def hang_up(self) -> None:
        """End the connection when all that was sent has been taken."""
        self._connection.finish()


class Connection:
    """One client. Its requests are served in order; replies may overtake each other.

    Args:
        service: What accepted it.
        sock: Becomes the connection's.
    """

    def __init__(self, service: Service, sock: _socket.socket) -> None:
        self._service = service
        self._loop = service.loop
        self._socket = sock
        self._fd = sock.fileno()
        self._decoder = frames.Decoder()
        self._outbox: list[tuple[bytes, list[int]]] = []
        self._unread = 0
        self._finishing = False
        #: The client has not read what was sent; we wait for when there is room again.
        self._held_up = False
        self.on_close: list[Callable[[], None]] = []
        sock.setblocking(False)
        self._loop.watch(self._fd, events.READABLE, self._ready)

    def send(self, kind: int, request: int, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a frame, now or when the client reads; ``descriptors`` are closed after it."""
        if self._fd < 0:
            sockets.close_all(descriptors)
            return
        try:
            data = frames.encode(kind, request, body, len(descriptors))
        except SampanError as error:
            sockets.close_all(descriptors)
            data = frames.encode(frames.ERROR, request, frames.describe_error(error))
            descriptors = ()
        self._outbox.append((data, list(descriptors)))
        self._unread += len(data)
        if len(self._outbox) == 1:
            self._flush()
        if self._unread > _MAX_UNREAD:
            self.close()

    def finish(self) -> None:
        """Close when all is sent."""
        self._finishing = True
        if not self._outbox:
            self.close()

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        if self._fd < 0:
            return
        self._loop.forget(self._fd)
        self._fd = -1
        self._socket.close()
        sockets.close_all(self._decoder.steal_descriptors())
        for _, descriptors in self._outbox:
            sockets.close_all(descriptors)
        self._outbox.clear()
        self._service.connections.discard(self)
        calls, self.on_close = self.on_close, []
        for call in calls:
            call()

    def _ready(self, ready: int) -> None:
        if ready & events.WRITABLE:
            self._flush()
        if ready & (events.READABLE | events.HANGUP) and self._fd >= 0:
            self._read()

    def _read(self) -> None:
        try:
            data, descriptors = sockets.receive(self._socket)
        except BlockingIOError:
            return
        except (OSError, frames.FrameError):
            data, descriptors = b"", []
        if not data:
            self.close()
            return
        self._decoder.feed(data, descriptors)
        try:
            while self._fd >= 0 and (frame := self._decoder.next()) is not None:
                self._service.serve(Call(self, frame))
        except frames.FrameError:
            self.close()

    def _flush(self) -> None:
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                sent = self._socket.sendmsg(
                    [data], sockets.rights(descriptors) if descriptors else [], _socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                self._held_up = True
                self._loop.watch(self._fd, events.READABLE | events.WRITABLE, self._ready)
                return
            except OSError:
                self.close()
                return
            sockets.close_all(descriptors)
            self._unread -= sent
            if sent < len(data):
                self._outbox[0] = (data[sent:], [])
            else:
                del self._outbox[0]
        if self._held_up:
            self._held_up = False
            self._loop.watch(self._fd, events.READABLE, self._ready)
        if self._finishing:
            self.close()


class Service:
    """Accepts clients and gives their requests to operations.

    Args:
        loop: The event loop.
        listener: Becomes the service's.
        find: The operation of a name, or none. Looked for when it is wanted: a table of bound methods would touch
            everything that they refer to, and it would be the monitor's own memory.
    """

    def __init__(
        self,
        loop: Loop,
        listener: _socket.socket,
        find: Callable[[str], Callable[[Call], dict[str, Any] | None] | None],
    ) -> None:
        self.loop = loop
        self._listener = listener
        self._find = find
        self.connections: set[Connection] = set()
        listener.setblocking(False)
        loop.watch(listener.fileno(), events.READABLE, self._accept)

    def adopt(self, sock: _socket.socket) -> None:
        """Serve a client that is connected already."""
        self.connections.add(Connection(self, sock))

    def close(self) -> None:
        """Hang up on everybody."""
        self.stop_listening()
        for connection in tuple(self.connections):
            connection.close()

    def stop_listening(self) -> None:
        """Take no more clients; a second call does nothing."""
        if self._listener.fileno() >= 0:
            self.loop.forget(self._listener.fileno())
            self._listener.close()

    def serve(self, call: Call) -> None:
        """Serve one request; whatever happens, it is answered and its descriptors are not leaked."""
        try:
            name = call.text("op")
            operation = self._find(name)
            if operation is None:
                raise NotFound(f"a monitor has no operation {name!r}")
            body = operation(call)
            if body is not None:
                call.reply(body)
        except SampanError as error:
            call.fail(error)
        except OSError as error:
            call.fail(StageFailed(f"serve {call.body.get('op')!r}", error))
        except Exception as error:  # noqa: BLE001
            call.fail(error)
        finally:
            sockets.close_all(call.descriptors)
            call.descriptors = []

    def _accept(self, _: int) -> None:
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # typeshed lacks it
        except OSError:
            return
        sock = _socket.socket(fileno=fd)
        if sockets.peer_uid(sock) not in (0, os.geteuid()):
            sock.close()
            return
        self.adopt(sock)

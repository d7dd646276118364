"""Unix sockets that carry frames: making and finding them, and sending and receiving with descriptors.

Uses ``_socket``, the C half of ``socket``: the other half costs 7 ms to import and adds enums and selectors.
"""

from __future__ import annotations

import _socket
import os
import select

from sampan.errors import Exhausted, StageFailed, TimedOut, Unavailable
from sampan.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: Seconds that one wait may take: poll(2) counts milliseconds in 31 bits.
_LONGEST = 86_400.0
_INTS = 4  # size of a descriptor in SCM_RIGHTS
_SPACE = _socket.CMSG_SPACE(_INTS * frames.MAX_DESCRIPTORS)
_STREAM = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
READ_SIZE = 65536
#: Fits the kernel's default socket buffer (net.core.wmem_default).
PACKET_SIZE = 160 * 1024


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected stream sockets, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _STREAM, 0)


def packet_pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets that keep a message in one piece, of at most :data:`PACKET_SIZE` bytes; close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)


class _Folder:
    """Names a socket by its folder's descriptor: the address of a unix socket holds only 107 bytes (unix(7))."""

    def __init__(self, path: str) -> None:
        folder, self._name = os.path.split(path)
        self._fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}/{self._name}"

    def __exit__(self, *unused: object) -> None:
        os.close(self._fd)


def listen(path: str) -> _socket.socket:
    """A socket that listens at ``path``, for its owner alone; what a dead process left there is replaced."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _STREAM, 0)
    mask = os.umask(0o177)
    try:
        with _Folder(path) as address:
            listener.bind(address)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def connect(path: str, timeout: float | None = None) -> _socket.socket:
    """A connection to the socket at ``path``.

    Raises:
        Unavailable: Nobody listens there: whoever did has ended.
        TimedOut: Somebody does, and takes no connection now.
        StageFailed: We ourselves can't connect.
    """
    connection = _socket.socket(_socket.AF_UNIX, _STREAM, 0)
    try:
        connection.settimeout(timeout)
        with _Folder(path) as address:
            connection.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        connection.close()
        raise Unavailable(f"no monitor answers at {path}: {error.strerror}") from None
    except (TimeoutError, BlockingIOError):  # its queue is full
        connection.close()
        raise TimedOut(f"the monitor at {path} takes no connection") from None
    except OSError as error:
        connection.close()
        raise StageFailed("connect to the monitor", error, path=path) from None
    return connection


def send(connection: _socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a whole frame on a blocking socket, the descriptors with its first byte."""
    if descriptors:
        sent = connection.sendmsg([data], rights(descriptors), _socket.MSG_NOSIGNAL)
        data = data[sent:]
    if data:
        connection.sendall(data, _socket.MSG_NOSIGNAL)


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The control message that passes descriptors."""
    packed = b"".join(fd.to_bytes(_INTS, "little") for fd in descriptors)
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]


def receive(connection: _socket.socket, size: int = READ_SIZE) -> tuple[bytes, list[int]]:
    """What one recvmsg(2) gives; no bytes at the end of the stream. The descriptors are close-on-exec.

    Raises:
        FrameError: More descriptors came than the kernel could hand over.
    """
    data, control, flags, _ = connection.recvmsg(size, _SPACE, _socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, packed in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += (int.from_bytes(packed[i : i + _INTS], "little") for i in range(0, len(packed) - 3, _INTS))
    if flags & _socket.MSG_CTRUNC:
        close_all(descriptors)
        raise frames.FrameError("descriptors were lost on their way: too many in one message, or too many open")
    return data, descriptors


def peer_uid(connection: _socket.socket) -> int:
    """User id of the process at the other end when it connected (SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")


def close_all(descriptors: Sequence[int]) -> None:
    """Close each of them."""
    for fd in descriptors:
        os.close(fd)


class Channel:
    """One conversation over a blocking socket: a request, its reply, and the events that may follow. One thread's.

    Args:
        connection: Becomes the channel's.
        name: What the peer is called in errors.
        limit: Bytes that a request may have.
    """

    def __init__(self, connection: _socket.socket, name: str, limit: int = frames.MAX_BODY) -> None:
        self._connection = connection
        self._decoder = frames.Decoder()
        self._name = name
        self._limit = limit
        self._last = 0
        #: Whether each request has been answered.
        self.settled = True

    def fileno(self) -> int:
        """To be polled for reading; -1 once closed."""
        return self._connection.fileno()

    def ended(self) -> bool:
        """Whether the peer is known to have ended."""
        poll = select.poll()
        poll.register(self._connection, 0)
        return bool(poll.poll(0))

    def request(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Send a request; returns its id."""
        self._last = (self._last + 1) & 0xFFFFFFFF
        data = frames.encode(frames.REQUEST, self._last, body, len(descriptors))
        if len(data) > self._limit + frames.HEADER_SIZE:
            raise Exhausted(f"a request of {len(data)} bytes to {self._name} exceeds the limit of {self._limit}")
        self.settled = False
        try:
            send(self._connection, data, descriptors)
        except OSError as error:
            raise self._gone(error) from None
        return self._last

    def receive(self, timeout: float | None = None) -> frames.Frame:
        """The next frame.

        Raises:
            TimeoutError: None came in time; the conversation can go on.
            Unavailable: The peer ended.
        """
        left = timeout
        while True:
            frame = self._decoder.next()
            if frame is not None:
                return frame
            try:
                self._connection.settimeout(left if left is None else min(left, _LONGEST))
                data, descriptors = receive(self._connection)
            except TimeoutError:
                if left is None or left <= _LONGEST:
                    raise
                left -= _LONGEST
                continue
            except BlockingIOError:
                raise TimeoutError from None
            except OSError as error:
                raise self._gone(error) from None
            if not data:
                raise self._gone(None)
            self._decoder.feed(data, descriptors)

    def call(self, body: dict[str, Any], descriptors: Sequence[int] = (), timeout: float | None = None) -> frames.Frame:
        """A request and its reply.

        Raises:
            SampanError: The one that the peer answered with.
            TimeoutError: No reply in time; the channel can only be closed then.
        """
        return self.reply_to(self.request(body, descriptors), timeout)

    def reply_to(self, number: int, timeout: float | None = None) -> frames.Frame:
        """The reply to the request that :meth:`request` sent; raises as :meth:`call` does."""
        while True:
            frame = self.receive(timeout)
            if frame.request != number or frame.kind == frames.EVENT:
                close_all(frame.descriptors)
                continue
            self.settled = True
            if frame.kind == frames.ERROR:
                raise frames.restore_error(frame.body)
            return frame

    def hang_up(self) -> None:
        """End the conversation from another thread: whoever waits for a frame is told that the peer ended it."""
        try:
            self._connection.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        close_all(self._decoder.steal_descriptors())
        self._connection.close()

    def _gone(self, error: OSError | None) -> Unavailable:
        reason = f": {error.strerror}" if error is not None else ""
        return Unavailable(f"{self._name} ended the conversation{reason}")

"""An agent of seccomp listeners for tests: it lets every system call go on, and counts them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_CONTINUE = 1


class Notification(ctypes.Structure):
    """``struct seccomp_notif``."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("number", ctypes.c_int),
        ("architecture", ctypes.c_uint32),
        ("pointer", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


class Response(ctypes.Structure):
    """``struct seccomp_notif_resp``."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("value", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


@contextmanager
def agent(path: str) -> Iterator[str]:
    """An agent in a process of its own, listening at ``path``.

    Yields:
        A file with a line for each listener that came, and for each call the line of its number.
    """
    seen = f"{path}.seen"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        os.chmod(path, 0o777)
        server.listen(10)
        pid = os.fork()
        if pid == 0:
            try:
                with open(seen, "w", buffering=1, encoding="ascii") as file:
                    while True:
                        _serve(server, file.write)
            finally:
                os._exit(1)
        try:
            yield seen
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


_listeners: list[int] = []


def _serve(server: socket.socket, tell: Callable[[str], object]) -> None:
    ready, _, _ = select.select([server.fileno(), *_listeners], [], [])
    for one in ready:
        if one == server.fileno():
            with server.accept()[0] as connection:
                _, fds, _, _ = socket.recv_fds(connection, 65536, 1)
            _listeners.extend(fds)
            tell("listener\n")
            continue
        asked = Notification()
        try:
            fcntl.ioctl(one, _RECEIVE, asked)
            tell(f"{asked.number}\n")
            fcntl.ioctl(one, _SEND, Response(id=asked.id, flags=_CONTINUE))
        except OSError:  # who asked has ended
            poll = select.poll()
            poll.register(one, select.POLLIN)
            if any(event & select.POLLHUP for _, event in poll.poll(0)):
                _listeners.remove(one)
                os.close(one)

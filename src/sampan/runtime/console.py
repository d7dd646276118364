"""Handing a terminal, or a pidfd, to whoever asked for it with ``--console-socket`` or ``--pidfd-socket``."""

from __future__ import annotations

import _socket
import os
import sys

from sampan.linux.process import pidfd_open


def send(path: str, fd: int, name: str = "/dev/ptmx") -> None:
    """Send a pty's master over the unix socket at ``path``, with its name as the message, as runc does.

    Raises:
        OSError: Nobody listens there.
    """
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        end.connect(path)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
        end.sendmsg([name.encode()], [rights], _socket.MSG_NOSIGNAL)
    finally:
        end.close()


def send_pidfd(path: str, pid: int, name: str) -> None:
    """Send a pidfd of our child the same way.

    Args:
        path: The unix socket.
        pid: The child, which nobody has reaped.
        name: The message: runc's name for how the process came into the container.

    Raises:
        OSError: Nobody listens there.
    """
    pidfd = pidfd_open(pid)
    try:
        send(path, pidfd, name)
    finally:
        os.close(pidfd)

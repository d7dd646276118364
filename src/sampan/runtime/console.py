"""Handing a terminal to whoever asked for it with ``--console-socket``."""

from __future__ import annotations

import _socket
import sys


def send(path: str, master: int, name: str = "/dev/ptmx") -> None:
    """Send a pty's master over the unix socket at ``path``, with its name as the message, as runc does.

    Raises:
        OSError: Nobody listens there.
    """
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        end.connect(path)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, sys.byteorder))
        end.sendmsg([name.encode()], [rights], _socket.MSG_NOSIGNAL)
    finally:
        end.close()

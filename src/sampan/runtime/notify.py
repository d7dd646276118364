"""Handing the listener of a seccomp filter to the agent that decides for it (``linux.seccomp.listenerPath``)."""

from __future__ import annotations

import _socket
import sys

from sampan.runtime.state import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def send_listener(section: dict[str, Any], fd: int, state: dict[str, Any], pid: int) -> None:
    """Send ``fd`` over the unix socket of ``section``, with the container process state as the message.

    The form is that of the runtime specification ("The Container Process State").

    Raises:
        OSError: Nobody listens there.
    """
    document = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": section.get("listenerMetadata") or "",
        "state": state,
    }
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        end.connect(section.get("listenerPath") or "")
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
        end.sendmsg([dumps(document)], [rights], _socket.MSG_NOSIGNAL)
    finally:
        end.close()

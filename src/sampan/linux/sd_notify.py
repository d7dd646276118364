"""What a service tells its manager (sd_notify(3)): datagrams to the socket that ``NOTIFY_SOCKET`` names."""

from __future__ import annotations

import _socket
import errno
import os
import select

#: Seconds for a manager to take a message, and to read it.
PATIENCE = 5.0


def send(address: str, text: str, fd: int = -1) -> None:
    """Send one message.

    Args:
        address: A path, or an abstract name after ``@``.
        text: Lines of ``NAME=VALUE``.
        fd: A descriptor to go with it, or -1.

    Raises:
        OSError: Nobody listens there; ETIMEDOUT: nobody has read what is there for :data:`PATIENCE` seconds.
    """
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))] if fd >= 0 else []
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    channel.settimeout(PATIENCE)
    try:
        channel.sendmsg([text.encode()], rights, _socket.MSG_NOSIGNAL, _address(address))
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    finally:
        channel.close()


def wait_until_read(address: str) -> None:
    """Wait until the manager has read what was sent, as sd_notify_barrier(3) does, but no longer than it may take.

    Who ends before that is nobody's process any more, and the manager finds no service for its message.

    Raises:
        OSError: As :func:`send` does.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            send(address, "BARRIER=1", writer)
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)
        poll.poll(PATIENCE * 1000)
    finally:
        os.close(reader)


def _address(text: str) -> str:
    return f"\0{text[1:]}" if text.startswith("@") else text

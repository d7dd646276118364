"""A person's terminal joined to a pty in a container: raw mode, window size, detach keys."""

import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Control-P Control-Q, as docker has it.
DETACH_KEYS = b"\x10\x11"
#: What was typed and the container has not taken; a person who pastes more waits, as at any terminal.
_MOST_PENDING = 1 << 20


def window_size(fd: int) -> tuple[int, int]:
    """Width and height of a terminal in characters; (80, 24) where it has none."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 80, 24
    return columns or 80, rows or 24


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """The terminal without line discipline: every key reaches the container; restored at the end."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def relay(container: int, resize: Callable[[int, int], None], *, detaches: bool = True) -> bool:
    """Copy between our terminal and a descriptor of the container until that ends.

    Args:
        container: Pty master, or socket, that carries both directions.
        resize: Called with width and height now, and whenever our terminal changes.
        detaches: Look for the keys that detach; otherwise they go to the container like others.

    Returns:
        False when the person detached.
    """
    changed, notify = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    former = signal.signal(signal.SIGWINCH, lambda *_: os.write(notify, b"w"))
    resize(*window_size(0))
    # A program that does not read its input holds up neither its own output nor the keys that detach.
    os.set_blocking(container, False)
    held = pending = b""
    typing = True
    try:
        with raw(0):
            while True:
                ready = _ready(container, changed, pending, typing=typing)
                if changed in ready:
                    os.read(changed, 64)
                    resize(*window_size(0))
                if ready.get(container, 0) & ~select.POLLOUT and not _copy(container, 1):
                    return True
                if 0 in ready:
                    typed = os.read(0, 4096)
                    typing = bool(typed)
                    held, keep = _detach_filter(held + typed) if detaches else (b"", typed)
                    if keep is None:
                        return False
                    pending += keep
                pending = _send(container, pending)
    finally:
        signal.signal(signal.SIGWINCH, former)
        os.close(changed)
        os.close(notify)


def _ready(container: int, changed: int, pending: bytes, *, typing: bool) -> dict[int, int]:
    """Wait for something to do; only so much is read from our terminal before the container takes it."""
    poll = select.poll()
    poll.register(changed, select.POLLIN)
    poll.register(container, select.POLLIN | (select.POLLOUT if pending else 0))
    if typing and len(pending) < _MOST_PENDING:
        poll.register(0, select.POLLIN)
    return dict(poll.poll())


def _detach_filter(data: bytes) -> tuple[bytes, bytes | None]:
    """What to hold back (the first detach key) and what to send on; None: both keys came."""
    if DETACH_KEYS in data:
        return b"", None
    if data.endswith(DETACH_KEYS[:1]):
        return DETACH_KEYS[:1], data[:-1]
    return b"", data


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, 1 << 16)
    except BlockingIOError:
        return True
    except OSError:
        return False  # EIO: the last holder of the pty's other side has closed it
    _write(target, data)
    return bool(data)


def _send(fd: int, data: bytes) -> bytes:
    """Write what there is room for; what is left."""
    try:
        return data[os.write(fd, data) :] if data else data
    except BlockingIOError:
        return data
    except OSError:
        return b""  # the other side is closed, which reading tells


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

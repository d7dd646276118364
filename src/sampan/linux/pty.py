"""Pseudoterminals: pty(7), and the controlling terminal (ioctl_tty(2))."""

import ctypes
import errno
import fcntl
import os
import stat
import struct

from sampan.linux.mount import DEVPTS_SUPER_MAGIC, filesystem_type
from sampan.linux.syscall import fail, libc

_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCGWINSZ = 0x5413


def unlock(master: int) -> None:
    """Let the slave be opened (unlockpt(3))."""
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))


def peer(master: int) -> int:
    """The slave, opened by its master and not by a name that somebody could have moved (TIOCGPTPEER)."""
    fd: int = libc.ioctl(master, ctypes.c_ulong(_TIOCGPTPEER), ctypes.c_long(os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    if fd < 0:
        raise fail(f"/proc/self/fd/{master}")
    return fd


def is_on_devpts(multiplexer: int) -> bool:
    """Whether a multiplexer (character device 5:2, pts(4)) is the one of a devpts, and no node elsewhere.

    What an image puts in its place must not be taken for one (CVE-2024-21626's kin: the runtime writes to it).

    Raises:
        OSError: The descriptor is of something else.
    """
    status = os.fstat(multiplexer)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(5, 2):
        raise OSError(errno.EINVAL, "not a pty multiplexer")
    return filesystem_type(multiplexer) == DEVPTS_SUPER_MAGIC


def set_controlling(fd: int) -> None:
    """Make the terminal ``fd`` the session's own; the caller leads a session without one."""
    fcntl.ioctl(fd, _TIOCSCTTY, 0)


def resize(fd: int, rows: int, columns: int) -> None:
    """Set the terminal's window size; what runs in it gets SIGWINCH."""
    fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def size(fd: int) -> tuple[int, int]:
    """The terminal's window: rows and columns."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8)))
    return rows, columns

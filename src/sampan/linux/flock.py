"""flock(2): whether anybody holds the lock of a file."""

from __future__ import annotations

import fcntl
import os


def is_free(path: str) -> bool:
    """Whether nobody holds the lock of a file or directory; of one that is not there nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True

"""What workers run in tests: see sampan.storage.worker."""

from __future__ import annotations

import os
import stat
import time

from sampan.errors import Exhausted


def tell(argument: dict[str, object], fds: list[int]) -> dict[str, object]:
    """What the function was given, where it runs, and what it has open."""
    for fd in fds:
        os.write(fd, b"here")
    # The last is that of the listing itself.
    return {
        "argument": argument,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "open": len(os.listdir("/proc/self/fd")) - 1,
    }


def refuse(argument: dict[str, object], fds: list[int]) -> None:
    """Fail as the project's code does."""
    raise Exhausted("there is no more", hint="ask for less")


def crash(argument: dict[str, object], fds: list[int]) -> None:
    """Fail as no code should."""
    raise ZeroDivisionError("oh")


def stay(argument: dict[str, object], fds: list[int]) -> None:
    """Say that it runs, and never return."""
    for fd in fds:
        os.write(fd, b"here")
    while True:
        time.sleep(3600)


def babble(argument: dict[str, object], fds: list[int]) -> None:
    """Write something else than an outcome where it belongs, as one that an image has got hold of could."""
    words = str(argument["words"]).encode() * int(str(argument["times"]))
    for fd in range(3, 32):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, words)
        except OSError:
            continue
    os._exit(0)

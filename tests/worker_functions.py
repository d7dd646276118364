"""What workers run in tests: see sampan.storage.worker."""

from __future__ import annotations

import os
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

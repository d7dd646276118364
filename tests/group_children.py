"""Processes that tests put into control groups, and the end of both."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sampan.cgroup import Group


def spawn(group: Group, work: str = "sleep") -> int:
    """A child in the group that waits to be killed; with ``eat`` it first takes 256 MB of memory."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            group.joiner().join()
            os.write(tell, b"!")
            if work == "eat":
                bytearray(256 << 20)[:: os.sysconf("SC_PAGESIZE")] = b"x" * (256 << 20 >> 12)
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    return pid


def end(group: Group) -> None:
    """Kill what is in the group, collect it, remove the group; no other child of this process may be alive."""
    group.kill()
    reap()
    group.remove()


def reap() -> None:
    """Wait for all children of this process to end."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass

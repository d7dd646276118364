"""Processes that join a container after its first one."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.shim.exits import Exit
    from sampan.shim.loop import Timer


class Exec:
    """One more process in a container.

    Args:
        exec_id: Its name within the container.
        pid: Leader of its session and of its process group.
    """

    __slots__ = ("asked", "ended", "id", "pid", "started_at", "timed_out", "timer", "waiters")

    def __init__(self, exec_id: str, pid: int) -> None:
        self.id = exec_id
        self.pid = pid
        self.started_at = time.time_ns()
        self.ended: Exit | None = None
        self.timed_out = False
        #: Whether anybody was told how it ended.
        self.asked = False
        self.timer: Timer | None = None
        self.waiters: list[Callable[[Exit], None]] = []

    def kill_group(self) -> None:
        """Its time is up: end it and whatever it started that did not leave its process group."""
        self.timed_out = True
        kill_group(self.pid, 9)

    def finish(self, ended: Exit) -> None:
        """It has been reaped."""
        if self.timer is not None:
            self.timer.cancel()
        ended.timed_out = self.timed_out
        ended.started_at = self.started_at
        self.ended = ended
        waiters, self.waiters = self.waiters, []
        self.asked = bool(waiters)
        for tell in waiters:
            tell(ended)


def kill_group(pid: int, signal: int) -> None:
    """Signal a process group; of one that is not (yet) a leader, the process."""
    try:
        os.killpg(pid, signal)
    except ProcessLookupError:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            pass

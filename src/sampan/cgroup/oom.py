"""Being told that a group ran out of memory."""

from __future__ import annotations

import os
import select
import time

from sampan.cgroup.hierarchy import read_pairs, write_file

#: Seconds that v1's signal may be ahead of its count: it is given before a process is chosen and killed.
_LAG = 0.2


class OomWatch:
    """A descriptor to wait on, and the count behind it. The owner closes it.

    A v1 group also signals when it is removed; the count then says that nothing was killed.

    Args:
        fd: To be polled.
        events: What to poll it for: POLLIN of a v1 eventfd, POLLPRI of v2's ``memory.events``.
        count_path: Keyed file in which the kernel counts ``oom_kill``.
        extra: A descriptor that must live as long as the watch.
    """

    __slots__ = ("_count_path", "_extra", "_seen", "events", "fd")

    def __init__(self, fd: int, events: int, count_path: str, extra: int = -1) -> None:
        self.fd = fd
        self.events = events
        self._count_path = count_path
        self._extra = extra
        self._seen = self.kills()

    @classmethod
    def v1(cls, directory: str) -> OomWatch:
        """Watch a v1 memory group (cgroup-v1/memory, "OOM Control")."""
        control = f"{directory}/memory.oom_control"
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            watched = os.open(control, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            raise
        watch = cls(fd, select.POLLIN, control, watched)
        try:
            write_file(f"{directory}/cgroup.event_control", f"{fd} {watched}")
        except BaseException:
            watch.close()
            raise
        return watch

    @classmethod
    def v2(cls, directory: str) -> OomWatch:
        """Watch a v2 group (cgroup-v2, "memory.events")."""
        path = f"{directory}/memory.events"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        watch = cls(fd, select.POLLPRI, path)
        watch.drain()
        return watch

    @property
    def seen(self) -> int:
        """The kills that were counted when it was looked at last."""
        return self._seen

    def drain(self) -> int:
        """Take note of what was signalled, so that the next poll waits; returns the kills counted so far."""
        try:
            if self.events & select.POLLPRI:
                os.pread(self.fd, 4096, 0)
            else:
                os.read(self.fd, 8)
                self._await_count()
        except OSError:
            pass  # nothing was signalled, or the group is gone
        self._seen = self.kills()
        return self._seen

    def _await_count(self) -> None:
        deadline = time.monotonic() + _LAG
        while self.kills() == self._seen and os.path.exists(self._count_path) and time.monotonic() < deadline:
            time.sleep(0.001)  # nothing tells of the count

    def kills(self) -> int:
        """Processes killed so far; 0 of a group that is gone."""
        try:
            return read_pairs(self._count_path).get("oom_kill", 0)
        except OSError:
            return 0

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        for fd in (self.fd, self._extra):
            if fd >= 0:
                os.close(fd)
        self.fd = self._extra = -1

"""What the cgroups of containers and pods say, for whoever asks: a kubelet, its metrics endpoint and people ask alike.

A group's files are kept open from one reading to the next, because opening them takes longer than reading. A list of
usages is told readings of the last second again, each with the time at which it was made.
"""

import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sampan.cgroup import open_group
from sampan.cgroup.usage import Meter

if TYPE_CHECKING:
    from sampan.cgroup.usage import Usage

#: Nanoseconds for which a reading is told again.
_YOUNG = 1_000_000_000
#: Nanoseconds; readings closer together give no meaningful rate.
_SHORTEST = 100_000_000
#: Nanoseconds after which files that nobody reads are closed.
_IDLE = 300_000_000_000
#: Groups that are remembered; far more than a machine has pods.
_MOST = 4096


class Reading(NamedTuple):
    """What a group said.

    Attributes:
        timestamp: When, in nanoseconds since the epoch.
        usage: What it said; the same object as long as nothing changes.
        nano_cores: What it uses of a processor, in billionths.
        since: Time and processor time from which the next rate is counted.
    """

    timestamp: int
    usage: "Usage"
    nano_cores: int | None
    since: tuple[int, int]


class Readings:
    """The last reading of each group. Threads may share one.

    Args:
        systemd: Whether paths may be ``slice:prefix:name``.
    """

    def __init__(self, *, systemd: bool) -> None:
        def meter(path: str) -> Meter:
            return open_group(path, systemd=systemd and not path.startswith("/")).meter()

        self._meters = _Open(meter)
        self._last: dict[str, Reading] = {}

    def take(self, paths: Sequence[str], *, fresh: bool) -> tuple[int, list[Reading | OSError]]:
        """Read groups, one soon after the other; or, unless ``fresh``, tell what was so read within the last second.

        Returns:
            When that began, and what each of them said; an error instead for one that cannot be read, mostly
            ``FileNotFoundError``, since it is gone.
        """
        now = time.time_ns()
        before = [self._last.get(path) for path in paths]
        if not fresh and (young := _young(before, now)):
            return young[0].timestamp, [*young]
        found: list[Reading | OSError] = []
        for path, last in zip(paths, before, strict=True):
            try:
                usage = self._meters.read(path, now, complete=fresh)
            except OSError as error:
                found.append(error)
                continue
            if last is None and len(self._last) >= _MOST:
                self._last.pop(next(iter(self._last.copy())), None)
            reading = self._last[path] = _follow(last, now, usage)
            found.append(reading)
        return now, found

    def forget(self, path: str) -> None:
        """For a group that is gone."""
        self._meters.drop(path)
        self._last.pop(path, None)


def _young(readings: Sequence[Reading | None], now: int) -> list[Reading]:
    """The readings, if all were made together within the last second; else none."""
    first = readings[0] if readings else None
    if first is None or not 0 <= now - first.timestamp < _YOUNG:
        return []
    found = [each for each in readings if each is not None and each.timestamp == first.timestamp]
    return found if len(found) == len(readings) else []


def _follow(last: Reading | None, now: int, usage: "Usage") -> Reading:
    """A reading with the rate since an earlier one."""
    if last is None:
        return Reading(now, usage, None, (now, usage.cpu))
    began, cpu = last.since
    if now - began < _SHORTEST:
        return Reading(now, usage, last.nano_cores, last.since)
    return Reading(now, usage, max(0, (usage.cpu - cpu) * 1_000_000_000 // (now - began)), (now, usage.cpu))


class _Open:
    """Meters of groups by path, with their files open; those that nobody used for long go, and the oldest of too many:
    half of what a process may have open is for them.

    A meter that goes while another thread reads with it is closed when that thread is done.

    Args:
        make: Opens the files of a group.
    """

    def __init__(self, make: Callable[[str], Meter]) -> None:
        self._make = make
        self._most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // (2 * Meter.FILES))
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._swept = 0

    def read(self, path: str, now: int, *, complete: bool) -> "Usage":
        """What the group says; see :meth:`Meter.read`.

        Raises:
            FileNotFoundError: It is not there.
        """
        try:
            return self._get(path, now).read(complete=complete)
        except FileNotFoundError:
            # A group of the same path may have been made since its files were opened: a static pod's, for one.
            self.drop(path)
            return self._get(path, now).read(complete=complete)

    def _get(self, path: str, now: int) -> Meter:
        known = self._known.get(path)
        if known is None:
            known = _Known(self._make(path))
            with self._lock:
                self._make_room(now)
                self._known[path] = known
        known.used = now
        return known.meter

    def drop(self, path: str) -> None:
        with self._lock:
            self._known.pop(path, None)

    def _make_room(self, now: int) -> None:
        if now - self._swept > _YOUNG:
            self._swept = now
            self._known = {path: known for path, known in self._known.items() if now - known.used < _IDLE}
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]


class _Known:
    __slots__ = ("meter", "used")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.used = 0

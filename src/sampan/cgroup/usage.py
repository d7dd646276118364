"""The few figures of a group that are asked for all the time, of every group of a machine: four small files on v1.

All the others are in ``v1_stats`` and ``v2_stats``. Files that a machine's controllers don't have count as empty; that
the group itself is not there is an error, so that no counter seems to start anew.

The files stay open: to open one and to close it again takes the kernel five times as long as to read it. Where a
reading need not be complete, ``memory.stat``, which takes longer than all the others, is not looked at of a group that
has not run since: whose processor time, number of processes and memory are what they were. What others do to it, for
one reclaim, shows in its memory too, but for shifts among the kernel's lists, and for less than 64 pages of each
processor; so it is looked at every minute all the same.
"""

# ruff: noqa: D102 - what read() promises is said once, in Meter

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: What the kernel keeps pressure of (Documentation/accounting/psi).
_RESOURCES = ("cpu", "memory", "io")
#: Bytes that the longest of the files fits into, ``memory.stat`` with a hundred keys.
_LARGE = 8192
#: Seconds after which ``memory.stat`` is looked at although the group has not run.
_COMPLETE = 60.0


class Usage:
    """What a group uses. Times in nanoseconds, memory in bytes.

    Args:
        cpu: Processor time since the group was made.
        memory: Charged to the group, caches included.
        inactive_file: What of it the kernel can drop at once.
        rss: What of it is no cache.
        swap: In swap, beside the memory.
        faults: Page faults, and those of them that waited for a disk.
        processes: Processes and threads.
        pressure: Resource -> ``some`` and ``full`` -> avg10, avg60, avg300 and total (microseconds); v2 alone.
    """

    __slots__ = ("cpu", "faults", "inactive_file", "memory", "pressure", "processes", "rss", "swap")

    def __init__(
        self,
        cpu: int,
        memory: int,
        inactive_file: int,
        rss: int,
        swap: int,
        faults: tuple[int, int],
        processes: int,
        pressure: dict[str, dict[str, dict[str, float]]],
    ) -> None:
        self.cpu = cpu
        self.memory = memory
        self.inactive_file = inactive_file
        self.rss = rss
        self.swap = swap
        self.faults = faults
        self.processes = processes
        self.pressure = pressure

    @property
    def working_set(self) -> int:
        """Bytes that cannot be reclaimed easily, as the kubelet counts."""
        return max(0, self.memory - self.inactive_file)


class _Files:
    """Small files of the kernel's that are read again and again; closed when nobody has them any more.

    Args:
        paths: Where they are; an empty one stands for a file that the machine doesn't have.
    """

    __slots__ = ("_fds",)

    def __init__(self, paths: Iterable[str]) -> None:
        self._fds: list[int] = []
        for path in paths:
            self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1)

    def __del__(self) -> None:
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)

    def read(self) -> list[bytes]:
        """What each says now.

        Raises:
            FileNotFoundError: Their group is not there any more.
        """
        try:
            return [os.pread(fd, _LARGE, 0) if fd >= 0 else b"" for fd in self._fds]
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
            raise


class Meter:
    """Reads what a group uses, again and again. Its files are closed when nobody has it any more."""

    __slots__ = ()
    #: The most that it has open.
    FILES = 8

    def read(self, *, complete: bool = True) -> Usage:
        """What the group uses now.

        Args:
            complete: Take memory apart even if the group has not run since.

        Raises:
            FileNotFoundError: It is not there any more.
        """
        raise NotImplementedError


class MeterV1(Meter):
    """Of a group with a directory for each controller.

    Args:
        directories: Those of the group, by controller.

    Raises:
        FileNotFoundError: The group is not there.
    """

    __slots__ = ("_files", "_statistics")
    _KEYS = (b"\ntotal_rss ", b"\ntotal_swap ", b"\ntotal_pgfault ", b"\ntotal_pgmajfault ", b"\ntotal_inactive_file ")

    def __init__(self, directories: dict[str, str]) -> None:
        files = ("cpuacct.usage", "memory.usage_in_bytes", "pids.current")
        found = ((directories.get(name.partition(".")[0], ""), name) for name in files)
        self._files = _Files(f"{directory}/{name}" if directory else "" for directory, name in found)
        memory = directories.get("memory", "")
        self._statistics = _Statistics(f"{memory}/memory.stat" if memory else "", self._KEYS)

    def read(self, *, complete: bool = True) -> Usage:
        cpu, memory, processes = others = self._files.read()
        rss, swap, faults, major, inactive_file = self._statistics.read(others, complete=complete)
        return Usage(
            cpu=int(cpu or 0),
            memory=int(memory or 0),
            inactive_file=inactive_file,
            rss=rss,
            swap=swap,
            faults=(faults, major),
            processes=int(processes or 0),
            pressure={},
        )


class MeterV2(Meter):
    """Of a group in the unified hierarchy.

    Args:
        directory: The group's.

    Raises:
        FileNotFoundError: The group is not there.
    """

    __slots__ = ("_files", "_pressure", "_statistics")
    _KEYS = (b"\nanon ", b"\ninactive_file ", b"\npgfault ", b"\npgmajfault ")

    def __init__(self, directory: str) -> None:
        files = ("memory.current", "memory.swap.current", "pids.current")
        self._files = _Files([f"{directory}/cpu.stat", *(_if_there(f"{directory}/{name}") for name in files)])
        self._statistics = _Statistics(_if_there(f"{directory}/memory.stat"), self._KEYS)
        self._pressure = Pressure(directory)

    def read(self, *, complete: bool = True) -> Usage:
        times, memory, swap, processes = others = self._files.read()
        (cpu,) = _values(times, (b"\nusage_usec ",))
        rss, inactive_file, faults, major = self._statistics.read(others, complete=complete)
        return Usage(
            cpu=cpu * 1000,
            memory=int(memory or 0),
            inactive_file=inactive_file,
            rss=rss,
            swap=int(swap or 0),
            faults=(faults, major),
            processes=int(processes or 0),
            pressure=self._pressure.read(),
        )


class _Statistics:
    """Some values of ``memory.stat``.

    Args:
        path: Where it is; empty: nowhere.
        keys: See :func:`_values`.
    """

    __slots__ = ("_file", "_keys", "_last")

    def __init__(self, path: str, keys: tuple[bytes, ...]) -> None:
        self._file = _Files([path])
        self._keys = keys
        #: When it was looked at, what the group's other files said then, and the values.
        self._last: tuple[float, list[bytes], list[int]] = (0.0, [], [])

    def read(self, others: list[bytes], *, complete: bool) -> list[int]:
        looked_at, before, values = self._last
        now = time.monotonic()
        if complete or others != before or now - looked_at > _COMPLETE:
            values = _values(self._file.read()[0], self._keys)
            self._last = (now, others, values)
        return values


class Pressure:
    """Reads pressure stall information of a group in the unified hierarchy, as far as the kernel keeps it.

    Args:
        directory: The group's.
    """

    __slots__ = ("_files",)
    #: The most that it has open.
    FILES = len(_RESOURCES)

    def __init__(self, directory: str) -> None:
        files = ((resource, _if_there(f"{directory}/{resource}.pressure")) for resource in _RESOURCES)
        self._files = [(resource, _Files([path])) for resource, path in files if path]

    def read(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Resource -> ``some`` and ``full`` -> avg10, avg60, avg300 and total (microseconds).

        Raises:
            FileNotFoundError: The group is not there any more.
        """
        found = {}
        for resource, file in self._files:
            try:
                words = file.read()[0].decode("ascii").replace("=", " ").split()
            except FileNotFoundError:
                raise
            except OSError:  # turned off (EOPNOTSUPP)
                continue
            # Nine words each: "some avg10 0.00 avg60 0.00 avg300 0.00 total 0".
            lines = [words[start : start + 9] for start in range(0, len(words), 9)]
            if lines:
                found[resource] = {
                    line[0]: dict(zip(line[1::2], map(float, line[2::2]), strict=False)) for line in lines
                }
        return found


def _if_there(path: str) -> str:
    """The path, or an empty one where no file is."""
    return path if os.access(path, os.F_OK) else ""


def _values(text: bytes, keys: tuple[bytes, ...]) -> list[int]:
    """Values of a flat keyed file (cgroups(7)), in the order of the keys; 0 for a key that it hasn't.

    Args:
        text: What it says.
        keys: Each behind the end of a line; soonest found in the order in which the kernel writes them.
    """
    text = b"\n" + text
    found = []
    end = 0
    for key in keys:
        start = text.find(key, end)
        if start < 0 and (start := text.find(key)) < 0:
            found.append(0)
            continue
        end = text.index(b"\n", start + len(key))
        found.append(int(text[start + len(key) : end]))
    return found

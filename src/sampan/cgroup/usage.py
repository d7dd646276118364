"""The few figures of a group that are asked for all the time, of every group of a machine: four small files on v1.

All the others are in ``v1_stats`` and ``v2_stats``. Files that a machine's controllers don't have count as empty; that
the group itself is not there is an error, so that no counter seems to start anew.

The files stay open: to open one and to close it again takes the kernel five times as long as to read it. Where a
reading need not be complete, only processor time and memory are looked at of a group that has not run since: it cannot
have forked, nor touched memory. What others do to it, for one reclaim, shows in its memory too, but for shifts among
the kernel's lists, and for less than 64 pages of each processor; and one who reaps a process that was dead already
takes it from their number. So all is looked at every minute all the same. As long as nothing has changed a reading is
the same object, so that what was made of it can be told again.
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
#: Bytes that a file with one number fits into.
_NUMBER = 32
#: Seconds after which all is looked at although the group has not run.
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
        length: Bytes that the longest of them fits into; 8192 do for ``memory.stat`` with a hundred keys.
    """

    __slots__ = ("_fds", "_length")

    def __init__(self, paths: Iterable[str], length: int = 8192) -> None:
        self._length = length
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
        length = self._length
        try:
            return [os.pread(fd, length, 0) if fd >= 0 else b"" for fd in self._fds]
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
        """What the group uses now; the last reading itself, if nothing has changed since.

        Args:
            complete: Look at all even if the group has not run since.

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

    __slots__ = ("_files", "_last")
    _KEYS = (b"\ntotal_rss ", b"\ntotal_swap ", b"\ntotal_pgfault ", b"\ntotal_pgmajfault ", b"\ntotal_inactive_file ")

    def __init__(self, directories: dict[str, str]) -> None:
        def path(name: str) -> str:
            directory = directories.get(name.partition(".")[0], "")
            return directory and f"{directory}/{name}"

        first = _Files([path("cpuacct.usage"), path("memory.usage_in_bytes")], _NUMBER)
        self._files = _Guarded(first, _Files([path("pids.current"), path("memory.stat")]))
        #: What the files said, and what that meant.
        self._last: tuple[list[bytes], Usage | None] = ([], None)

    def read(self, *, complete: bool = True) -> Usage:
        said = self._files.read(complete=complete)
        before, usage = self._last
        if usage is not None and said is before:
            return usage
        cpu, memory, processes, statistics = said
        rss, swap, faults, major, inactive_file = _values(statistics, self._KEYS)
        usage = Usage(
            cpu=int(cpu or 0),
            memory=int(memory or 0),
            inactive_file=inactive_file,
            rss=rss,
            swap=swap,
            faults=(faults, major),
            processes=int(processes or 0),
            pressure={},
        )
        self._last = (said, usage)
        return usage


class MeterV2(Meter):
    """Of a group in the unified hierarchy.

    Args:
        directory: The group's.

    Raises:
        FileNotFoundError: The group is not there.
    """

    __slots__ = ("_files", "_last", "_pressure")
    _KEYS = (b"\nanon ", b"\ninactive_file ", b"\npgfault ", b"\npgmajfault ")

    def __init__(self, directory: str) -> None:
        first = _Files([f"{directory}/cpu.stat", _if_there(f"{directory}/memory.current")])
        others = ("memory.swap.current", "pids.current", "memory.stat")
        self._files = _Guarded(first, _Files(_if_there(f"{directory}/{name}") for name in others))
        self._pressure = Pressure(directory)
        #: What the files said, and pressure, and what that meant.
        self._last: tuple[list[bytes], object, Usage | None] = ([], None, None)

    def read(self, *, complete: bool = True) -> Usage:
        said = self._files.read(complete=complete)
        pressure = self._pressure.read()
        before, pressure_before, usage = self._last
        if usage is not None and said is before and pressure is pressure_before:
            return usage
        times, memory, swap, processes, statistics = said
        (cpu,) = _values(times, (b"\nusage_usec ",))
        rss, inactive_file, faults, major = _values(statistics, self._KEYS)
        usage = Usage(
            cpu=cpu * 1000,
            memory=int(memory or 0),
            inactive_file=inactive_file,
            rss=rss,
            swap=int(swap or 0),
            faults=(faults, major),
            processes=int(processes or 0),
            pressure=pressure,
        )
        self._last = (said, pressure, usage)
        return usage


class _Guarded:
    """Files of a group, some of which are not looked at while the others say the same.

    Args:
        first: Processor time and memory.
        others: What only changes with them.
    """

    __slots__ = ("_first", "_last", "_others")

    def __init__(self, first: _Files, others: _Files) -> None:
        self._first = first
        self._others = others
        #: When all were looked at, what the first said then, and what all said.
        self._last: tuple[float, list[bytes], list[bytes]] = (0.0, [], [])

    def read(self, *, complete: bool) -> list[bytes]:
        """What all say: the same list as before, unless all were looked at.

        Raises:
            FileNotFoundError: Their group is not there any more.
        """
        now = time.monotonic()
        first = self._first.read()
        looked_at, before, said = self._last
        if complete or first != before or now - looked_at > _COMPLETE:
            said = first + self._others.read()
            self._last = (now, first, said)
        return said


class Pressure:
    """Reads pressure stall information of a group in the unified hierarchy, as far as the kernel keeps it.

    Args:
        directory: The group's.
    """

    __slots__ = ("_files", "_last")
    #: The most that it has open.
    FILES = len(_RESOURCES)

    def __init__(self, directory: str) -> None:
        files = ((resource, _if_there(f"{directory}/{resource}.pressure")) for resource in _RESOURCES)
        self._files = [(resource, _Files([path])) for resource, path in files if path]
        #: What the files said, and what that means.
        self._last: tuple[list[bytes], dict[str, dict[str, dict[str, Any]]]] = ([], {})

    def read(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Resource -> ``some`` and ``full`` -> avg10, avg60, avg300 and total (microseconds).

        The last reading itself, if nothing has changed since.

        Raises:
            FileNotFoundError: The group is not there any more.
        """
        texts = []
        for _, file in self._files:
            try:
                texts += file.read()
            except FileNotFoundError:
                raise
            except OSError:  # turned off (EOPNOTSUPP)
                texts.append(b"")
        before, found = self._last
        if texts != before:
            resources = (resource for resource, _ in self._files)
            found = {resource: _pressure(text) for resource, text in zip(resources, texts, strict=True) if text}
            self._last = (texts, found)
        return found


def _pressure(text: bytes) -> dict[str, dict[str, Any]]:
    """``some`` and ``full`` of one file; a line has nine words: "some avg10 0.00 avg60 0.00 avg300 0.00 total 0"."""
    words = text.decode("ascii").replace("=", " ").split()
    lines = [words[start : start + 9] for start in range(0, len(words), 9)]
    return {line[0]: dict(zip(line[1::2], map(float, line[2::2]), strict=False)) for line in lines}


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

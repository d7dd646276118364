"""The few figures of a group that are asked for all the time, of every group of a machine: four small files on v1.

All the others are in ``v1_stats`` and ``v2_stats``. Files that a machine's controllers don't have count as empty; that
the group itself is not there is an error, so that no counter seems to start anew.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What the kernel keeps pressure of (Documentation/accounting/psi).
_RESOURCES = ("cpu", "memory", "io")


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


def of_v1(directories: dict[str, str]) -> Usage:
    """A group with these controllers.

    Raises:
        FileNotFoundError: It is not there.
    """
    cpu = directories.get("cpuacct", "")
    memory = directories.get("memory", "")
    pids = directories.get("pids", "")
    raw = _pairs(f"{memory}/memory.stat") if memory else {}
    return Usage(
        cpu=int(_read(f"{cpu}/cpuacct.usage")) if cpu else 0,
        memory=int(_read(f"{memory}/memory.usage_in_bytes")) if memory else 0,
        inactive_file=int(raw.get(b"total_inactive_file", 0)),
        rss=int(raw.get(b"total_rss", 0)),
        swap=int(raw.get(b"total_swap", 0)),
        faults=(int(raw.get(b"total_pgfault", 0)), int(raw.get(b"total_pgmajfault", 0))),
        processes=int(_read(f"{pids}/pids.current")) if pids else 0,
        pressure={},
    )


def of_v2(directory: str) -> Usage:
    """A group in the unified hierarchy.

    Raises:
        FileNotFoundError: It is not there.
    """
    raw = _pairs_if_there(f"{directory}/memory.stat")
    return Usage(
        cpu=int(_pairs(f"{directory}/cpu.stat").get(b"usage_usec", 0)) * 1000,
        memory=_number_if_there(f"{directory}/memory.current"),
        inactive_file=int(raw.get(b"inactive_file", 0)),
        rss=int(raw.get(b"anon", 0)),
        swap=_number_if_there(f"{directory}/memory.swap.current"),
        faults=(int(raw.get(b"pgfault", 0)), int(raw.get(b"pgmajfault", 0))),
        processes=_number_if_there(f"{directory}/pids.current"),
        pressure=pressure(directory),
    )


def pressure(directory: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Pressure stall information of a group, as far as the kernel keeps it."""
    found = {}
    for resource in _RESOURCES:
        try:
            lines = _read(f"{directory}/{resource}.pressure").decode("ascii").splitlines()
        except OSError:  # not there, or turned off (EOPNOTSUPP)
            continue
        kinds = {}
        for line in lines:
            kind, *pairs = line.split()
            kinds[kind] = {name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)}
        if kinds:
            found[resource] = kinds
    return found


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _pairs(path: str) -> dict[bytes, bytes]:
    words = _read(path).split()
    return dict(zip(words[::2], words[1::2], strict=False))


def _pairs_if_there(path: str) -> dict[bytes, bytes]:
    try:
        return _pairs(path)
    except FileNotFoundError:
        return {}


def _number_if_there(path: str) -> int:
    try:
        return int(_read(path))
    except FileNotFoundError:
        return 0

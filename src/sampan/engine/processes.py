"""Figures that no cgroup has: open files, sockets, threads and their states, from /proc of a container's processes."""

import os
import stat
from collections.abc import Iterable

import msgspec

#: proc_pid_stat(5): letter of a thread's state -> cAdvisor's name of it.
STATES = {"S": "sleeping", "R": "running", "T": "stopped", "D": "uninterruptible", "I": "iowaiting"}


class ProcessFigures(msgspec.Struct):
    """Sums over the processes of a container; one that ends while it is looked at counts as far as it was seen."""

    processes: int = 0
    threads: int = 0
    descriptors: int = 0
    sockets: int = 0
    #: Soft limit of open files of the first process; None without limit.
    open_files_limit: int | None = None
    states: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(STATES.values(), 0))


def look(pids: Iterable[int]) -> ProcessFigures:
    """Look at processes."""
    found = ProcessFigures()
    for pid in pids:
        try:
            _count(pid, found)
        except OSError:
            continue  # it has ended
    return found


def _count(pid: int, found: ProcessFigures) -> None:
    threads = os.listdir(f"/proc/{pid}/task")
    found.processes += 1
    found.threads += len(threads)
    if found.processes == 1:
        found.open_files_limit = _open_files_limit(pid)
    for thread in threads:
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
            letter = file.read().rpartition(b")")[2].split()[0].decode()
        if letter in STATES:
            found.states[STATES[letter]] += 1
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            found.descriptors += 1
            found.sockets += stat.S_ISSOCK(entry.stat().st_mode)


def _open_files_limit(pid: int) -> int | None:
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        for line in file:
            if line.startswith("Max open files"):
                soft = line[len("Max open files") :].split()[0]
                return int(soft) if soft.isdecimal() else None
    return None

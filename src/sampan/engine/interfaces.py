"""Counters of the interfaces in pods' network namespaces."""

import os
import threading
from collections.abc import Iterable, Iterator

from sampan.engine.stats import InterfaceStats
from sampan.linux.namespaces import CLONE_NEWNET, setns


def interfaces(files: Iterable[str]) -> dict[str, tuple[InterfaceStats, ...]]:
    """Counters of the interfaces in network namespaces, less the loopbacks'; one that has gone is left out."""
    found: dict[str, tuple[InterfaceStats, ...]] = {}
    wanted = list(files)
    if not wanted:
        return found

    def read() -> None:
        for file in wanted:
            try:
                found[file] = _read_interfaces(file)
            except OSError:
                continue

    # A thread of its own enters the namespaces and ends there: nobody else's thread ever has to come back.
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return found


def _read_interfaces(netns: str) -> tuple[InterfaceStats, ...]:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)
    table = b""
    fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)  # a list asks for it of every pod
    try:
        while piece := os.read(fd, 65536):
            table += piece
    finally:
        os.close(fd)
    return tuple(_parse_net_dev(table))


def _parse_net_dev(table: bytes) -> Iterator[InterfaceStats]:
    """proc_pid_net(5), ``dev``: sixteen counters for an interface, eight received and eight sent."""
    for line in table.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        counters = rest.split()
        if name.strip() != b"lo" and len(counters) >= 16:
            yield InterfaceStats(name.strip().decode("ascii", "replace"), *map(int, counters[:4] + counters[8:12]))

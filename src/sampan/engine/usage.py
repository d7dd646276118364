"""Reading figures: cgroups for processor and memory, the snapshot for disk, the network namespace for interfaces."""

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from sampan.cgroup import open_group
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats
from sampan.errors import NotFound, SampanError
from sampan.linux.namespaces import CLONE_NEWNET, setns

if TYPE_CHECKING:
    from sampan.engine.engine import Engine

#: cgroup path -> (time, processor time) of the last reading, for a rate between two readings of one daemon.
_last_cpu: dict[str, tuple[int, int]] = {}
_last_cpu_lock = threading.Lock()
#: Nanoseconds; readings closer together give no meaningful rate.
_SHORTEST = 100_000_000


def container_stats(engine: "Engine", record: ContainerRecord) -> ContainerStats:
    """Usage of one container; a container that doesn't run has only its disk's."""
    now = time.time_ns()
    used, inodes = _disk(engine, record)
    mountpoint = f"{engine.config.root}/snapshots"
    if record.state not in ("running", "created"):
        return ContainerStats(
            id=record.id, timestamp=now, fs_used_bytes=used, fs_inodes=inodes, fs_mountpoint=mountpoint
        )
    group = open_group(record.cgroup_path, systemd=engine.config.cgroup_driver == "systemd")
    figures = group.stats()
    cpu = int(_dig(figures, "cpu", "usage", "total"))
    usage = int(_dig(figures, "memory", "usage", "usage"))
    raw = figures.get("memory", {}).get("raw", {})
    working_set = group.memory_working_set()
    limit = record.resources.memory_limit
    return ContainerStats(
        id=record.id,
        timestamp=now,
        cpu_usage_ns=cpu,
        cpu_nano_cores=_rate(record.cgroup_path, now, cpu),
        memory_usage=usage,
        memory_working_set=working_set,
        memory_available=max(0, limit - working_set) if limit and limit > 0 else None,
        memory_rss=int(raw.get("total_rss", raw.get("anon", 0))),
        page_faults=int(raw.get("total_pgfault", raw.get("pgfault", 0))),
        major_page_faults=int(raw.get("total_pgmajfault", raw.get("pgmajfault", 0))),
        swap_usage=max(0, int(_dig(figures, "memory", "swap", "usage")) - (usage if "total_rss" in raw else 0)),
        fs_used_bytes=used,
        fs_inodes=inodes,
        fs_mountpoint=mountpoint,
        pids=int(_dig(figures, "pids", "current")),
        oom_kills=group.oom_kills(),
        figures=figures,
    )


def pod_stats(engine: "Engine", pod: PodRecord) -> PodStats:
    """Usage of one pod, summed over its containers."""
    containers = tuple(
        stats for record in engine.containers.list(pod_id=pod.id) for stats in _stats_or_none(engine, record)
    )
    rates = [c.cpu_nano_cores for c in containers if c.cpu_nano_cores is not None]
    return PodStats(
        id=pod.id,
        timestamp=time.time_ns(),
        cpu_usage_ns=sum(c.cpu_usage_ns for c in containers),
        cpu_nano_cores=sum(rates) if rates else None,
        memory_usage=sum(c.memory_usage for c in containers),
        memory_working_set=sum(c.memory_working_set for c in containers),
        memory_rss=sum(c.memory_rss for c in containers),
        page_faults=sum(c.page_faults for c in containers),
        major_page_faults=sum(c.major_page_faults for c in containers),
        pids=sum(c.pids for c in containers),
        interfaces=interfaces(pod.namespace_paths.get("network", "")) if pod.state == "ready" else (),
        containers=containers,
    )


def _stats_or_none(engine: "Engine", record: ContainerRecord) -> list[ContainerStats]:
    try:
        return [container_stats(engine, record)]
    except (SampanError, OSError):
        return []  # it ended between the list and the reading


def interfaces(netns: str) -> tuple[InterfaceStats, ...]:
    """Counters of the interfaces in a network namespace, less the loopback's; the machine's for an empty path."""
    found: list[InterfaceStats] = []

    def read() -> None:
        if netns:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
        with open("/proc/thread-self/net/dev", encoding="ascii", errors="replace") as table:
            found.extend(_parse_net_dev(table.read()))

    # A thread of its own enters the namespace and ends there: nobody else's thread ever has to come back.
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return tuple(found)


def _parse_net_dev(text: str) -> list[InterfaceStats]:
    """proc_pid_net(5), ``dev``: sixteen counters for an interface, eight received and eight sent."""
    parsed = []
    for line in text.splitlines()[2:]:
        name, _, counters = line.partition(":")
        values = [int(value) for value in counters.split()]
        if name.strip() != "lo" and len(values) >= 16:
            parsed.append(InterfaceStats(name.strip(), *values[:4], *values[8:12]))
    return parsed


def _disk(engine: "Engine", record: ContainerRecord) -> tuple[int, int]:
    try:
        usage = engine.store.snapshots.usage(record.snapshot_key)
    except NotFound:
        return 0, 0
    return usage.bytes, usage.inodes


def _rate(path: str, now: int, cpu: int) -> int | None:
    """Billionths of a processor used since the last reading of the same cgroup."""
    with _last_cpu_lock:
        before = _last_cpu.get(path)
        if before is None or now - before[0] >= _SHORTEST:
            _last_cpu[path] = (now, cpu)
        if len(_last_cpu) > 4096:
            _last_cpu.pop(next(iter(_last_cpu)))
    if before is None or now - before[0] < _SHORTEST:
        return None
    return max(0, (cpu - before[1]) * 1_000_000_000 // (now - before[0]))


def _dig(tree: dict[str, Any], *path: str) -> Any:
    for name in path:
        tree = tree.get(name) or {}
    return tree or 0

"""Reading figures: cgroups for processor and memory, the snapshot for disk, the network namespace for interfaces.

A kubelet asks for lists of all, every ten seconds: they read the fewest files, and look through nobody's layer. One
container by itself is looked at in full.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sampan.cgroup import open_group
from sampan.cgroup.hierarchy import layout
from sampan.cgroup.usage import pressure
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats
from sampan.errors import NotFound
from sampan.linux.namespaces import CLONE_NEWNET, setns

if TYPE_CHECKING:
    from sampan.engine.engine import Engine

#: cgroup path -> (time, processor time) of the last reading, for a rate between two readings of one daemon.
_last_cpu: dict[str, tuple[int, int]] = {}
_last_cpu_lock = threading.Lock()
#: Nanoseconds; readings closer together give no meaningful rate.
_SHORTEST = 100_000_000


class PodUsage(NamedTuple):
    """Usage of a pod, with the records that it is of."""

    pod: PodRecord
    stats: PodStats
    containers: dict[str, ContainerRecord]


def container_stats(engine: "Engine", record: ContainerRecord, *, full: bool = True) -> ContainerStats:
    """Usage of one container; a container that doesn't run has only its disk's.

    Args:
        engine: Whose.
        record: Its record.
        full: With all that its cgroup tells, and its layer measured now.

    Raises:
        NotFound: It has just ended.
    """
    now = time.time_ns()
    used, inodes = _disk(engine, record, now=full)
    mountpoint = f"{engine.config.root}/snapshots"
    if record.state not in ("running", "created"):
        return ContainerStats(
            id=record.id, timestamp=now, fs_used_bytes=used, fs_inodes=inodes, fs_mountpoint=mountpoint
        )
    group = open_group(record.cgroup_path, systemd=engine.config.cgroup_driver == "systemd")
    try:
        usage = group.usage()
        figures, kills = (group.stats(), group.oom_kills()) if full else ({}, 0)
    except FileNotFoundError:
        raise NotFound(f"container {record.id[:12]} has just ended") from None
    limit = record.resources.memory_limit or 0
    swap_limit = (record.resources.memory_swap_limit or 0) - limit
    return ContainerStats(
        id=record.id,
        timestamp=now,
        cpu_usage_ns=usage.cpu,
        cpu_nano_cores=_rate(record.cgroup_path, now, usage.cpu),
        memory_usage=usage.memory,
        memory_working_set=usage.working_set,
        memory_available=max(0, limit - usage.working_set) if limit > 0 else None,
        memory_rss=usage.rss,
        page_faults=usage.faults[0],
        major_page_faults=usage.faults[1],
        swap_usage=usage.swap,
        swap_available=max(0, swap_limit - usage.swap) if limit > 0 and swap_limit >= 0 else None,
        fs_used_bytes=used,
        fs_inodes=inodes,
        fs_mountpoint=mountpoint,
        pids=usage.processes,
        pressure=usage.pressure,
        oom_kills=kills,
        figures=figures,
    )


def containers_stats(
    engine: "Engine", records: Iterable[ContainerRecord], *, full: bool = False
) -> Iterator[tuple[ContainerRecord, ContainerStats]]:
    """Usage of several containers; those that end meanwhile are passed over."""
    for record in records:
        try:
            yield record, container_stats(engine, record, full=full)
        except (NotFound, OSError):
            continue


def pods_stats(engine: "Engine", pods: Sequence[PodRecord], *, full: bool = False) -> Iterator[PodUsage]:
    """Usage of several pods, each summed over its containers."""
    of_pod: dict[str, list[ContainerRecord]] = {pod.id: [] for pod in pods}
    for record in engine.containers.list(pod_id=pods[0].id if len(pods) == 1 else ""):
        if record.pod_id in of_pod:
            of_pod[record.pod_id].append(record)
    seen = interfaces([pod.namespace_paths.get("network", "") for pod in pods if pod.state == "ready"])
    for pod in pods:
        found = list(containers_stats(engine, of_pod[pod.id], full=full))
        counters = seen.get(pod.namespace_paths.get("network", ""), ()) if pod.state == "ready" else ()
        stats = _sum(pod, tuple(stats for _, stats in found), counters)
        yield PodUsage(pod, stats, {record.id: record for record, _ in found})


def _sum(pod: PodRecord, containers: tuple[ContainerStats, ...], counters: tuple[InterfaceStats, ...]) -> PodStats:
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
        interfaces=counters,
        pressure=pressure_of(pod.cgroup_path) if containers else {},
        containers=containers,
    )


def pressure_of(path: str) -> dict[str, dict[str, dict[str, float]]]:
    """Pressure in a pod's cgroup, with whatever driver it was made; cgroup v1 tells none."""
    machine = layout()
    return pressure(f"{machine.unified}{path}") if machine.mode == "v2" and path.startswith("/") else {}


def interfaces(files: Iterable[str]) -> dict[str, tuple[InterfaceStats, ...]]:
    """Counters of the interfaces in network namespaces, less the loopbacks'; the machine's for an empty path.

    A namespace that has gone meanwhile is left out.
    """
    found: dict[str, tuple[InterfaceStats, ...]] = {}
    wanted = sorted(set(files))  # the machine's own comes first, before the thread is anywhere else

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
    if netns:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
    with open("/proc/thread-self/net/dev", encoding="ascii", errors="replace") as table:
        return tuple(_parse_net_dev(table.read()))


def _parse_net_dev(text: str) -> list[InterfaceStats]:
    """proc_pid_net(5), ``dev``: sixteen counters for an interface, eight received and eight sent."""
    parsed = []
    for line in text.splitlines()[2:]:
        name, _, counters = line.partition(":")
        values = [int(value) for value in counters.split()]
        if name.strip() != "lo" and len(values) >= 16:
            parsed.append(InterfaceStats(name.strip(), *values[:4], *values[8:12]))
    return parsed


def _disk(engine: "Engine", record: ContainerRecord, *, now: bool) -> tuple[int, int]:
    disk = engine.disk
    try:
        usage = (disk.measure if now else disk.recent)(record.snapshot_key)
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

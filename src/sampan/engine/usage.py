"""Reading figures: cgroups for processor and memory, the snapshot for disk, the network namespace for interfaces.

A kubelet asks for lists of all, every ten seconds: they read the fewest files, and look through nobody's layer. One
container by itself is looked at in full.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sampan.cgroup import open_group
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats
from sampan.errors import NotFound
from sampan.linux.namespaces import CLONE_NEWNET, setns

if TYPE_CHECKING:
    from sampan.engine.engine import Engine


class PodUsage(NamedTuple):
    """Usage of a pod, with the records that it is of."""

    pod: PodRecord
    stats: PodStats
    containers: dict[str, ContainerRecord]


def container_stats(
    engine: "Engine", record: ContainerRecord, *, full: bool = True, fresh: bool = True
) -> ContainerStats:
    """Usage of one container; a container that doesn't run has only its disk's.

    Args:
        engine: Whose.
        record: Its record.
        full: With all that its cgroup tells, and its layer measured now.
        fresh: As its cgroup is now; otherwise it may be a second ago.

    Raises:
        NotFound: It has just ended.
    """
    used, inodes = _disk(engine, record, now=full)
    mountpoint = f"{engine.config.root}/snapshots"
    if record.state not in ("running", "created"):
        return ContainerStats(
            id=record.id, timestamp=time.time_ns(), fs_used_bytes=used, fs_inodes=inodes, fs_mountpoint=mountpoint
        )
    try:
        reading = engine.readings.take(record.cgroup_path, fresh=full or fresh)
        figures, kills = _everything(engine, record) if full else ({}, 0)
    except FileNotFoundError:
        raise NotFound(f"container {record.id[:12]} has just ended") from None
    usage = reading.usage
    limit = record.resources.memory_limit or 0
    swap_limit = (record.resources.memory_swap_limit or 0) - limit
    return ContainerStats(
        id=record.id,
        timestamp=reading.timestamp,
        cpu_usage_ns=usage.cpu,
        cpu_nano_cores=reading.nano_cores,
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


def _everything(engine: "Engine", record: ContainerRecord) -> tuple[dict[str, Any], int]:
    group = open_group(record.cgroup_path, systemd=engine.config.cgroup_driver == "systemd")
    return group.stats(), group.oom_kills()


def containers_stats(
    engine: "Engine", records: Iterable[ContainerRecord], *, full: bool = False, fresh: bool = False
) -> Iterator[tuple[ContainerRecord, ContainerStats]]:
    """Usage of several containers; those that end meanwhile are passed over."""
    for record in records:
        try:
            yield record, container_stats(engine, record, full=full, fresh=fresh)
        except (NotFound, OSError):
            continue


def pods_stats(
    engine: "Engine", pods: Sequence[PodRecord], *, full: bool = False, fresh: bool = False
) -> Iterator[PodUsage]:
    """Usage of several pods, each summed over its containers."""
    of_pod: dict[str, list[ContainerRecord]] = {pod.id: [] for pod in pods}
    for record in engine.containers.list(pod_id=pods[0].id if len(pods) == 1 else "", settled=False):
        if record.pod_id in of_pod:
            of_pod[record.pod_id].append(record)
    networks = {pod.id: pod.namespace_paths.get("network", "") for pod in pods if pod.state == "ready"}
    seen = interfaces(filter(None, networks.values()))
    for pod in pods:
        found = list(containers_stats(engine, of_pod[pod.id], full=full, fresh=fresh))
        counters = seen.get(networks.get(pod.id, ""), ())
        pressure = engine.readings.pressure(pod.cgroup_path) if found else {}
        stats = _sum(pod, tuple(stats for _, stats in found), counters, pressure)
        yield PodUsage(pod, stats, {record.id: record for record, _ in found})


def _sum(
    pod: PodRecord,
    containers: tuple[ContainerStats, ...],
    counters: tuple[InterfaceStats, ...],
    pressure: dict[str, dict[str, dict[str, float]]],
) -> PodStats:
    rates = [c.cpu_nano_cores for c in containers if c.cpu_nano_cores is not None]
    cpu = memory = working_set = rss = faults = major_faults = pids = 0
    for each in containers:
        cpu += each.cpu_usage_ns
        memory += each.memory_usage
        working_set += each.memory_working_set
        rss += each.memory_rss
        faults += each.page_faults
        major_faults += each.major_page_faults
        pids += each.pids
    return PodStats(
        id=pod.id,
        timestamp=time.time_ns(),
        cpu_usage_ns=cpu,
        cpu_nano_cores=sum(rates) if rates else None,
        memory_usage=memory,
        memory_working_set=working_set,
        memory_rss=rss,
        page_faults=faults,
        major_page_faults=major_faults,
        pids=pids,
        interfaces=counters,
        pressure=pressure,
        containers=containers,
    )


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


def _disk(engine: "Engine", record: ContainerRecord, *, now: bool) -> tuple[int, int]:
    disk = engine.disk
    try:
        usage = (disk.measure if now else disk.recent)(record.snapshot_key)
    except NotFound:
        return 0, 0
    return usage.bytes, usage.inodes

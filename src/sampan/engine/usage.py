"""Reading figures: cgroups for processor and memory, the snapshot for disk, the network namespace for interfaces.

A kubelet asks for lists of all, every ten seconds: they read the fewest files, and look through nobody's layer. What
they tell is a reading, which equals the former one as long as nothing has changed, so that what was made of that can be
told again with another time. One container by itself is looked at in full.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sampan.cgroup import open_group
from sampan.engine.interfaces import interfaces
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.pods import own_group
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats
from sampan.errors import NotFound, StageFailed

if TYPE_CHECKING:
    from sampan.cgroup.usage import Usage
    from sampan.engine.engine import Engine
    from sampan.engine.readings import Reading

#: States in which a container has a cgroup.
_ALIVE = ("running", "created")
#: Why a group can't be read although it may be there.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ContainerReading(NamedTuple):
    """What the figures of a container are made of, but for their time.

    Attributes:
        record: The container's.
        usage: What its cgroup said; None if it doesn't run.
        nano_cores: What it uses of a processor, in billionths.
        disk: Bytes and inodes of its layer.
    """

    record: ContainerRecord
    usage: "Usage | None"
    nano_cores: int | None
    disk: tuple[int, int]

    @property
    def id(self) -> str:
        """The container's."""
        return self.record.id


class PodReading(NamedTuple):
    """What the figures of a pod are made of, but for their time.

    Attributes:
        pod: The pod's record.
        containers: Readings of its containers.
        interfaces: Counters of its interfaces.
        usage: What its own cgroup said; None where it has none, or shares one.
        nano_cores: As a container's.
    """

    pod: PodRecord
    containers: tuple[ContainerReading, ...]
    interfaces: tuple[InterfaceStats, ...]
    usage: "Usage | None"
    nano_cores: int | None

    @property
    def id(self) -> str:
        """The pod's."""
        return self.pod.id


class PodUsage(NamedTuple):
    """Usage of a pod, with the records that it is of."""

    pod: PodRecord
    stats: PodStats
    containers: dict[str, ContainerRecord]


def container_usage(engine: "Engine", record: ContainerRecord) -> ContainerStats:
    """All about one container; one that doesn't run has only its disk's.

    Raises:
        NotFound: It has just ended.
        StageFailed: See :func:`read_containers`.
    """
    timestamp, readings = read_containers(engine, [record], fresh=True, full=True)
    try:
        if readings:
            return _in_full(engine, timestamp, readings[0])
    except OSError as error:
        _pass_over(error, record)
    raise NotFound(f"container {record.id[:12]} has just ended")


def read_containers(
    engine: "Engine", records: Sequence[ContainerRecord], *, fresh: bool = False, full: bool = False
) -> tuple[int, list[ContainerReading]]:
    """What containers use, less those that have just ended, and when (nanoseconds since the epoch).

    Args:
        engine: Whose.
        records: Which.
        fresh: As they are now; otherwise it may be a second ago.
        full: Have their layers measured now.

    Raises:
        StageFailed: There are no descriptors, or no memory, to read with: nothing is known of any.
    """
    timestamp, found, _ = _read(engine, records, (), fresh=fresh, full=full)
    return timestamp, found


def _read(
    engine: "Engine", records: Sequence[ContainerRecord], groups: Iterable[str], *, fresh: bool, full: bool
) -> "tuple[int, list[ContainerReading], Iterator[Reading | OSError]]":
    """Of containers see :func:`read_containers`; and what further cgroups said at that time."""
    alive = [record.cgroup_path for record in records if record.state in _ALIVE]
    timestamp, said = engine.readings.take([*alive, *groups], fresh=fresh)
    answers = iter(said)
    found = []
    for record in records:
        answer = next(answers) if record.state in _ALIVE else None
        if isinstance(answer, OSError):
            _pass_over(answer, record)
            continue
        usage, nano_cores = (answer.usage, answer.nano_cores) if answer else (None, None)
        found.append(ContainerReading(record, usage, nano_cores, _disk(engine, record, now=full)))
    return timestamp, found, answers


def read_pods(
    engine: "Engine", pods: Sequence[PodRecord], *, fresh: bool = False, full: bool = False
) -> tuple[int, list[PodReading]]:
    """The same of pods, each with all its containers."""
    of_pod: dict[str, list[ContainerReading]] = {pod.id: [] for pod in pods}
    records = engine.containers.list(pod_id=pods[0].id if len(pods) == 1 else "", settled=False)
    mine = [record for record in records if record.pod_id in of_pod]
    groups = {pod.id: path for pod in pods if (path := own_group(engine.config.cgroup_driver, pod))}
    timestamp, containers, answers = _read(engine, mine, groups.values(), fresh=fresh, full=full)
    of_groups = {pod_id: each for pod_id, each in zip(groups, answers, strict=True) if not isinstance(each, OSError)}
    for reading in containers:
        of_pod[reading.record.pod_id].append(reading)
    networks = {pod.id: pod.namespace_paths.get("network", "") for pod in pods if pod.state == "ready"}
    seen = interfaces(filter(None, networks.values()))
    found = []
    for pod, own in zip(pods, of_pod.values(), strict=True):
        answer = of_groups.get(pod.id)
        usage, nano_cores = (answer.usage, answer.nano_cores) if answer else (None, None)
        found.append(PodReading(pod, tuple(own), seen.get(networks.get(pod.id, ""), ()), usage, nano_cores))
    return timestamp, found


def pods_in_full(engine: "Engine", pods: Sequence[PodRecord]) -> Iterator[PodUsage]:
    """All about pods and their containers; containers that end meanwhile are passed over."""
    timestamp, readings = read_pods(engine, pods, fresh=True, full=True)
    for reading in readings:
        found = {}
        for each in reading.containers:
            try:
                found[each.id] = _in_full(engine, timestamp, each)
            except OSError as error:
                _pass_over(error, each.record)
        records = {each.id: each.record for each in reading.containers if each.id in found}
        yield PodUsage(reading.pod, pod_stats(timestamp, reading, tuple(found.values())), records)


def _pass_over(error: OSError, record: ContainerRecord) -> None:
    """Nothing for a container that has just ended, which is mostly why it can't be read."""
    if error.errno in _SHORTAGES:
        raise StageFailed("read cgroup", error, path=record.cgroup_path) from error


def container_stats(engine: "Engine", timestamp: int, reading: ContainerReading, **more: Any) -> ContainerStats:
    """The figures of a reading.

    Args:
        engine: Whose.
        timestamp: When it was made, in nanoseconds since the epoch.
        reading: What was read.
        more: Further figures.
    """
    record, usage, nano_cores, (used, inodes) = reading
    mountpoint = f"{engine.config.root}/snapshots"
    if usage is None:
        return ContainerStats(
            id=record.id,
            timestamp=timestamp,
            in_group=False,
            fs_used_bytes=used,
            fs_inodes=inodes,
            fs_mountpoint=mountpoint,
        )
    limit = record.resources.memory_limit or 0
    swap_limit = (record.resources.memory_swap_limit or limit) - limit
    return ContainerStats(
        id=record.id,
        timestamp=timestamp,
        cpu_usage_ns=usage.cpu,
        cpu_nano_cores=nano_cores,
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
        **more,
    )


def _in_full(engine: "Engine", timestamp: int, reading: ContainerReading) -> ContainerStats:
    if reading.usage is None:
        return container_stats(engine, timestamp, reading)
    group = open_group(reading.record.cgroup_path, systemd=engine.config.cgroup_driver == "systemd")
    return container_stats(engine, timestamp, reading, figures=group.stats(), oom_kills=group.oom_kills())


def pod_stats(timestamp: int, reading: PodReading, containers: tuple[ContainerStats, ...]) -> PodStats:
    """The figures of a pod: its cgroup's, where processor time of containers that are gone is kept, or else the sums of
    its containers'; and its interfaces.

    Args:
        timestamp: When it was read.
        reading: What was read.
        containers: The figures of its containers.
    """
    usage = reading.usage
    processes = sum(each.pids for each in containers)  # without the pause process, as containerd has it
    if usage is not None:
        return PodStats(
            id=reading.pod.id,
            timestamp=timestamp,
            cpu_usage_ns=usage.cpu,
            cpu_nano_cores=reading.nano_cores,
            memory_usage=usage.memory,
            memory_working_set=usage.working_set,
            memory_rss=usage.rss,
            page_faults=usage.faults[0],
            major_page_faults=usage.faults[1],
            pids=processes,
            interfaces=reading.interfaces,
            pressure=usage.pressure,
            containers=containers,
        )
    rates = [c.cpu_nano_cores for c in containers if c.cpu_nano_cores is not None]
    return PodStats(
        id=reading.pod.id,
        timestamp=timestamp,
        cpu_usage_ns=sum(each.cpu_usage_ns for each in containers),
        cpu_nano_cores=sum(rates) if rates else None,
        memory_usage=sum(each.memory_usage for each in containers),
        memory_working_set=sum(each.memory_working_set for each in containers),
        memory_rss=sum(each.memory_rss for each in containers),
        page_faults=sum(each.page_faults for each in containers),
        major_page_faults=sum(each.major_page_faults for each in containers),
        pids=processes,
        interfaces=reading.interfaces,
        containers=containers,
    )


def _disk(engine: "Engine", record: ContainerRecord, *, now: bool) -> tuple[int, int]:
    disk = engine.disk
    try:
        usage = (disk.measure if now else disk.recent)(record.snapshot_key)
    except NotFound:
        return 0, 0
    return usage.bytes, usage.inodes

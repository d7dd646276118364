"""Samples of one container beyond its cgroup's plain figures: devices, file system, processes, pressure."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from sampan.cri import api_pb2 as pb
from sampan.engine.processes import ProcessFigures
from sampan.engine.stats import ContainerStats

_SECOND = 1_000_000_000
_NO_LIMIT = (1 << 64) - 1


class Family(NamedTuple):
    """A metric, and the labels that its samples have besides a container's."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: pb.MetricType.ValueType = pb.GAUGE


class Sample(NamedTuple):
    """A value of a family."""

    name: str
    labels: tuple[str, ...]
    value: int
    kind: pb.MetricType.ValueType


#: Name, help, table of ``blkio``, operation (empty: all), divisor, kind.
_DEVICE = (
    ("container_fs_reads_total", "Reads.", "ioServicedRecursive", "read", 1, pb.COUNTER),
    ("container_fs_writes_total", "Writes.", "ioServicedRecursive", "write", 1, pb.COUNTER),
    ("container_fs_reads_bytes_total", "Bytes read.", "ioServiceBytesRecursive", "read", 1, pb.COUNTER),
    ("container_fs_writes_bytes_total", "Bytes written.", "ioServiceBytesRecursive", "write", 1, pb.COUNTER),
    ("container_fs_reads_merged_total", "Reads merged.", "ioMergedRecursive", "read", 1, pb.COUNTER),
    ("container_fs_writes_merged_total", "Writes merged.", "ioMergedRecursive", "write", 1, pb.COUNTER),
    ("container_fs_read_seconds_total", "Seconds spent reading.", "ioServiceTimeRecursive", "read", _SECOND,
     pb.COUNTER),
    ("container_fs_write_seconds_total", "Seconds spent writing.", "ioServiceTimeRecursive", "write", _SECOND,
     pb.COUNTER),
    ("container_fs_sector_reads_total", "Sectors read.", "sectorsRecursive", "read", 1, pb.COUNTER),
    ("container_fs_sector_writes_total", "Sectors written.", "sectorsRecursive", "write", 1, pb.COUNTER),
    ("container_fs_io_current", "Operations under way.", "ioQueuedRecursive", "total", 1, pb.GAUGE),
    ("container_fs_io_time_seconds_total", "Seconds of operations.", "ioTimeRecursive", "", _SECOND // 1_000_000,
     pb.COUNTER),
    ("container_fs_io_time_weighted_seconds_total", "Seconds of operations, each counted.", "ioWaitTimeRecursive",
     "total", _SECOND, pb.COUNTER),
)  # fmt: skip
_BLKIO = Family(
    "container_blkio_device_usage_total",
    "Bytes moved to and from a block device.",
    ("device", "major", "minor", "operation"),
    pb.COUNTER,
)
_LIMIT = Family("container_fs_limit_bytes", "Size of the writable layer's file system.", ("device",))
_INODES = Family("container_fs_inodes_total", "Inodes of the writable layer's file system.", ("device",))
_FREE = Family("container_fs_inodes_free", "Inodes that are free on the writable layer's file system.", ("device",))
_USAGE = Family("container_fs_usage_bytes", "Bytes of the writable layer.", ("device",))
_PROCESSES = Family("container_processes", "Processes.")
_DESCRIPTORS = Family("container_file_descriptors", "Open files of the container's processes.")
_SOCKETS = Family("container_sockets", "Open sockets of the container's processes.")
_ULIMIT = Family("container_ulimits_soft", "Soft limits of the first process; -1 is none.", ("ulimit",))
_TASKS = Family("container_tasks_state", "Threads by their state.", ("state",))
_PRESSURE = tuple(
    Family(f"container_pressure_{resource}_{word}_seconds_total", f"Seconds in which {who} waited for {what}.", (),
           pb.COUNTER)
    for resource, what in (("cpu", "the processor"), ("memory", "memory"), ("io", "input or output"))
    for word, who in (("waiting", "some threads"), ("stalled", "all threads"))
)  # fmt: skip

FAMILIES = (
    *(Family(name, text, ("device",), kind) for name, text, _, _, _, kind in _DEVICE),
    *(_BLKIO, _USAGE, _LIMIT, _INODES, _FREE, _PROCESSES, _DESCRIPTORS, _SOCKETS, _ULIMIT, _TASKS, *_PRESSURE),
)


def samples(stats: ContainerStats, processes: ProcessFigures) -> Iterator[Sample]:
    """All of one container."""
    yield from _devices(stats)
    yield from _file_system(stats)
    yield from _processes(processes)
    yield from _pressure(stats)


def _of(family: Family, value: int, *labels: str) -> Sample:
    return Sample(family.name, labels, value, family.kind)


def _devices(stats: ContainerStats) -> Iterator[Sample]:
    for name, _, table, operation, divisor, kind in _DEVICE:
        found: dict[str, int] = {}
        for row in _rows(stats, table):
            if not operation or str(row.get("op", "")).lower() == operation:
                device = f"{row.get('major', 0)}:{row.get('minor', 0)}"
                found[device] = found.get(device, 0) + int(row.get("value", 0))
        for device, value in found.items():
            yield Sample(name, (device,), value // divisor, kind)
    for row in _rows(stats, "ioServiceBytesRecursive"):
        major, minor, operation = str(row.get("major", 0)), str(row.get("minor", 0)), str(row.get("op", ""))
        yield _of(_BLKIO, int(row.get("value", 0)), f"{major}:{minor}", major, minor, operation)


def _rows(stats: ContainerStats, table: str) -> list[dict[str, Any]]:
    return list(stats.figures.get("blkio", {}).get(table) or ())


def _file_system(stats: ContainerStats) -> Iterator[Sample]:
    try:
        status, device = os.statvfs(stats.fs_mountpoint), os.stat(stats.fs_mountpoint).st_dev
    except OSError:
        return
    name = f"{os.major(device)}:{os.minor(device)}"
    yield _of(_USAGE, stats.fs_used_bytes, name)
    yield _of(_LIMIT, status.f_blocks * status.f_frsize, name)
    yield _of(_INODES, status.f_files, name)
    yield _of(_FREE, status.f_ffree, name)


def _processes(found: ProcessFigures) -> Iterator[Sample]:
    yield _of(_PROCESSES, found.processes)
    yield _of(_DESCRIPTORS, found.descriptors)
    yield _of(_SOCKETS, found.sockets)
    if found.processes:
        limit = found.open_files_limit
        # A value on the wire is unsigned; no limit is the largest there is.
        yield _of(_ULIMIT, _NO_LIMIT if limit is None else limit, "max_open_files")
    for state, count in found.states.items():
        yield _of(_TASKS, count, state)


def _pressure(stats: ContainerStats) -> Iterator[Sample]:
    """Pressure stall information; cgroup v1 has none."""
    for family in _PRESSURE:
        _, _, resource, word, *_ = family.name.split("_")
        table = "blkio" if resource == "io" else resource
        lines = stats.figures.get(table, {}).get("psi", {})
        total = lines.get("some" if word == "waiting" else "full", {}).get("total")
        if total is not None:
            yield _of(family, int(total) // 1_000_000)

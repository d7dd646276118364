"""Figures of containers and pods, read from cgroups and the network namespace."""

from typing import Any

import msgspec


class InterfaceStats(msgspec.Struct, frozen=True):
    """Counters of one network interface since it was made."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class ContainerStats(msgspec.Struct, kw_only=True, frozen=True):
    """Usage of one container. Times in nanoseconds, memory in bytes; None where the kernel doesn't say."""

    id: str
    timestamp: int
    #: Whether it has a cgroup; the disk's is all that is known of one that has not, since it does not run.
    in_group: bool = True
    cpu_usage_ns: int = 0
    cpu_nano_cores: int | None = None
    memory_usage: int = 0
    memory_working_set: int = 0
    memory_available: int | None = None
    memory_rss: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    swap_usage: int = 0
    swap_available: int | None = None
    fs_used_bytes: int = 0
    fs_inodes: int = 0
    fs_mountpoint: str = ""
    pids: int = 0
    #: Processes of the container that the kernel killed for want of memory.
    oom_kills: int = 0
    #: Pressure stall information: resource -> ``some`` or ``full`` -> avg10, avg60, avg300, total (microseconds).
    pressure: dict[str, dict[str, dict[str, float]]] = {}
    #: All that the cgroup tells, in the form of ``runc events --stats``.
    figures: dict[str, Any] = {}


class PodStats(msgspec.Struct, kw_only=True, frozen=True):
    """Usage of one pod, and of its containers and interfaces."""

    id: str
    timestamp: int
    cpu_usage_ns: int = 0
    cpu_nano_cores: int | None = None
    memory_usage: int = 0
    memory_working_set: int = 0
    memory_rss: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    pids: int = 0
    interfaces: tuple[InterfaceStats, ...] = ()
    #: As a container's, of all that is in the pod's cgroup.
    pressure: dict[str, dict[str, dict[str, float]]] = {}
    containers: tuple[ContainerStats, ...] = ()

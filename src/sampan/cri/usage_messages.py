"""From the engine's figures of usage to messages.

A list of 500 pods has 20,000 figures, each a message of its own. What is made here are nested dictionaries, of which
the answer is built at once: that takes a third of the time of building it from messages.
"""

from typing import Any

from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats

#: What CNI calls a pod's first interface; the kubelet takes the pod's traffic from it.
_DEFAULT_INTERFACE = "eth0"
_MOST = (1 << 64) - 1

#: Fields of a message, by their names; None leaves one out.
Fields = dict[str, Any]
Pressure = dict[str, dict[str, dict[str, float]]]


def pod(record: PodRecord, stats: PodStats, containers: dict[str, ContainerRecord]) -> Fields:
    """Fields of ``PodSandboxStats``.

    Args:
        record: The pod.
        stats: Its figures.
        containers: Records of its containers, by id.
    """
    identity = record.spec.metadata
    attributes = {
        "id": record.id,
        "metadata": {
            "name": identity.name,
            "uid": identity.uid,
            "namespace": identity.namespace,
            "attempt": identity.attempt,
        },
        "labels": record.spec.labels,
        "annotations": record.spec.annotations,
    }
    linux = {
        "cpu": _cpu(stats),
        "memory": _memory(stats),
        "io": _io(stats),
        "network": _network(stats),
        "process": {"timestamp": stats.timestamp, "process_count": _count(stats.pids)},
        "containers": [container(containers[each.id], each) for each in stats.containers if each.id in containers],
    }
    return {"attributes": attributes, "linux": linux}


def container(record: ContainerRecord, stats: ContainerStats) -> Fields:
    """Fields of ``ContainerStats``."""
    identity = record.spec.metadata
    timestamp = stats.timestamp
    return {
        "attributes": {
            "id": record.id,
            "metadata": {"name": identity.name, "attempt": identity.attempt},
            "labels": record.spec.labels,
            "annotations": record.spec.annotations,
        },
        "cpu": _cpu(stats),
        "memory": {**_memory(stats), "available_bytes": _count(stats.memory_available)},
        "io": _io(stats),
        "swap": {
            "timestamp": timestamp,
            "swap_available_bytes": _count(stats.swap_available),
            "swap_usage_bytes": _count(stats.swap_usage),
        },
        "writable_layer": {
            "timestamp": timestamp,
            "fs_id": {"mountpoint": stats.fs_mountpoint},
            "used_bytes": _count(stats.fs_used_bytes),
            "inodes_used": _count(stats.fs_inodes),
        },
    }


def _count(value: int | None) -> Fields | None:
    """A figure, or nothing where the kernel gave none."""
    return None if value is None else {"value": value if 0 <= value <= _MOST else min(max(value, 0), _MOST)}


def _cpu(stats: ContainerStats | PodStats) -> Fields:
    return {
        "timestamp": stats.timestamp,
        "usage_core_nano_seconds": _count(stats.cpu_usage_ns),
        "usage_nano_cores": _count(stats.cpu_nano_cores),
        "psi": pressure(stats.pressure, "cpu"),
    }


def _memory(stats: ContainerStats | PodStats) -> Fields:
    return {
        "timestamp": stats.timestamp,
        "working_set_bytes": _count(stats.memory_working_set),
        "usage_bytes": _count(stats.memory_usage),
        "rss_bytes": _count(stats.memory_rss),
        "page_faults": _count(stats.page_faults),
        "major_page_faults": _count(stats.major_page_faults),
        "psi": pressure(stats.pressure, "memory"),
    }


def _io(stats: ContainerStats | PodStats) -> Fields | None:
    """Input and output: of it the interface has pressure alone."""
    psi = pressure(stats.pressure, "io")
    return None if psi is None else {"timestamp": stats.timestamp, "psi": psi}


def pressure(given: Pressure, resource: str) -> Fields | None:
    """Pressure stall information of one resource, or nothing where the kernel keeps none (cgroup v1)."""
    kinds = given.get(resource)
    return None if kinds is None else {"Full": _psi(kinds.get("full", {})), "Some": _psi(kinds.get("some", {}))}


def _psi(values: dict[str, float]) -> Fields:
    found: Fields = {f"Avg{seconds}": values.get(f"avg{seconds}", 0.0) for seconds in (10, 60, 300)}
    found["Total"] = int(values.get("total", 0)) * 1000  # the kernel counts microseconds
    return found


def _network(stats: PodStats) -> Fields | None:
    """The pod's interfaces, the default one apart; nothing for a pod on the machine's network."""
    if not stats.interfaces:
        return None
    first = next((each for each in stats.interfaces if each.name == _DEFAULT_INTERFACE), stats.interfaces[0])
    return {
        "timestamp": stats.timestamp,
        "default_interface": _interface(first),
        "interfaces": [_interface(each) for each in stats.interfaces if each is not first],
    }


def _interface(stats: InterfaceStats) -> Fields:
    return {
        "name": stats.name,
        "rx_bytes": _count(stats.rx_bytes),
        "rx_errors": _count(stats.rx_errors),
        "tx_bytes": _count(stats.tx_bytes),
        "tx_errors": _count(stats.tx_errors),
    }

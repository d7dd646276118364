"""Samples for the kubelet's /metrics/cadvisor, under the names and labels that cAdvisor made known.

A value on the wire is a whole number, so that seconds are whole seconds.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import msgspec

from sampan.cri import api_pb2 as pb
from sampan.cri import container_metrics, lists
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.processes import ProcessFigures
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats

_LABELS = ("container", "id", "image", "name", "namespace", "pod")
_SECOND = 1_000_000_000


class _OfContainer(NamedTuple):
    """A metric of a container: None from ``value`` leaves the sample out."""

    name: str
    help: str
    kind: pb.MetricType.ValueType
    value: Callable[[ContainerStats, ContainerRecord], int | None]


class _OfInterface(NamedTuple):
    """A metric of one interface of a pod."""

    name: str
    help: str
    value: Callable[[InterfaceStats], int]


def _figure(*path: str, per: int = 1) -> Callable[[ContainerStats, ContainerRecord], int | None]:
    """A figure of the cgroup by its place in ``runc events --stats``, divided by ``per``."""

    def value(stats: ContainerStats, _record: ContainerRecord) -> int | None:
        found: Any = stats.figures
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else int(found) // per

    return value


def _memory(v1: str, v2: str) -> Callable[[ContainerStats, ContainerRecord], int | None]:
    """A line of memory.stat, which cgroup v1 and v2 call differently."""

    def value(stats: ContainerStats, _record: ContainerRecord) -> int | None:
        raw: dict[str, int] = stats.figures.get("memory", {}).get("raw", {})
        return raw.get(v1, raw.get(v2))

    return value


def _bytes(text: str) -> int:
    """A number in a file of cgroup v2; anything else is none."""
    return int(text) if text.isdecimal() and len(text) < 20 else 0


_CONTAINER = (
    _OfContainer("container_cpu_usage_seconds_total", "CPU time consumed, in seconds.", pb.COUNTER,
                 lambda s, _: s.cpu_usage_ns // _SECOND),
    _OfContainer("container_cpu_user_seconds_total", "CPU time in user mode, in seconds.", pb.COUNTER,
                 _figure("cpu", "usage", "user", per=_SECOND)),
    _OfContainer("container_cpu_system_seconds_total", "CPU time in the kernel, in seconds.", pb.COUNTER,
                 _figure("cpu", "usage", "kernel", per=_SECOND)),
    _OfContainer("container_cpu_cfs_periods_total", "Periods of a CPU quota that passed.", pb.COUNTER,
                 _figure("cpu", "throttling", "periods")),
    _OfContainer("container_cpu_cfs_throttled_periods_total", "Periods in which the quota was used up.", pb.COUNTER,
                 _figure("cpu", "throttling", "throttledPeriods")),
    _OfContainer("container_cpu_cfs_throttled_seconds_total", "Time held back by the quota, in seconds.", pb.COUNTER,
                 _figure("cpu", "throttling", "throttledTime", per=_SECOND)),
    _OfContainer("container_memory_usage_bytes", "Memory in use, caches included.", pb.GAUGE,
                 lambda s, _: s.memory_usage),
    _OfContainer("container_memory_working_set_bytes", "Memory that the kernel can't drop at will.", pb.GAUGE,
                 lambda s, _: s.memory_working_set),
    _OfContainer("container_memory_rss", "Anonymous memory.", pb.GAUGE, lambda s, _: s.memory_rss),
    _OfContainer("container_memory_cache", "Page cache.", pb.GAUGE, _memory("total_cache", "file")),
    _OfContainer("container_memory_mapped_file", "Mapped files.", pb.GAUGE,
                 _memory("total_mapped_file", "file_mapped")),
    _OfContainer("container_memory_total_active_file_bytes", "Page cache in recent use.", pb.GAUGE,
                 _memory("total_active_file", "active_file")),
    _OfContainer("container_memory_total_inactive_file_bytes", "Page cache not in recent use.", pb.GAUGE,
                 _memory("total_inactive_file", "inactive_file")),
    _OfContainer("container_memory_max_usage_bytes", "The most memory that was in use.", pb.GAUGE,
                 _figure("memory", "usage", "max")),
    _OfContainer("container_memory_failcnt", "Times that the memory limit was met.", pb.COUNTER,
                 _figure("memory", "usage", "failcnt")),
    _OfContainer("container_memory_kernel_usage", "Memory that the kernel holds for the container.", pb.GAUGE,
                 _figure("memory", "kernel", "usage")),
    _OfContainer("container_memory_swap", "Swap in use.", pb.GAUGE, lambda s, _: s.swap_usage),
    _OfContainer("container_oom_events_total", "Processes killed for want of memory.", pb.COUNTER,
                 lambda s, _: s.oom_kills),
    _OfContainer("container_threads", "Threads.", pb.GAUGE, lambda s, _: s.pids),
    _OfContainer("container_threads_max", "Limit of threads; 0 for none.", pb.GAUGE, _figure("pids", "limit")),
    _OfContainer("container_start_time_seconds", "When the container started, in seconds since the epoch.", pb.GAUGE,
                 lambda _, c: c.started_at // _SECOND),
    _OfContainer("container_last_seen", "When the container was last looked at.", pb.GAUGE,
                 lambda s, _: s.timestamp // _SECOND),
    _OfContainer("container_spec_cpu_period", "CPU period, in microseconds.", pb.GAUGE,
                 lambda _, c: c.resources.cpu_period),
    _OfContainer("container_spec_cpu_quota", "CPU quota of a period, in microseconds.", pb.GAUGE,
                 lambda _, c: c.resources.cpu_quota if (c.resources.cpu_quota or 0) > 0 else None),
    _OfContainer("container_spec_cpu_shares", "CPU shares.", pb.GAUGE, lambda _, c: c.resources.cpu_shares),
    _OfContainer("container_spec_memory_limit_bytes", "Memory limit; 0 for none.", pb.GAUGE,
                 lambda _, c: max(c.resources.memory_limit or 0, 0)),
    _OfContainer("container_spec_memory_reservation_limit_bytes", "Memory that is kept for it; 0 for none.", pb.GAUGE,
                 lambda _, c: _bytes(c.resources.unified.get("memory.low", ""))),
    _OfContainer("container_cpu_load_average_10s", "Threads that run or wait to run; the kernel keeps no average.",
                 pb.GAUGE, lambda s, _: s.figures.get("load", 0)),
    _OfContainer("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0 for none.", pb.GAUGE,
                 lambda _, c: max(c.resources.memory_swap_limit or 0, 0)),
)  # fmt: skip

_FAULTS = "container_memory_failures_total"

_INTERFACE = (
    _OfInterface("container_network_receive_bytes_total", "Bytes received.", lambda i: i.rx_bytes),
    _OfInterface("container_network_receive_packets_total", "Packets received.", lambda i: i.rx_packets),
    _OfInterface("container_network_receive_packets_dropped_total", "Packets dropped on receipt.",
                 lambda i: i.rx_dropped),
    _OfInterface("container_network_receive_errors_total", "Errors on receipt.", lambda i: i.rx_errors),
    _OfInterface("container_network_transmit_bytes_total", "Bytes sent.", lambda i: i.tx_bytes),
    _OfInterface("container_network_transmit_packets_total", "Packets sent.", lambda i: i.tx_packets),
    _OfInterface("container_network_transmit_packets_dropped_total", "Packets dropped on sending.",
                 lambda i: i.tx_dropped),
    _OfInterface("container_network_transmit_errors_total", "Errors on sending.", lambda i: i.tx_errors),
)  # fmt: skip


class Metrics:
    """Calls about metrics.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_metric_descriptors(
        self, _request: pb.ListMetricDescriptorsRequest, _context: grpc.ServicerContext
    ) -> pb.ListMetricDescriptorsResponse:
        """Every metric that there may be."""
        return pb.ListMetricDescriptorsResponse(descriptors=descriptors())

    def list_pod_sandbox_metrics(
        self, _request: pb.ListPodSandboxMetricsRequest, _context: grpc.ServicerContext
    ) -> pb.ListPodSandboxMetricsResponse:
        """Samples of every pod that is ready."""
        return pb.ListPodSandboxMetricsResponse(pod_metrics=self._pods())

    def stream_pod_sandbox_metrics(
        self, _request: pb.StreamPodSandboxMetricsRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.StreamPodSandboxMetricsResponse]:
        """The same in pieces."""
        for piece in lists.pieces(self._pods()):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=piece)

    def _pods(self) -> Iterator[pb.PodSandboxMetrics]:
        for pod, stats, records in self._engine.pods.usage(self._engine.pods.list(state="ready")):
            yield pb.PodSandboxMetrics(
                pod_sandbox_id=pod.id,
                metrics=_of_pod(pod, stats),
                container_metrics=[
                    pb.ContainerMetrics(container_id=each.id, metrics=self._container(pod, records[each.id], each))
                    for each in stats.containers
                ],
            )

    def _container(self, pod: PodRecord, record: ContainerRecord, stats: ContainerStats) -> list[pb.Metric]:
        processes = self._engine.containers.processes(record)
        load = processes.states["running"] + processes.states["uninterruptible"]
        stats = msgspec.structs.replace(stats, figures={**stats.figures, "load": load})
        return _of_container(pod, record, stats, processes)


def descriptors() -> list[pb.MetricDescriptor]:
    """Names, helps and label keys of all metrics."""
    found = [pb.MetricDescriptor(name=m.name, help=m.help, label_keys=_LABELS) for m in _CONTAINER]
    found.append(pb.MetricDescriptor(name=_FAULTS, help="Page faults.", label_keys=(*_LABELS, "failure_type", "scope")))
    found += [
        pb.MetricDescriptor(name=each.name, help=each.help, label_keys=(*_LABELS, *each.labels))
        for each in container_metrics.FAMILIES
    ]
    found += [pb.MetricDescriptor(name=m.name, help=m.help, label_keys=(*_LABELS, "interface")) for m in _INTERFACE]
    return found


def _sample(
    name: str, labels: tuple[str, ...], timestamp: int, value: int, kind: pb.MetricType.ValueType = pb.COUNTER
) -> pb.Metric:
    return pb.Metric(
        name=name, timestamp=timestamp, metric_type=kind, label_values=labels, value=pb.UInt64Value(value=max(value, 0))
    )


def _of_pod(pod: PodRecord, stats: PodStats) -> list[pb.Metric]:
    identity = pod.spec.metadata
    labels = ("", pod.cgroup_path, "", pod.id, identity.namespace, identity.name)
    return [
        _sample(metric.name, (*labels, interface.name), stats.timestamp, metric.value(interface))
        for interface in stats.interfaces
        for metric in _INTERFACE
    ]


def _of_container(
    pod: PodRecord, record: ContainerRecord, stats: ContainerStats, processes: ProcessFigures
) -> list[pb.Metric]:
    identity = pod.spec.metadata
    name = record.spec.metadata.name
    labels = (name, record.cgroup_path, record.spec.image, record.id, identity.namespace, identity.name)
    found = []
    for metric in _CONTAINER:
        value = metric.value(stats, record)
        if value is not None:
            found.append(_sample(metric.name, labels, stats.timestamp, value, metric.kind))
    for kind, faults in (("pgfault", stats.page_faults), ("pgmajfault", stats.major_page_faults)):
        found.append(_sample(_FAULTS, (*labels, kind, "container"), stats.timestamp, faults))
    found += [
        _sample(sample.name, (*labels, *sample.labels), stats.timestamp, sample.value, sample.kind)
        for sample in container_metrics.samples(stats, processes)
    ]
    return found

"""Samples for the kubelet's /metrics/cadvisor, under the names and labels that cAdvisor made known.

A value on the wire is a whole number, so that seconds are whole seconds.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import lists
from sampan.cri.usage import GONE
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord, PodRecord
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


_CONTAINER = (
    _OfContainer(
        "container_cpu_usage_seconds_total", "CPU time consumed, in seconds.", pb.COUNTER,
        lambda s, _: s.cpu_usage_ns // _SECOND,
    ),
    _OfContainer("container_memory_usage_bytes", "Memory in use, caches included.", pb.GAUGE,
                 lambda s, _: s.memory_usage),
    _OfContainer("container_memory_working_set_bytes", "Memory that the kernel can't drop at will.", pb.GAUGE,
                 lambda s, _: s.memory_working_set),
    _OfContainer("container_memory_rss", "Anonymous memory.", pb.GAUGE, lambda s, _: s.memory_rss),
    _OfContainer("container_memory_swap", "Swap in use.", pb.GAUGE, lambda s, _: s.swap_usage),
    _OfContainer("container_fs_usage_bytes", "Bytes of the writable layer.", pb.GAUGE, lambda s, _: s.fs_used_bytes),
    _OfContainer("container_fs_inodes_total", "Inodes of the writable layer.", pb.GAUGE, lambda s, _: s.fs_inodes),
    _OfContainer("container_processes", "Processes and threads.", pb.GAUGE, lambda s, _: s.pids),
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
        for pod in self._engine.pods.list(state="ready"):
            try:
                stats = self._engine.pods.stats(pod.id)
            except GONE:
                continue
            records = {each.id: each for each in self._engine.containers.list(pod_id=pod.id)}
            yield pb.PodSandboxMetrics(
                pod_sandbox_id=pod.id,
                metrics=_of_pod(pod, stats),
                container_metrics=[
                    pb.ContainerMetrics(container_id=each.id, metrics=_of_container(pod, records[each.id], each))
                    for each in stats.containers
                    if each.id in records
                ],
            )


def descriptors() -> list[pb.MetricDescriptor]:
    """Names, helps and label keys of all metrics."""
    found = [pb.MetricDescriptor(name=m.name, help=m.help, label_keys=_LABELS) for m in _CONTAINER]
    found.append(pb.MetricDescriptor(name=_FAULTS, help="Page faults.", label_keys=(*_LABELS, "failure_type", "scope")))
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


def _of_container(pod: PodRecord, record: ContainerRecord, stats: ContainerStats) -> list[pb.Metric]:
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
    return found

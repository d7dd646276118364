"""Usage of containers and pods."""

from collections.abc import Iterator, Sequence

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import fields, lists, usage_messages
from sampan.cri.encoding import Encoded, Field
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.errors import WrongState

_CONTAINER = Field(pb.ContainerStatsResponse, "stats")
_CONTAINERS = Field(pb.ListContainerStatsResponse, "stats")
_CONTAINERS_STREAMED = Field(pb.StreamContainerStatsResponse, "container_stats")
_POD = Field(pb.PodSandboxStatsResponse, "stats")
_PODS = Field(pb.ListPodSandboxStatsResponse, "stats")
_PODS_STREAMED = Field(pb.StreamPodSandboxStatsResponse, "pod_sandbox_stats")


class Usage:
    """Calls about usage. Each answers with the message of its name, encoded.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._container_attributes: Encoded[ContainerRecord] = Encoded(usage_messages.container_attributes)
        self._pod_attributes: Encoded[PodRecord] = Encoded(usage_messages.pod_attributes)

    def container_stats(self, request: pb.ContainerStatsRequest, _context: grpc.ServicerContext) -> bytes:
        """One container."""
        record = self._engine.containers.get(fields.identifier(request.container_id, "container_id"))
        attributes = usage_messages.container_attributes(record)
        return _CONTAINER.of([usage_messages.Figures().container(attributes, self._engine.containers.stats(record.id))])

    def list_container_stats(self, request: pb.ListContainerStatsRequest, _context: grpc.ServicerContext) -> bytes:
        """Containers that pass the filter."""
        return _CONTAINERS.of(self._containers(request.filter))

    def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest, _context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The same in pieces."""
        return map(_CONTAINERS_STREAMED.of, lists.pieces(self._containers(request.filter)))

    def _containers(self, wanted: pb.ContainerStatsFilter) -> Iterator[bytes]:
        records = self._engine.containers.list(
            id=fields.word(wanted.id, "filter.id"),
            pod_id=fields.word(wanted.pod_sandbox_id, "filter.pod_sandbox_id"),
            labels=lists.selector(wanted.label_selector),
            settled=False,
        )
        attributes = self._container_attributes.of(records, all=lists.everything(wanted))
        figures = usage_messages.Figures()
        for record, stats in self._engine.containers.usage(records):
            yield figures.container(attributes[record.id], stats)

    def pod_sandbox_stats(self, request: pb.PodSandboxStatsRequest, _context: grpc.ServicerContext) -> bytes:
        """One pod."""
        record = self._engine.pods.get(fields.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        if record.state != "ready":
            raise WrongState(f'pod "{record.id[:12]}" is not ready')
        return _POD.of(self._usage([record], all=False, fresh=True))

    def list_pod_sandbox_stats(self, request: pb.ListPodSandboxStatsRequest, _context: grpc.ServicerContext) -> bytes:
        """Pods that pass the filter."""
        return _PODS.of(self._pods(request.filter))

    def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest, _context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The same in pieces."""
        return map(_PODS_STREAMED.of, lists.pieces(self._pods(request.filter)))

    def _pods(self, wanted: pb.PodSandboxStatsFilter) -> Iterator[bytes]:
        pods = self._engine.pods.list(
            id=fields.word(wanted.id, "filter.id"), state="ready", labels=lists.selector(wanted.label_selector)
        )
        return self._usage(pods, all=lists.everything(wanted))

    def _usage(self, pods: Sequence[PodRecord], *, all: bool, fresh: bool = False) -> Iterator[bytes]:
        attributes = self._pod_attributes.of(pods, all=all)
        usage = list(self._engine.pods.usage(pods, fresh=fresh))
        records = [record for each in usage for record in each.containers.values()]
        of_containers = self._container_attributes.of(records, all=all)
        figures = usage_messages.Figures()
        for pod, stats, _ in usage:
            containers = [figures.container(of_containers[each.id], each) for each in stats.containers]
            yield figures.pod(attributes[pod.id], stats, containers)

"""Usage of containers and pods."""

from collections.abc import Iterator, Sequence

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import fields, lists, usage_messages
from sampan.cri.encoding import ANY_TIME, Encoded, Field, Stamped
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.usage import ContainerReading, PodReading, container_stats, pod_stats
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
        self._container_attributes: Encoded[ContainerRecord, bytes] = Encoded()
        self._pod_attributes: Encoded[PodRecord, bytes] = Encoded()
        self._container_figures: Encoded[ContainerReading, Stamped] = Encoded()
        self._pod_figures: Encoded[PodReading, Stamped] = Encoded()

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

    def _containers(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        records = self._engine.containers.list(
            id=fields.word(wanted.id, "filter.id"),
            pod_id=fields.word(wanted.pod_sandbox_id, "filter.pod_sandbox_id"),
            labels=lists.selector(wanted.label_selector),
            settled=False,
        )
        all = lists.everything(wanted)
        attributes = self._container_attributes.of(records, usage_messages.container_attributes, all=all)
        figures = usage_messages.Figures()

        def encode(reading: ContainerReading) -> Stamped:
            stats = container_stats(self._engine, ANY_TIME, reading)
            return Stamped(figures.container(attributes[reading.id], stats))

        timestamp, read = self._engine.containers.readings(records)
        return [each.at(timestamp) for each in self._container_figures.of(read, encode, all=all).values()]

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

    def _pods(self, wanted: pb.PodSandboxStatsFilter) -> list[bytes]:
        pods = self._engine.pods.list(
            id=fields.word(wanted.id, "filter.id"), state="ready", labels=lists.selector(wanted.label_selector)
        )
        return self._usage(pods, all=lists.everything(wanted))

    def _usage(self, pods: Sequence[PodRecord], *, all: bool, fresh: bool = False) -> list[bytes]:
        timestamp, read = self._engine.pods.readings(pods, fresh=fresh)
        attributes = self._pod_attributes.of(pods, usage_messages.pod_attributes, all=all)
        records = [each.record for reading in read for each in reading.containers]
        of_containers = self._container_attributes.of(records, usage_messages.container_attributes, all=all)
        figures = usage_messages.Figures()

        def encode(reading: PodReading) -> Stamped:
            containers = [container_stats(self._engine, ANY_TIME, each) for each in reading.containers]
            stats = pod_stats(ANY_TIME, reading, tuple(containers))
            encoded = [figures.container(of_containers[each.id], each) for each in containers]
            return Stamped(figures.pod(attributes[reading.id], stats, encoded))

        return [each.at(timestamp) for each in self._pod_figures.of(read, encode, all=all).values()]

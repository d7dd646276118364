"""Usage of containers and pods."""

from collections.abc import Iterator
from typing import Any

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import fields, lists, usage_messages
from sampan.engine.engine import Engine
from sampan.engine.model import PodRecord
from sampan.errors import WrongState


class Usage:
    """Calls about usage.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def container_stats(
        self, request: pb.ContainerStatsRequest, _context: grpc.ServicerContext
    ) -> pb.ContainerStatsResponse:
        """One container."""
        record = self._engine.containers.get(fields.identifier(request.container_id, "container_id"))
        stats: Any = usage_messages.container(record, self._engine.containers.stats(record.id))
        return pb.ContainerStatsResponse(stats=stats)

    def list_container_stats(
        self, request: pb.ListContainerStatsRequest, _context: grpc.ServicerContext
    ) -> pb.ListContainerStatsResponse:
        """Containers that pass the filter."""
        return pb.ListContainerStatsResponse(stats=self._containers(request.filter))

    def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.StreamContainerStatsResponse]:
        """The same in pieces."""
        for piece in lists.pieces(self._containers(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=piece)

    def _containers(self, wanted: pb.ContainerStatsFilter) -> Iterator[Any]:
        records = self._engine.containers.list(
            id=fields.word(wanted.id, "filter.id"),
            pod_id=fields.word(wanted.pod_sandbox_id, "filter.pod_sandbox_id"),
            labels=lists.selector(wanted.label_selector),
        )
        for record, stats in self._engine.containers.usage(records):
            yield usage_messages.container(record, stats)

    def pod_sandbox_stats(
        self, request: pb.PodSandboxStatsRequest, _context: grpc.ServicerContext
    ) -> pb.PodSandboxStatsResponse:
        """One pod."""
        record = self._engine.pods.get(fields.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        if record.state != "ready":
            raise WrongState(f'pod "{record.id[:12]}" is not ready')
        return pb.PodSandboxStatsResponse(stats=next(self._usage([record], fresh=True)))

    def list_pod_sandbox_stats(
        self, request: pb.ListPodSandboxStatsRequest, _context: grpc.ServicerContext
    ) -> pb.ListPodSandboxStatsResponse:
        """Pods that pass the filter."""
        return pb.ListPodSandboxStatsResponse(stats=self._pods(request.filter))

    def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.StreamPodSandboxStatsResponse]:
        """The same in pieces."""
        for piece in lists.pieces(self._pods(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=piece)

    def _pods(self, wanted: pb.PodSandboxStatsFilter) -> Iterator[Any]:
        return self._usage(
            self._engine.pods.list(
                id=fields.word(wanted.id, "filter.id"), state="ready", labels=lists.selector(wanted.label_selector)
            )
        )

    def _usage(self, pods: list[PodRecord], *, fresh: bool = False) -> Iterator[Any]:
        return (usage_messages.pod(*found) for found in self._engine.pods.usage(pods, fresh=fresh))

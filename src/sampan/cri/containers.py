"""Containers: created, started, stopped, removed, updated, told of."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import grpc
import msgspec

from sampan.cri import api_pb2 as pb
from sampan.cri import common_requests, container_messages, container_requests, fields, lists
from sampan.cri.encoding import Encoded, Field
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord
from sampan.errors import InvalidInput, NotFound

_STATES = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
    pb.CONTAINER_UNKNOWN: "unknown",
}
_LISTED = Field(pb.ListContainersResponse, "containers")
_STREAMED = Field(pb.StreamContainersResponse, "containers")
#: Longest grace period of a stop, in seconds: about 68 years, Kubernetes' own bound (int32).
_LONGEST = (1 << 31) - 1


class Containers:
    """Calls about containers.

    Args:
        engine: The engine.
        unset_seccomp: What a container that names no seccomp profile gets.
    """

    def __init__(self, engine: Engine, *, unset_seccomp: Literal["default", "unconfined"] = "unconfined") -> None:
        self._engine = engine
        self._unset_seccomp = unset_seccomp
        self._entries: Encoded[ContainerRecord, bytes] = Encoded()

    def create_container(
        self, request: pb.CreateContainerRequest, _context: grpc.ServicerContext
    ) -> pb.CreateContainerResponse:
        """Make a container, or find the one that the same request made before.

        ``sandbox_config`` is not looked at: what the pod was made from is in its record.
        """
        pod_id = fields.identifier(request.pod_sandbox_id, "pod_sandbox_id")
        spec = container_requests.container_spec(request.config, unset_seccomp=self._unset_seccomp)
        if spec.security.privileged and not self._engine.pods.get(pod_id).spec.security.privileged:
            raise InvalidInput(
                "the pod may not hold privileged containers", field="config.linux.security_context.privileged"
            )
        return pb.CreateContainerResponse(container_id=self._engine.containers.create(pod_id, spec).id)

    def start_container(
        self, request: pb.StartContainerRequest, _context: grpc.ServicerContext
    ) -> pb.StartContainerResponse:
        """Start."""
        self._engine.containers.start(fields.identifier(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    def stop_container(
        self, request: pb.StopContainerRequest, _context: grpc.ServicerContext
    ) -> pb.StopContainerResponse:
        """Stop; a container that is stopped or gone is no error."""
        container_id = fields.identifier(request.container_id, "container_id")
        # A grace period may have 64 bits: a second more than 68 years is none.
        timeout = fields.between(min(request.timeout, _LONGEST), 0, _LONGEST, "timeout")
        try:
            self._engine.containers.stop(container_id, timeout)
        except NotFound:
            pass
        return pb.StopContainerResponse()

    def remove_container(
        self, request: pb.RemoveContainerRequest, _context: grpc.ServicerContext
    ) -> pb.RemoveContainerResponse:
        """Remove; a container that is gone is no error."""
        try:
            self._engine.containers.remove(fields.identifier(request.container_id, "container_id"))
        except NotFound:
            pass
        return pb.RemoveContainerResponse()

    def list_containers(self, request: pb.ListContainersRequest, _context: grpc.ServicerContext) -> bytes:
        """Containers that pass the filter: ``ListContainersResponse``."""
        return _LISTED.of(self._listed(request.filter))

    def stream_containers(self, request: pb.StreamContainersRequest, _context: grpc.ServicerContext) -> Iterator[bytes]:
        """The same in pieces: ``StreamContainersResponse``."""
        return map(_STREAMED.of, lists.pieces(self._listed(request.filter)))

    def _listed(self, wanted: pb.ContainerFilter) -> Iterable[bytes]:
        state = lists.state_of(_STATES, wanted.state.state, "filter.state.state") if wanted.HasField("state") else ""
        containers = self._engine.containers.list(
            id=fields.word(wanted.id, "filter.id"),
            pod_id=fields.word(wanted.pod_sandbox_id, "filter.pod_sandbox_id"),
            state=state,
            labels=lists.selector(wanted.label_selector),
        )
        return self._entries.of(containers, _entry, all=lists.everything(wanted)).values()

    def container_status(
        self, request: pb.ContainerStatusRequest, _context: grpc.ServicerContext
    ) -> pb.ContainerStatusResponse:
        """One container."""
        container = self._engine.containers.get(fields.identifier(request.container_id, "container_id"))
        (status,) = container_messages.statuses(self._engine.images, [container])
        response = pb.ContainerStatusResponse(status=status)
        if request.verbose:
            response.info["info"] = self._info(container)
        return response

    def _info(self, container: ContainerRecord) -> str:
        """What ``crictl inspect`` shows beside the status; the keys are those that tools know from containerd."""
        document: dict[str, Any] = {
            "sandboxID": container.pod_id,
            "pid": container.pid,
            "snapshotKey": container.snapshot_key,
            "snapshotter": self._engine.store.snapshots.name,
            "config": msgspec.to_builtins(container.spec),
        }
        bundle = self._engine.layout.bundle(container.pod_id, container.id)
        try:
            with open(f"{bundle}/config.json", "rb") as file:
                document["runtimeSpec"] = msgspec.json.decode(file.read())
        except (OSError, msgspec.DecodeError):
            document["runtimeSpec"] = None
        return msgspec.json.encode(document).decode()

    def update_container_resources(
        self, request: pb.UpdateContainerResourcesRequest, _context: grpc.ServicerContext
    ) -> pb.UpdateContainerResourcesResponse:
        """Change limits."""
        container_id = fields.identifier(request.container_id, "container_id")
        fields.strings(request.annotations, "annotations")
        self._engine.containers.update(container_id, common_requests.resources(request.linux, "linux"))
        return pb.UpdateContainerResourcesResponse()

    def reopen_container_log(
        self, request: pb.ReopenContainerLogRequest, _context: grpc.ServicerContext
    ) -> pb.ReopenContainerLogResponse:
        """Open the log anew after it was renamed."""
        self._engine.containers.reopen_log(fields.identifier(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    def checkpoint_container(
        self, request: pb.CheckpointContainerRequest, _context: grpc.ServicerContext
    ) -> pb.CheckpointContainerResponse:
        """Write a checkpoint to a file; the container runs on."""
        container_id = fields.identifier(request.container_id, "container_id")
        location = fields.absolute(request.location, "location", required=True)
        timeout = fields.between(request.timeout, 0, _LONGEST, "timeout")
        self._engine.containers.checkpoint(container_id, location, float(timeout))
        return pb.CheckpointContainerResponse()


def _entry(container: ContainerRecord) -> bytes:
    """What a list tells of one."""
    return container_messages.listed(container).SerializeToString()

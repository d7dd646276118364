"""Pods: run, stopped, removed, told of."""

import time
from collections.abc import Iterable, Iterator

import grpc
import msgspec

from sampan.cri import api_pb2 as pb
from sampan.cri import common_requests, container_messages, fields, lists, pod_messages, pod_requests
from sampan.cri.encoding import Encoded, Field
from sampan.engine.engine import Engine
from sampan.engine.model import PodRecord
from sampan.errors import NotFound

_STATES = {pb.SANDBOX_READY: "ready", pb.SANDBOX_NOTREADY: "notready"}
_LISTED = Field(pb.ListPodSandboxResponse, "items")
_STREAMED = Field(pb.StreamPodSandboxesResponse, "pod_sandboxes")


class Sandboxes:
    """Calls about pods.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._entries: Encoded[PodRecord, bytes] = Encoded()

    def run_pod_sandbox(
        self, request: pb.RunPodSandboxRequest, _context: grpc.ServicerContext
    ) -> pb.RunPodSandboxResponse:
        """Make a pod, or find the one that the same request made before."""
        spec = pod_requests.pod_spec(request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=self._engine.pods.run(spec).id)

    def stop_pod_sandbox(
        self, request: pb.StopPodSandboxRequest, _context: grpc.ServicerContext
    ) -> pb.StopPodSandboxResponse:
        """Stop; a pod that is stopped or gone is no error."""
        pod_id = fields.identifier(request.pod_sandbox_id, "pod_sandbox_id")
        try:
            self._engine.pods.stop(pod_id)
        except NotFound:
            pass
        return pb.StopPodSandboxResponse()

    def remove_pod_sandbox(
        self, request: pb.RemovePodSandboxRequest, _context: grpc.ServicerContext
    ) -> pb.RemovePodSandboxResponse:
        """Remove; a pod that is gone is no error."""
        pod_id = fields.identifier(request.pod_sandbox_id, "pod_sandbox_id")
        try:
            self._engine.pods.remove(pod_id)
        except NotFound:
            pass
        return pb.RemovePodSandboxResponse()

    def pod_sandbox_status(
        self, request: pb.PodSandboxStatusRequest, _context: grpc.ServicerContext
    ) -> pb.PodSandboxStatusResponse:
        """One pod, with its containers at the same moment."""
        now = time.time_ns()
        pod = self._engine.pods.get(fields.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        containers = self._engine.containers.list(pod_id=pod.id)
        response = pb.PodSandboxStatusResponse(
            status=pod_messages.status(pod),
            containers_statuses=container_messages.statuses(self._engine.images, containers),
            timestamp=now,
        )
        if request.verbose:
            response.info["info"] = self._info(pod)
        return response

    def _info(self, pod: PodRecord) -> str:
        """What ``crictl inspectp`` shows beside the status; the keys are those that tools know from containerd."""
        namespaces = [{"type": kind, "path": path} for kind, path in sorted(pod.namespace_paths.items())]
        document = {
            "pid": pod.pause_pid,
            "runtimeHandler": pod.handler,
            "runtimeType": self._engine.config.handlers[pod.handler].type
            if pod.handler in self._engine.config.handlers
            else "",
            "runtimeSpec": {"linux": {"namespaces": namespaces, "cgroupsPath": pod.cgroup_path}},
            "cniResult": pod.network_result,
            "config": msgspec.to_builtins(pod.spec),
        }
        return msgspec.json.encode(document).decode()

    def list_pod_sandbox(self, request: pb.ListPodSandboxRequest, _context: grpc.ServicerContext) -> bytes:
        """Pods that pass the filter: ``ListPodSandboxResponse``."""
        return _LISTED.of(self._listed(request.filter))

    def stream_pod_sandboxes(
        self, request: pb.StreamPodSandboxesRequest, _context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The same in pieces: ``StreamPodSandboxesResponse``."""
        return map(_STREAMED.of, lists.pieces(self._listed(request.filter)))

    def _listed(self, wanted: pb.PodSandboxFilter) -> Iterable[bytes]:
        state = lists.state_of(_STATES, wanted.state.state, "filter.state.state") if wanted.HasField("state") else ""
        pods = self._engine.pods.list(
            id=fields.word(wanted.id, "filter.id"), state=state, labels=lists.selector(wanted.label_selector)
        )
        return self._entries.of(pods, _entry, all=lists.everything(wanted)).values()

    def update_pod_sandbox_resources(
        self, request: pb.UpdatePodSandboxResourcesRequest, _context: grpc.ServicerContext
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Take a pod's new sums. The kubelet has resized the pod's cgroup itself."""
        pod_id = fields.identifier(request.pod_sandbox_id, "pod_sandbox_id")
        self._engine.pods.update(
            pod_id,
            overhead=common_requests.resources(request.overhead, "overhead") if request.HasField("overhead") else None,
            resources=common_requests.resources(request.resources, "resources")
            if request.HasField("resources")
            else None,
        )
        return pb.UpdatePodSandboxResourcesResponse()


def _entry(pod: PodRecord) -> bytes:
    """What a list tells of one."""
    return pod_messages.sandbox(pod).SerializeToString()

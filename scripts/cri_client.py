"""A small CRI client over the generated stubs: what the demo and the benchmarks do with pods, a method for each."""

from __future__ import annotations

from pathlib import Path

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub


class CriClient:
    """One connection to a CRI server."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        self.runtime = RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.images = ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def pull(self, name: str) -> str:
        """Pulls an image; its id."""
        return str(self.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=name))).image_ref)

    def run_pod(self, config: pb.PodSandboxConfig, handler: str = "") -> str:
        """Runs a pod sandbox; its id."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(self.runtime.RunPodSandbox(request).pod_sandbox_id)

    def create(self, pod_id: str, config: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> str:
        """Creates a container; its id."""
        request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
        return str(self.runtime.CreateContainer(request).container_id)

    def start(self, container_id: str) -> None:
        """Starts a container."""
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=container_id))

    def exec_sync(self, container_id: str, command: list[str], timeout: int = 20) -> pb.ExecSyncResponse:
        """Runs a command in a container and waits for it."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        response: pb.ExecSyncResponse = self.runtime.ExecSync(request)
        return response

    def container(self, container_id: str) -> pb.ContainerStatus:
        """A container's status."""
        request = pb.ContainerStatusRequest(container_id=container_id)
        status: pb.ContainerStatus = self.runtime.ContainerStatus(request).status
        return status

    def pod(self, pod_id: str) -> pb.PodSandboxStatus:
        """A pod's status."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        status: pb.PodSandboxStatus = self.runtime.PodSandboxStatus(request).status
        return status

    def containers(self) -> list[pb.Container]:
        """Every container."""
        return list(self.runtime.ListContainers(pb.ListContainersRequest()).containers)

    def pods(self) -> list[pb.PodSandbox]:
        """Every pod."""
        return list(self.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items)

    def stop(self, container_id: str, timeout: int = 10) -> None:
        """Stops a container."""
        self.runtime.StopContainer(pb.StopContainerRequest(container_id=container_id, timeout=timeout))

    def remove(self, container_id: str) -> None:
        """Removes a container."""
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container_id))

    def stop_pod(self, pod_id: str) -> None:
        """Stops a pod."""
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))

    def remove_pod(self, pod_id: str) -> None:
        """Removes a pod."""
        self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def namespaces(*, share_pids: bool = True) -> pb.NamespaceOption:
    """Network and IPC are the pod's; so are PIDs, or each container has its own, as a kubelet has it by default."""
    pids = pb.NamespaceMode.POD if share_pids else pb.NamespaceMode.CONTAINER
    return pb.NamespaceOption(network=pb.NamespaceMode.POD, pid=pids, ipc=pb.NamespaceMode.POD)


def pod_config(
    name: str, logs: Path, ports: dict[int, int] | None = None, *, share_pids: bool = True
) -> pb.PodSandboxConfig:
    """A pod on the network; ``ports``: host port -> container port."""
    mappings = [pb.PortMapping(container_port=inner, host_port=outer) for outer, inner in (ports or {}).items()]
    shared = namespaces(share_pids=share_pids)
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default", attempt=0),
        hostname=name,
        log_directory=str(logs),
        port_mappings=mappings,
        linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=shared)),
    )


def container_config(
    name: str,
    image: str,
    *,
    command: list[str] | None = None,
    environment: dict[str, str] | None = None,
    resources: pb.LinuxContainerResources | None = None,
    share_pids: bool = True,
) -> pb.ContainerConfig:
    """A container whose log is ``<name>.log`` in the pod's log directory."""
    shared = namespaces(share_pids=share_pids)
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name, attempt=0),
        image=pb.ImageSpec(image=image),
        command=command or [],
        envs=[pb.KeyValue(key=key, value=value) for key, value in (environment or {}).items()],
        log_path=f"{name}.log",
        linux=pb.LinuxContainerConfig(
            resources=resources, security_context=pb.LinuxContainerSecurityContext(namespace_options=shared)
        ),
    )

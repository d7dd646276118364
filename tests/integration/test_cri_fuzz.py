"""Requests made up from the interface's descriptor, for every call: no fault of ours, one line, no damage."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import oci_image
import pytest
import test_images
from cri_checks import left_at_last
from cri_daemon import Daemon, private_daemon
from hypothesis import HealthCheck, given, settings
from local_registry import LocalRegistry
from made_up import Maker

from sampan.cri import api_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.slow]

METHODS = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
QUIET = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


class World:
    """The daemon, and what is in it."""

    def __init__(self, daemon: Daemon, folder: str, image: str) -> None:
        self.daemon = daemon
        self.image = pb.ImageSpec(image=image)
        daemon.images.PullImage(pb.PullImageRequest(image=self.image))
        self.pod_id = daemon.runtime.RunPodSandbox(self.pod("p")).pod_sandbox_id
        self.container_id = daemon.runtime.CreateContainer(self.container("c")).container_id
        daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=self.container_id))
        self.maker = Maker(folder, [self.pod_id, self.container_id], image)

    def pod(self, name: str) -> pb.RunPodSandboxRequest:
        """A good request."""
        metadata = pb.PodSandboxMetadata(name=name, uid="u", namespace="n")
        return pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata))

    def container(self, name: str) -> pb.CreateContainerRequest:
        """A good request."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name), image=self.image, command=["sleep", "1000"]
        )
        return pb.CreateContainerRequest(pod_sandbox_id=self.pod_id, config=config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fuzz")
    with LocalRegistry(folder / "data") as registry, private_daemon("sampancri2", "10.89.74.0/24") as daemon:
        oci_image.push(test_images.busybox_image(Path("/bin/busybox")), registry.address, "demo/busybox", "1")
        daemon.start()
        yield World(daemon, str(folder / "paths"), f"{registry.host}/demo/busybox:1")


def served_or_refused(call: Any, request: Any, *, streaming: bool = False) -> Any:
    """The answer, or None for a refusal that is as it should be."""
    refusal: grpc.RpcError | None = None
    try:
        answer = call(request, timeout=30)
        return list(answer) if streaming else answer
    except grpc.RpcError as error:
        refusal = error
    details = refusal.details()
    assert refusal.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), details
    assert not details.startswith("internal error"), details
    assert len(details.splitlines()) == 1, details
    return None


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_a_made_up_request_is_served_or_refused_in_one_line(world: World, method: Any) -> None:
    stub = world.daemon.images if method.containing_service.name == "ImageService" else world.daemon.runtime
    call = getattr(stub, method.name)

    @QUIET
    @given(world.maker.message(method.input_type))
    def send(request: Any) -> None:
        if method.name == "GetContainerEvents":
            follower = call(request)
            follower.initial_metadata()
            follower.cancel()
        else:
            served_or_refused(call, request, streaming=method.server_streaming)

    send()
    assert world.daemon.process is not None
    assert world.daemon.process.poll() is None


def test_a_pod_with_one_strange_field_runs_or_leaves_nothing(world: World) -> None:
    runtime = world.daemon.runtime

    @QUIET
    @given(world.maker.disturbed(world.pod("q")))
    def send(request: Any) -> None:
        answer = served_or_refused(runtime.RunPodSandbox, request)
        if answer is not None:
            runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=answer.pod_sandbox_id))
        left = [pod.metadata.name for pod in runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items]
        assert "q" not in left

    send()


def test_a_container_with_one_strange_field_starts_or_leaves_nothing(world: World) -> None:
    runtime = world.daemon.runtime
    world.pod_id = runtime.RunPodSandbox(world.pod("r")).pod_sandbox_id

    @QUIET
    @given(world.maker.disturbed(world.container("s")))
    def send(request: Any) -> None:
        answer = served_or_refused(runtime.CreateContainer, request)
        if answer is not None:
            start = pb.StartContainerRequest(container_id=answer.container_id)
            served_or_refused(runtime.StartContainer, start)
            runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=answer.container_id))
        assert not runtime.ListContainers(pb.ListContainersRequest(filter=wanted)).containers

    wanted = pb.ContainerFilter(pod_sandbox_id=world.pod_id)
    send()


def held(daemon: Daemon) -> list[str]:
    """Descriptors of the daemon that lead to pods, processes or files that are gone, and how many sockets there are."""
    assert daemon.process is not None
    folder = f"/proc/{daemon.process.pid}/fd"
    links = []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue
    wrong = [link for link in links if "/pods/" in link or "pidfd" in link or link.endswith("(deleted)")]
    return wrong + (["sockets"] if sum(link.startswith("socket:") for link in links) > 40 else [])


def test_nothing_is_left(world: World) -> None:
    daemon = world.daemon
    daemon.seen = os.listdir(daemon.folder / "state" / "pods")  # type: ignore[attr-defined]
    assert held(daemon) == []
    daemon.remove_pods()
    assert left_at_last(daemon) == []
    assert held(daemon) == []
    for folder in ("root/volumes", "root/checkpoints", "state/locks"):
        path = daemon.folder / folder
        assert not path.exists() or os.listdir(path) == []
    # It is as good as new: a pod lives and goes.
    answer = daemon.runtime.RunPodSandbox(world.pod("last"))
    daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=answer.pod_sandbox_id))


def test_nothing_unforeseen_is_in_the_log(world: World) -> None:
    log = world.daemon.log.read_text()
    assert "unexpected" not in log
    assert "Traceback" not in log

"""Requests that meet the end of what they are about: whoever asks is told so, and is not told of a fault of ours."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root

_GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri18", "10.89.79.0/24") as made:
        yield made


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    yield shared
    shared.remove_pods()


_NUMBERS = count()


def run_pod(daemon: Daemon) -> str:
    metadata = pb.PodSandboxMetadata(name=f"p{next(_NUMBERS)}", uid="u", namespace="n")
    request = pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata))
    return str(daemon.runtime.RunPodSandbox(request).pod_sandbox_id)


def create(daemon: Daemon, pod: str, name: str, script: str) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name), image=daemon.image, command=["sh", "-c", script]
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return str(daemon.runtime.CreateContainer(request).container_id)


@pytest.mark.parametrize("turn", range(4))
def test_commands_in_a_container_that_ends(daemon: Daemon, turn: int) -> None:
    pod = run_pod(daemon)
    containers = [create(daemon, pod, f"c{number}", f"sleep 0.{number + 1}{turn}") for number in range(6)]

    def ask(container: str) -> list[str]:
        daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        request = pb.ExecSyncRequest(container_id=container, cmd=["true"])
        faults = []
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            try:
                daemon.runtime.ExecSync(request)
            except grpc.RpcError as error:
                if error.code() not in _GONE:
                    faults.append(f"{error.code()}: {error.details()}")
                if "is exited" in error.details() or "not running" in error.details():
                    return faults

    with ThreadPoolExecutor(len(containers)) as pool:
        assert [fault for faults in pool.map(ask, containers) for fault in faults] == []


@pytest.mark.parametrize("turn", range(10))
def test_containers_of_a_pod_that_goes(daemon: Daemon, turn: int) -> None:
    pods = [run_pod(daemon) for _ in range(3)]

    def make(pod: str) -> str:
        try:
            for number in range(6):
                container = create(daemon, pod, f"c{number}", "sleep 1000")
                daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
                daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
        except grpc.RpcError as error:
            return "" if error.code() in _GONE else f"{error.code()}: {error.details()}"
        return ""

    def remove(pod: str) -> str:
        time.sleep(0.02 * turn)
        try:
            daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        except grpc.RpcError as error:
            return f"{error.code()}: {error.details()}"
        return ""

    with ThreadPoolExecutor(2 * len(pods)) as pool:
        work = [pool.submit(one, pod) for pod in pods for one in (make, remove)]
        assert [fault for one in work if (fault := one.result(60))] == []
    assert not list(daemon.folder.glob("state/pods/*"))


def test_a_pod_ends_though_somebody_looks_into_its_network(daemon: Daemon) -> None:
    pod = run_pod(daemon)
    with open(f"{daemon.folder}/state/ns/{pod}/net", "rb"):
        daemon.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert not list(daemon.folder.glob("state/ns/*"))

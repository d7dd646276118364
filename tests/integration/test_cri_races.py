"""Requests that meet the end of what they are about: whoever asks is told so, and is not told of a fault of ours."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from random import Random

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


class Client:
    """Sends requests of all kinds about whatever is there."""

    SCRIPTS = ("sleep 100", "exit 3", "sleep 0.2", "trap '' TERM; sleep 100")

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.random = Random(seed)
        self.faults: list[str] = []

    def work(self, turns: int) -> list[str]:
        """Send so many; what was answered that is not about the state of things."""
        for _ in range(turns):
            pods = [pod.id for pod in self.daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items]
            listed = self.daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
            pod = self.random.choice(pods or ["none"])
            container = self.random.choice([one.id for one in listed] or ["none"])
            try:
                self.random.choice((self.of_pods, self.of_containers, self.start, self.of_figures))(pod, container)
            except grpc.RpcError as error:
                if error.code() not in (*_GONE, grpc.StatusCode.ALREADY_EXISTS):
                    self.faults.append(f"{error.code()}: {error.details()}")
        return self.faults

    def of_pods(self, pod: str, _: str) -> None:
        """Make, stop or remove one."""
        runtime = self.daemon.runtime
        kind = self.random.randrange(5)
        if kind == 0:
            runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        elif kind == 1:
            runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        else:
            metadata = pb.PodSandboxMetadata(name=f"n{self.random.randrange(4)}", uid="u", namespace="n")
            runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata)))

    def start(self, pod: str, _: str) -> None:
        """Make a container and start it."""
        container = create(self.daemon, pod, f"c{self.random.randrange(10)}", self.random.choice(self.SCRIPTS))
        self.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))

    def of_containers(self, _: str, container: str) -> None:
        """Stop, remove or change one, or run a command in it."""
        runtime = self.daemon.runtime
        kind = self.random.randrange(5)
        if kind == 0:
            grace = self.random.choice((0, 1))
            runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=grace))
        elif kind == 1:
            runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        elif kind == 2:
            limits = pb.LinuxContainerResources(cpu_shares=self.random.choice((100, 200)))
            runtime.UpdateContainerResources(pb.UpdateContainerResourcesRequest(container_id=container, linux=limits))
        else:
            command = self.random.choice((["true"], ["sleep", "0.1"]))
            runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=command, timeout=60))

    def of_figures(self, pod: str, container: str) -> None:
        """Ask for some, or have a log opened anew."""
        runtime = self.daemon.runtime
        kind = self.random.randrange(4)
        if kind == 0:
            runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))
        elif kind == 1:
            runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest())
        elif kind == 2:
            runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())
        else:
            runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))


@pytest.mark.slow
def test_clients_that_know_nothing_of_each_other(daemon: Daemon) -> None:
    clients = [Client(daemon, seed) for seed in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        assert [fault for faults in pool.map(lambda client: client.work(100), clients) for fault in faults] == []
    daemon.remove_pods()
    assert not list(daemon.folder.glob("state/pods/*"))
    assert not list(daemon.folder.glob("state/ns/*"))

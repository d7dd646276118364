"""``kill -9`` of the daemon at any instant of a pod's life: nothing is lost, nothing is left, no name stays taken."""

import os
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from cri_checks import left_at_last, told_truly
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Milliseconds after the first request: from the pod's first step to its last, wherever the machine's pace puts them.
INSTANTS = (2, 6, 10, 15, 20, 30, 40, 50, 65, 80, 100, 130, 160, 200)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri3", "10.89.75.0/24") as made:
        yield made


def live(daemon: Daemon, attempt: int) -> None:
    """A pod's life, with requests that may be repeated."""
    runtime = daemon.runtime
    pod_config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n", attempt=attempt),
        port_mappings=[pb.PortMapping(container_port=80, host_port=18099)],
    )
    pod = runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=pod_config)).pod_sandbox_id
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=daemon.image, command=["sleep", "1000"])
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = runtime.CreateContainer(request).container_id
    runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
    runtime.StopContainer(pb.StopContainerRequest(container_id=container))
    runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


@pytest.mark.parametrize("milliseconds", INSTANTS)
def test_a_kill_at_an_instant(daemon: Daemon, milliseconds: int) -> None:
    cut: list[grpc.StatusCode] = []

    def client() -> None:
        try:
            live(daemon, milliseconds)
        except grpc.RpcError as error:
            cut.append(error.code())

    thread = threading.Thread(target=client)
    thread.start()
    time.sleep(milliseconds / 1000)
    daemon.kill()
    thread.join(timeout=60)
    assert set(cut) <= {grpc.StatusCode.UNAVAILABLE}
    daemon.start()
    daemon.seen = os.listdir(daemon.folder / "state" / "pods")  # type: ignore[attr-defined]
    told_truly(daemon)
    daemon.remove_pods()
    assert left_at_last(daemon) == []
    # No name and no port stays taken: the same pod can live its life now.
    live(daemon, milliseconds)
    assert left_at_last(daemon) == []

"""``kill -9`` of the daemon at any instant of a pod's life: nothing is lost, nothing is left, no name stays taken."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import oci_image
import pytest
import test_images
from cri_daemon import Daemon, private_daemon
from local_registry import LocalRegistry

from sampan.cri import api_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Milliseconds after the first request: from the pod's first step to its last, wherever the machine's pace puts them.
INSTANTS = (2, 6, 10, 15, 20, 30, 40, 50, 65, 80, 100, 130, 160, 200)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with (
        LocalRegistry(tmp_path_factory.mktemp("registry") / "data") as registry,
        private_daemon("sampancri3", "10.89.75.0/24") as server,
    ):
        oci_image.push(test_images.busybox_image(Path("/bin/busybox")), registry.address, "demo/busybox", "1")
        server.start()
        server.image = f"{registry.host}/demo/busybox:1"  # type: ignore[attr-defined]
        server.images.PullImage(pb.PullImageRequest(image=_image(server)))
        yield server


def _image(daemon: Daemon) -> pb.ImageSpec:
    return pb.ImageSpec(image=daemon.image)  # type: ignore[attr-defined]


def live(daemon: Daemon, attempt: int) -> None:
    """A pod's life, with requests that may be repeated."""
    runtime = daemon.runtime
    pod_config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n", attempt=attempt),
        port_mappings=[pb.PortMapping(container_port=80, host_port=18099)],
    )
    pod = runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=pod_config)).pod_sandbox_id
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"), image=_image(daemon), command=["sleep", "1000"]
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = runtime.CreateContainer(request).container_id
    runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
    runtime.StopContainer(pb.StopContainerRequest(container_id=container))
    runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def told_truly(daemon: Daemon) -> None:
    """Every container's state is what the kernel says of its process."""
    runtime = daemon.runtime
    for container in runtime.ListContainers(pb.ListContainersRequest()).containers:
        answer = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container.id, verbose=True))
        pid = json.loads(answer.info["info"])["pid"]
        lives = pid > 0 and os.path.exists(f"/proc/{pid}")
        assert lives == (answer.status.state in (pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING)), answer.status
        assert answer.status.state != pb.CONTAINER_UNKNOWN


def left(daemon: Daemon) -> list[str]:
    """What is still on the machine of pods that are gone."""
    state = daemon.folder / "state"
    found = [str(path) for name in ("pods", "ns", "runtime/sampan") for path in (state / name).glob("*")]
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        found += [line.split()[1] for line in mounts if str(state) in line]
    # A monitor that forgot to end still listens, on a path that is gone.
    with open("/proc/net/unix", encoding="utf-8") as sockets:
        found += [line.split()[-1] for line in sockets if f"{state}/pods" in line]
    found += [link for link in os.listdir("/sys/class/net") if _master(link) == daemon.bridge]
    cgroups = Path("/sys/fs/cgroup")
    ids = set(daemon.seen)  # type: ignore[attr-defined]
    found += [str(path) for path in cgroups.glob("*/sampan/k8s.io/*") if path.name in ids]
    return found


def left_at_last(daemon: Daemon) -> list[str]:
    """The same after a while: the kernel takes a network namespace's devices in its own time."""
    deadline = time.monotonic() + 5
    while (found := left(daemon)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _master(link: str) -> str:
    try:
        return os.path.basename(os.readlink(f"/sys/class/net/{link}/master"))
    except OSError:
        return ""


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

"""A disk that is full: what runs is still told truly, and what makes room still works."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Its root is a small file system of its own."""
    mounted = []

    def prepare(made: Daemon) -> None:
        root = made.folder / "root"
        root.mkdir(mode=0o711, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], check=True)
        mounted.append(root)

    try:
        with busybox_daemon(Daemon, tmp_path / "registry", "sampancri9", "10.89.97.0/24", prepare) as made:
            yield made
            made.remove_pods()
            made.stop()
            for root in mounted:
                subprocess.run(["umount", str(root)], check=True)
                mounted.remove(root)
    finally:
        for root in mounted:
            subprocess.run(["umount", "-l", str(root)], check=False)


def run_pod(daemon: Daemon, name: str) -> str:
    metadata = pb.PodSandboxMetadata(name=name, uid=name, namespace="n")
    config = pb.PodSandboxConfig(metadata=metadata, linux=pb.LinuxPodSandboxConfig())
    return cast("str", daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def run(daemon: Daemon, pod: str, name: str, script: str) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name), image=daemon.image, command=["sh", "-c", script]
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = cast("str", daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def states(daemon: Daemon) -> dict[str, int]:
    listed = daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
    return {container.metadata.name: container.state for container in listed}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_full_disk_hides_nothing_and_room_can_be_made(daemon: Daemon, restarted: bool) -> None:
    runtime = daemon.runtime
    pod = run_pod(daemon, "a")
    ends = run(daemon, pod, "ends", "sleep 2; exit 4")
    fill = "for size in 65536 1; do dd if=/dev/zero bs=$size >> /fill; done"
    lives = run(daemon, pod, "lives", f"{fill}; exec sleep 1000")
    while os.statvfs(daemon.folder / "root").f_bavail:
        time.sleep(0.05)
    if restarted:
        daemon.stop()
        daemon.start()
        runtime = daemon.runtime
    with pytest.raises(grpc.RpcError) as refused:
        run_pod(daemon, "b")
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value.details()
    deadline = time.monotonic() + 30
    while states(daemon) != {"ends": pb.CONTAINER_EXITED, "lives": pb.CONTAINER_RUNNING}:
        assert time.monotonic() < deadline, states(daemon)
        time.sleep(0.05)
    status = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=ends)).status
    assert (status.exit_code, status.reason) == (4, "Error")
    runtime.StopContainer(pb.StopContainerRequest(container_id=lives, timeout=0))
    runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=lives))
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=daemon.image))
    daemon.images.PullImage(pb.PullImageRequest(image=daemon.image))
    run(daemon, run_pod(daemon, "b"), "again", "exec sleep 1000")
    assert states(daemon) == {"again": pb.CONTAINER_RUNNING}
    assert "unexpected" not in (daemon.folder / "server.log").read_text()

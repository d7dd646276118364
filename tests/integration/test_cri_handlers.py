"""Runtime handlers over CRI: another runtime's binary behind a wrapper, unknown names, the default."""

import shutil
from collections.abc import Iterator

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root

RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin") or ""


def _wrap(daemon: Daemon) -> None:
    daemon.wrap_runtime(f'#!/bin/sh\necho "$@" >> {daemon.folder}/calls\nexec {RUNC} "$@"\n')


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    if not RUNC:
        pytest.skip("there is no runc")
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri4", "10.89.76.0/24", _wrap) as made:
        yield made


def test_handlers_are_told(daemon: Daemon) -> None:
    handlers = daemon.runtime.Status(pb.StatusRequest()).runtime_handlers
    assert [handler.name for handler in handlers] == ["", "sampan", "wrapped"]


def test_a_pod_runs_by_another_runtime(daemon: Daemon) -> None:
    runtime = daemon.runtime
    image = daemon.images.ListImages(pb.ListImagesRequest()).images[0]
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"))
    request = pb.RunPodSandboxRequest(config=config, runtime_handler="wrapped")
    pod = runtime.RunPodSandbox(request).pod_sandbox_id
    told = runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert told.status.runtime_handler == "wrapped"
    container = runtime.CreateContainer(
        pb.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=pb.ContainerConfig(
                metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image=image.id), command=["sleep", "1000"]
            ),
        )
    ).container_id
    runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    done = runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "echo here; exit 7"]))
    assert (done.stdout, done.exit_code) == (b"here\n", 7)
    usage = runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    assert usage.memory.usage_bytes.value > 0
    runtime.StopContainer(pb.StopContainerRequest(container_id=container))
    ended = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert (ended.state, ended.exit_code) == (pb.CONTAINER_EXITED, 137)
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    calls = (daemon.folder / "calls").read_text()
    for verb in ("create", "start", "exec", "delete"):
        assert any(verb in line.split() for line in calls.splitlines()), verb


def test_an_unknown_handler_is_refused_and_named(daemon: Daemon) -> None:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"))
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config, runtime_handler="kata"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        'runtime_handler: no runtime handler is called "kata" (configured: sampan, wrapped)'
    )

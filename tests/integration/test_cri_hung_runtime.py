"""A runtime that hangs: it is killed after its time, and meanwhile it holds up no list, no status and no other pod."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root

RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin") or ""

#: Hangs at a command while a file of its name is there; a child of it holds the streams, as a runtime's would.
WRAPPER = """#!/bin/sh
for word in "$@"; do
    if [ -e {folder}/hang-$word ]; then
        echo hung >> {folder}/hung-$word
        sleep 1000 &
        wait
    fi
done
exec {runc} "$@"
"""
#: Seconds: more than any call that does not wait for the runtime takes, less than the runtime hangs.
SOON = 4.5


def _wrap(daemon: Daemon) -> None:
    daemon.wrap_runtime(WRAPPER.format(folder=daemon.folder, runc=RUNC), "timeout = 6\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    if not RUNC:
        pytest.skip("there is no runc")
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri7", "10.89.92.0/24", _wrap) as made:
        yield made


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    yield shared
    for file in shared.folder.glob("h[au]ng-*"):
        file.unlink()
    shared.remove_pods()


def run_pod(daemon: Daemon, name: str, handler: str = "wrapped") -> str:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"))
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(daemon.runtime.RunPodSandbox(request).pod_sandbox_id)


def container_request(daemon: Daemon, pod: str, name: str = "c") -> pb.CreateContainerRequest:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=daemon.image,
        command=["sleep", "1000"],
    )
    return pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)


def run_container(daemon: Daemon, pod: str, name: str = "c") -> str:
    container = str(daemon.runtime.CreateContainer(container_request(daemon, pod, name)).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def hang(daemon: Daemon, verb: str) -> None:
    (daemon.folder / f"hang-{verb}").touch()


def mend(daemon: Daemon, verb: str) -> None:
    (daemon.folder / f"hang-{verb}").unlink()


def hangs(daemon: Daemon, verb: str) -> None:
    """Wait until the wrapper hangs: it says so in a file."""
    deadline = time.monotonic() + 10
    while not (daemon.folder / f"hung-{verb}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serves_others(daemon: Daemon) -> None:
    """Lists, statuses, figures and another pod's whole life take no notice."""
    runtime = daemon.runtime
    began = time.monotonic()
    for container in runtime.ListContainers(pb.ListContainersRequest()).containers:
        runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container.id))
    for pod in runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items:
        runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    runtime.Status(pb.StatusRequest())
    runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest())
    runtime.ListContainerStats(pb.ListContainerStatsRequest())
    other = run_pod(daemon, "other", "sampan")
    run_container(daemon, other)
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=other))
    assert time.monotonic() - began < SOON


def sleepers(daemon: Daemon) -> list[str]:
    """Processes of the wrapper that still hang."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if str(daemon.folder / "wrapper") in text:
            found.append(text)
    return found


def refused_in_time(call: "grpc.Future") -> None:
    error = call.exception(timeout=30)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "has not ended after 6 s and was killed" in error.details()


def test_at_create_and_the_name_is_free_afterwards(daemon: Daemon) -> None:
    pod = run_pod(daemon, "p")
    hang(daemon, "create")
    call = daemon.runtime.CreateContainer.future(container_request(daemon, pod))
    hangs(daemon, "create")
    serves_others(daemon)
    assert not call.done()
    refused_in_time(call)
    assert sleepers(daemon) == []
    assert not daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
    mend(daemon, "create")
    run_container(daemon, pod)


def test_a_client_that_gives_up_at_create_reserves_nothing(daemon: Daemon) -> None:
    pod = run_pod(daemon, "p")
    hang(daemon, "create")
    request = container_request(daemon, pod)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.CreateContainer(request, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The retry attaches to the attempt under way, and shares its end; the one after that has a runtime that works.
    refused_in_time(daemon.runtime.CreateContainer.future(request))
    mend(daemon, "create")
    container = daemon.runtime.CreateContainer(request).container_id
    assert [c.id for c in daemon.runtime.ListContainers(pb.ListContainersRequest()).containers] == [container]


@pytest.mark.parametrize("verb", ["start", "exec", "kill"])
def test_at_another_command(daemon: Daemon, verb: str) -> None:
    pod = run_pod(daemon, "p")
    runtime = daemon.runtime
    container = str(runtime.CreateContainer(container_request(daemon, pod)).container_id)
    if verb == "start":
        hang(daemon, verb)
        call = runtime.StartContainer.future(pb.StartContainerRequest(container_id=container))
    else:
        runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        hang(daemon, verb)
        if verb == "exec":
            call = runtime.ExecSync.future(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
        else:
            call = runtime.StopContainer.future(pb.StopContainerRequest(container_id=container, timeout=5))
    hangs(daemon, verb)
    serves_others(daemon)
    assert not call.done()
    if verb == "kill":
        # It can't be asked to end; it is made to, without its runtime.
        call.result(timeout=30)
        told = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
        assert (told.state, told.exit_code) == (pb.CONTAINER_EXITED, 137)
    else:
        refused_in_time(call)
    assert sleepers(daemon) == []


def test_at_delete_and_a_later_try_succeeds(daemon: Daemon) -> None:
    pod = run_pod(daemon, "p")
    container = run_container(daemon, pod)
    hang(daemon, "delete")
    call = daemon.runtime.RemoveContainer.future(pb.RemoveContainerRequest(container_id=container))
    hangs(daemon, "delete")
    serves_others(daemon)
    refused_in_time(call)
    assert sleepers(daemon) == []
    mend(daemon, "delete")
    daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert not daemon.runtime.ListContainers(pb.ListContainersRequest()).containers


def test_the_daemon_is_killed_meanwhile_and_starts_without_waiting(daemon: Daemon) -> None:
    pod = run_pod(daemon, "p")
    lives = run_container(daemon, pod, "lives")
    hang(daemon, "create")
    call = daemon.runtime.CreateContainer.future(container_request(daemon, pod, "hung"))
    hangs(daemon, "create")
    daemon.kill()
    assert call.exception(timeout=10) is not None
    daemon.start()
    serves_others(daemon)
    listed = daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
    assert [(c.id, c.state) for c in listed] == [(lives, pb.CONTAINER_RUNNING)]
    mend(daemon, "create")
    # The name is free as soon as the pod's monitor is.
    run_container(daemon, pod, "hung")


def test_at_features_status_answers_without_them(daemon: Daemon) -> None:
    hang(daemon, "features")
    wrapper = daemon.folder / "wrapper"
    wrapper.touch()  # another version of the file is asked again
    began = time.monotonic()
    handlers = {h.name: h.features for h in daemon.runtime.Status(pb.StatusRequest()).runtime_handlers}
    assert time.monotonic() - began < SOON
    assert not handlers["wrapped"].recursive_read_only_mounts
    assert handlers["sampan"].recursive_read_only_mounts
    mend(daemon, "features")
    wrapper.touch()
    deadline = time.monotonic() + 10
    while True:
        handlers = {h.name: h.features for h in daemon.runtime.Status(pb.StatusRequest()).runtime_handlers}
        if handlers["wrapped"].recursive_read_only_mounts:
            break
        assert time.monotonic() < deadline

"""GetContainerEvents over reconnects and crashes: who comes back is told what happened meanwhile, in sequence."""

import json
import os
import signal
from collections.abc import Iterator

import pytest
from cri_checks import CREATED, DELETED, STARTED, STOPPED, Follower, holds_in_sequence
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri6", "10.89.78.0/24") as made:
        yield made


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    yield shared
    shared.remove_pods()


def run_pod(daemon: Daemon, name: str) -> str:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"))
    return str(daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def run_container(daemon: Daemon, pod: str, *command: str) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"),
        image=daemon.image,
        command=command,
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def remove_pod(daemon: Daemon, pod: str) -> None:
    daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_who_comes_back_is_told_what_it_missed_with_the_last_status_of_what_is_gone(daemon: Daemon) -> None:
    first = Follower(daemon)
    before = run_pod(daemon, "before")
    first.until(before, STARTED)
    first.leave()

    missed = run_pod(daemon, "missed")
    container = run_container(daemon, missed, "true")
    remove_pod(daemon, missed)

    second = Follower(daemon)
    found = second.until(missed, DELETED)
    wanted: list[tuple[str, int]] = [
        (missed, CREATED),
        (missed, STARTED),
        (container, CREATED),
        (container, STARTED),
        (container, STOPPED),
    ]
    wanted += [(missed, STOPPED), (container, DELETED), (missed, DELETED)]
    assert holds_in_sequence(found, wanted)
    about = [event for event in second.events if event.container_id in (missed, container)]
    assert {event.pod_sandbox_status.metadata.name for event in about} == {"missed"}
    assert [event.created_at for event in second.events] == sorted(event.created_at for event in second.events)

    after = run_pod(daemon, "after")
    second.until(after, STARTED)
    second.leave()


def test_a_second_follower_costs_the_first_nothing(daemon: Daemon) -> None:
    first, second = Follower(daemon), Follower(daemon)
    pod = run_pod(daemon, "both")
    assert first.until(pod, STARTED)[-2:] == [(pod, CREATED), (pod, STARTED)]
    assert second.until(pod, STARTED)[-2:] == [(pod, CREATED), (pod, STARTED)]
    second.leave()
    remove_pod(daemon, pod)
    first.until(pod, DELETED)
    first.leave()


def test_a_container_has_one_status_in_every_call(daemon: Daemon) -> None:
    """By which a kubelet tells whether something has changed: the image's digest, and its signal."""
    follower = Follower(daemon)
    pod = run_pod(daemon, "same")
    container = run_container(daemon, pod, "sleep", "1000")
    follower.until(container, STARTED)
    follower.leave()
    alone = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert alone.image_ref.startswith(daemon.image.image.rpartition(":")[0] + "@sha256:")
    assert alone.stop_signal == pb.SIGTERM
    asked = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
    assert list(daemon.runtime.PodSandboxStatus(asked).containers_statuses) == [alone]
    assert list(follower.events[-1].containers_statuses) == [alone]


def test_what_happens_while_the_daemon_is_dead_is_told_to_who_followed_it(daemon: Daemon) -> None:
    pod = run_pod(daemon, "crash")
    container = run_container(daemon, pod, "sleep", "1000")
    follower = Follower(daemon)
    answer = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container, verbose=True))
    pidfd = os.pidfd_open(json.loads(answer.info["info"])["pid"])
    daemon.kill()
    follower.leave()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    daemon.start()
    back = Follower(daemon)
    back.until(container, STOPPED)
    told = next(e for e in back.events if (e.container_id, e.container_event_type) == (container, STOPPED))
    (status,) = told.containers_statuses
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 137)
    remove_pod(daemon, pod)
    back.until(pod, DELETED)
    back.leave()

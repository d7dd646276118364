"""``kill -9`` of the daemon at every stage of a pod's life: it kills itself at a step, is started again, and the client
goes on by repeating the call that was cut off.

Whatever the step: after the restart every container that lives is known with its true state, the repeated call and the
rest of the life succeed, each container's events are told in order, and nothing is left on the machine.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import oci_image
import pytest
from cri_checks import CREATED, DELETED, STARTED, STOPPED, Follower, holds_in_sequence, left_at_last, told_truly
from cri_daemon import Daemon, private_daemon
from local_registry import LocalRegistry

from sampan.cri import api_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: The daemon, with one of its functions replaced by one that is its end.
LAUNCH = """
import importlib, os, sys
from sampan.daemon.main import run

where, moment = os.environ.pop("KILL_AT").rsplit(" ", 1)
module, _, name = where.partition(":")
owner = importlib.import_module(module)
*above, last = name.split(".")
for each in above:
    owner = getattr(owner, each)
real = getattr(owner, last)

def fatal(*arguments, **named):
    if moment == "after":
        real(*arguments, **named)
    os.kill(os.getpid(), 9)

setattr(owner, last, fatal)
sys.exit(run(sys.argv[1]))
"""

PULL = [
    "sampan.engine.images:Images.pull before",
    "sampan.storage.content:Writer.write before",
    "sampan.storage.content:Writer.commit before",
    "sampan.storage.content:Writer.commit after",
    "sampan.storage.unpack:_launch after",
    "sampan.storage.images:Images.put before",
    "sampan.storage.images:Images.put after",
    "sampan.engine.images:Images.pull after",
]
RUN = [
    "sampan.engine.records:Records.add after",
    "sampan.engine.engine:Engine.start_monitor before",
    "sampan.engine.engine:Engine.start_monitor after",
    "sampan.shim.client:MonitorClient.sandbox after",
    "sampan.network:attach after",
    "sampan.engine.podfiles:write after",
    "sampan.engine.podfiles:mount_shm after",
    "sampan.engine.events:Events.append before",
    "sampan.engine.events:Events.append after",
    "sampan.engine.engine:Engine.watch_pod before",
    "sampan.engine.pods:Pods.run after",
]
CREATE = [
    "sampan.engine.creation:Creation.run before",
    "sampan.engine.creation:Creation._mount_root before",
    "sampan.engine.creation:Creation._mount_root after",
    "sampan.engine.creation:_write_json after",
    "sampan.shim.client:MonitorClient.create before",
    "sampan.shim.client:MonitorClient.create after",
    "sampan.engine.creation:Creation.run after",
]
START = [
    "sampan.shim.client:MonitorClient.start before",
    "sampan.shim.client:MonitorClient.start after",
    "sampan.engine.containers:Containers.note_start before",
    "sampan.engine.containers:Containers.note_start after",
]
RUNNING = ["sampan.shim.client:MonitorClient.exec before", "sampan.shim.client:MonitorClient.exec after"]
STOP = [
    "sampan.shim.client:MonitorClient.stop before",
    "sampan.shim.client:MonitorClient.stop after",
    "sampan.engine.containers:Containers.finish before",
    "sampan.engine.containers:Containers.finish after",
    "sampan.engine.containers:Containers.stop after",
]
REMOVE = [
    "sampan.shim.client:MonitorClient.delete before",
    "sampan.shim.client:MonitorClient.delete after",
    "sampan.engine.containers:Containers.take_down before",
    "sampan.engine.containers:Containers.take_down after",
    "sampan.engine.records:Records.delete before",
    "sampan.engine.records:Records.delete after",
    "sampan.engine.containers:Containers.remove after",
]
STOP_POD = [
    "sampan.network:detach before",
    "sampan.network:detach after",
    "sampan.shim.client:MonitorClient.shutdown before",
    "sampan.shim.client:MonitorClient.shutdown after",
    "sampan.engine.podfiles:remove after",
    "sampan.engine.pods:Pods._tear_down after",
    "sampan.engine.pods:Pods.stop after",
]
REMOVE_POD = ["sampan.engine.pods:Pods.remove before", "sampan.engine.pods:Pods.remove after"]
STAGES = [
    (stage, point)
    for stage, points in (
        ("pull", PULL),
        ("run", RUN),
        ("create", CREATE),
        ("start", START),
        ("exec", RUNNING),
        ("stop", STOP),
        ("remove", REMOVE),
        ("stop_pod", STOP_POD),
        ("remove_pod", REMOVE_POD),
    )
    for point in points
]


class Doomed(Daemon):
    """A daemon that can be started so that it kills itself at a point."""

    point = ""
    registry: LocalRegistry
    #: What it pulls where the pull is not what is cut off.
    usual: pb.ImageSpec

    def command(self) -> list[str]:
        """With the fatal function, if there is to be one."""
        usual = super().command()
        return [sys.executable, "-c", LAUNCH, usual[-1]] if self.point else usual

    def environment(self) -> dict[str, str]:
        """What says which function."""
        return {**super().environment(), **({"KILL_AT": self.point} if self.point else {})}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doomed]:
    with (
        LocalRegistry(tmp_path_factory.mktemp("registry") / "data") as registry,
        private_daemon("sampancri8", "10.89.90.0/24", Doomed) as server,
    ):
        server.registry = registry
        server.usual = push_image(server, "demo/usual", "")
        yield server


def push_image(daemon: "Doomed", repository: str, text: str) -> pb.ImageSpec:
    """An image; with another ``text`` none of its layers is that of an image before."""
    program = Path("/bin/busybox")
    entries = [oci_image.directory("/bin"), oci_image.file("/bin/busybox", program, 0o755)]
    entries += [oci_image.hard_link(f"/bin/{name}", "/bin/busybox") for name in ("sleep", "echo")]
    image = oci_image.Image([oci_image.layer([*entries, oci_image.file("/text", text)])], {"Env": ["PATH=/bin"]})
    oci_image.push(image, daemon.registry.address, repository, "1")
    return pb.ImageSpec(image=f"{daemon.registry.host}/{repository}:1")


@pytest.fixture
def fresh(daemon: Doomed) -> Iterator[Doomed]:
    """The daemon as it should be, with nothing in it; the test before leaves it running."""
    if daemon.process is None:
        daemon.start()
    yield daemon
    if daemon.point:  # the test has failed
        daemon.kill()
        daemon.point = ""
        daemon.start()
    daemon.remove_pods()
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=daemon.image))


class Life:
    """One pod's life, a method for each call; each may be called again if the call before was cut off."""

    def __init__(self, daemon: Doomed) -> None:
        self._daemon = daemon
        self._image = daemon.image
        self.pod = self.container = ""

    def pull(self) -> None:
        self._daemon.images.PullImage(pb.PullImageRequest(image=self._image))

    def run(self) -> None:
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"),
            port_mappings=[pb.PortMapping(container_port=80, host_port=18098)],
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.POD))
            ),
        )
        self.pod = self._daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id

    def create(self) -> None:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="c"), image=self._image, command=["sleep", "1000"]
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=self.pod, config=config)
        self.container = self._daemon.runtime.CreateContainer(request).container_id

    def start(self) -> None:
        # As a kubelet: what runs already is not started again.
        if self.state() == pb.CONTAINER_CREATED:
            self._daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=self.container))
        assert self.state() == pb.CONTAINER_RUNNING

    def exec(self) -> None:
        request = pb.ExecSyncRequest(container_id=self.container, cmd=["echo", "here"])
        assert self._daemon.runtime.ExecSync(request).stdout == b"here\n"

    def stop(self) -> None:
        self._daemon.runtime.StopContainer(pb.StopContainerRequest(container_id=self.container))
        assert self.state() == pb.CONTAINER_EXITED

    def remove(self) -> None:
        self._daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=self.container))

    def stop_pod(self) -> None:
        self._daemon.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.pod))

    def remove_pod(self) -> None:
        self._daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=self.pod))

    def remove_image(self) -> None:
        self._daemon.images.RemoveImage(pb.RemoveImageRequest(image=self._image))

    def state(self) -> int:
        request = pb.ContainerStatusRequest(container_id=self.container)
        return int(self._daemon.runtime.ContainerStatus(request).status.state)

    def steps(self) -> list[Callable[[], None]]:
        return [
            *(self.pull, self.run, self.create, self.start, self.exec),
            *(self.stop, self.remove, self.stop_pod, self.remove_pod, self.remove_image),
        ]


def all_known(daemon: Daemon) -> None:
    """No container runs that the daemon does not list: every monitor's pod is one of its."""
    listed = {pod.id for pod in daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items}
    living = {path.parent.name for path in (daemon.folder / "state" / "pods").glob("*/control.sock")}
    assert living <= listed


def as_the_kernel_says(daemon: Daemon, life: Life, pid: int) -> None:
    """A container whose process lives is told to run, or to wait for its start, as the process does."""
    told_truly(daemon)
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return
    if program:
        begun = program.startswith(b"sleep\0")
        assert life.state() == (pb.CONTAINER_RUNNING if begun else pb.CONTAINER_CREATED)


def pid_of(daemon: Daemon, life: Life) -> int:
    if not life.container:
        return 0
    request = pb.ContainerStatusRequest(container_id=life.container, verbose=True)
    try:
        info = daemon.runtime.ContainerStatus(request).info["info"]
    except grpc.RpcError:
        return 0
    return int(json.loads(info)["pid"])


def told_in_order(events: list[pb.ContainerEventResponse], life: Life) -> None:
    """What was told twice is the same event; without it, each thing happened once, in order."""
    seen: dict[tuple[str, int, int], None] = {}
    for event in events:
        seen.setdefault((event.container_id, event.container_event_type, event.created_at))
    about = [kind for object_id, kind, _ in seen if object_id == life.container]
    assert about == [CREATED, STARTED, STOPPED, DELETED]
    pod = [(object_id, kind) for object_id, kind, _ in seen if object_id == life.pod]
    assert holds_in_sequence(pod, [(life.pod, kind) for kind in (CREATED, STARTED, STOPPED, DELETED)])
    assert len(pod) == 4


@pytest.mark.parametrize(("stage", "point"), STAGES, ids=[f"{s}-{p.split(':')[1]}" for s, p in STAGES])
def test_a_kill_at_a_stage(fresh: Doomed, stage: str, point: str) -> None:
    daemon = fresh
    daemon.image = push_image(daemon, "demo/pulled", point) if stage == "pull" else daemon.usual
    life = Life(daemon)
    followers = [Follower(daemon)]
    for step in life.steps():
        if step.__name__ != stage:
            step()
            continue
        # The daemon that serves this one call is one that dies of it.
        pid = pid_of(daemon, life)
        followers[-1].leave()
        daemon.kill()
        daemon.point = point
        daemon.start()
        followers.append(Follower(daemon))
        with pytest.raises(grpc.RpcError) as caught:
            step()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value.details()
        assert daemon.process is not None
        assert daemon.process.wait(10) == -9
        followers[-1].leave()
        daemon.point = ""
        daemon.start()
        followers.append(Follower(daemon))
        all_known(daemon)
        as_the_kernel_says(daemon, life, pid)
        step()
    daemon.seen = [life.pod]  # type: ignore[attr-defined]
    followers[-1].until(life.pod, DELETED)
    followers[-1].leave()
    told_in_order([event for follower in followers for event in follower.events], life)
    assert left_at_last(daemon) == []

"""The unit file under a real systemd: pods outlive what happens to the daemon, and systemd sees how it is."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_daemon import Daemon, busybox_daemon
from cri_servers import SLOWNESS

from sampan.cgroup import mode
from sampan.cri import api_pb2 as pb

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not the init here"),
    pytest.mark.skipif(mode() != "v2", reason="systemd divides its groups otherwise on cgroup v1"),
]

NAME = "sampan-unit-test"
UNITS = Path("/run/systemd/system")
SHIPPED = Path(__file__).parents[2] / "contrib" / "sampan.service"
PARENT = "sampantest.slice"

#: The program and the folders of this test; a watchdog for which one can wait.
DROP_IN = """\
[Service]
ExecStart=
ExecStart={program} --config {folder}/config.toml daemon
Environment=PATH={path}
RuntimeDirectory=
StateDirectory=
StandardError=append:{folder}/server.log
WatchdogSec={watchdog}
TimeoutAbortSec=2
"""


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout


def shown(key: str) -> str:
    return systemctl("show", "--value", "--property", key, NAME).strip()


class UnitDaemon(Daemon):
    """A daemon whose life systemd manages."""

    settings = 'cri.cgroup_driver = "systemd"\n'
    watchdog = 10 * SLOWNESS

    def start(self) -> None:
        """By systemd, which waits until the daemon says that it is ready."""
        if not (UNITS / f"{NAME}.service").exists():
            self.install()
        systemctl("start", NAME)

    def install(self) -> None:
        self.command()
        folder = UNITS / f"{NAME}.service.d"
        folder.mkdir()
        (UNITS / f"{NAME}.service").write_text(SHIPPED.read_text())
        text = DROP_IN.format(
            program=Path(sys.executable).parent / "sampan",
            folder=self.folder,
            path=self.environment()["PATH"],
            watchdog=self.watchdog,
        )
        (folder / "test.conf").write_text(text)
        systemctl("daemon-reload")

    def stop(self) -> None:
        """Takes away the unit and all pods, whether the test failed or not."""
        if not (UNITS / f"{NAME}.service").exists():
            return
        systemctl("start", NAME)
        self.remove_pods()
        systemctl("stop", NAME)
        for path in (UNITS / f"{NAME}.service.d/test.conf", UNITS / f"{NAME}.service"):
            path.unlink()
        (UNITS / f"{NAME}.service.d").rmdir()
        systemctl("daemon-reload")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[UnitDaemon]:
    with busybox_daemon(UnitDaemon, tmp_path / "registry", "sampanunit0", "10.89.120.0/24") as server:
        yield server
    subprocess.run(["systemctl", "stop", PARENT], check=False, capture_output=True)


def run(daemon: Daemon) -> str:
    """A container that waits, without a word about its OOM score."""
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", uid="uid", namespace="default"),
        linux=pb.LinuxPodSandboxConfig(cgroup_parent=PARENT),
    )
    runtime = daemon.runtime
    pod = runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    container = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"), image=daemon.image, command=["/bin/sleep", "1000"]
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    made = str(runtime.CreateContainer(request).container_id)
    runtime.StartContainer(pb.StartContainerRequest(container_id=made))
    return made


def pid_of(daemon: Daemon, container: str) -> int:
    """The container's first process, if it answers."""
    request = pb.ExecSyncRequest(container_id=container, cmd=["echo", "here"], timeout=60)
    assert daemon.runtime.ExecSync(request).stdout == b"here\n"
    status = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert status.state == pb.CONTAINER_RUNNING
    (scope,) = Path("/sys/fs/cgroup").rglob(f"sampan-{container}.scope")
    return int((scope / "cgroup.procs").read_text().split()[0])


def until_restarted(count: int) -> None:
    deadline = time.monotonic() + 120 * SLOWNESS
    while (shown("NRestarts"), shown("SubState")) != (str(count), "running"):
        assert time.monotonic() < deadline, systemctl("status", NAME)
        time.sleep(0.2)


def test_pods_outlive_what_happens_to_the_daemon(daemon: UnitDaemon) -> None:
    container = run(daemon)
    first = int(shown("MainPID"))
    process = pid_of(daemon, container)
    assert (shown("ActiveState"), shown("StatusText"), shown("Type")) == ("active", "serving", "notify")
    assert resource.prlimit(first, resource.RLIMIT_NOFILE) == (1 << 20, 1 << 20)
    assert Path(f"/proc/{first}/oom_score_adj").read_text() == "-999\n"
    # Its own group is left to it, and pods are elsewhere.
    assert f"/{PARENT}/" in Path(f"/proc/{process}/cgroup").read_text()
    assert shown("Delegate") == "yes"

    systemctl("reload", NAME)
    assert (int(shown("MainPID")), pid_of(daemon, container)) == (first, process)

    os.kill(first, signal.SIGKILL)
    until_restarted(1)
    assert int(shown("MainPID")) != first
    assert pid_of(daemon, container) == process

    systemctl("restart", NAME)
    assert pid_of(daemon, container) == process

    systemctl("stop", NAME)
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not daemon.socket.exists()
    assert Path(f"/proc/{process}/comm").read_text() == "sleep\n"
    daemon.start()
    assert pid_of(daemon, container) == process


def test_a_daemon_that_hangs_is_started_anew(daemon: UnitDaemon) -> None:
    container = run(daemon)
    process = pid_of(daemon, container)
    os.kill(int(shown("MainPID")), signal.SIGSTOP)
    until_restarted(1)
    assert pid_of(daemon, container) == process


def test_a_container_is_not_spared_as_its_daemon_is(daemon: UnitDaemon) -> None:
    """The daemon's OOM score adjustment is for itself: a container that asks for none has none."""
    process = pid_of(daemon, run(daemon))
    assert Path(f"/proc/{process}/oom_score_adj").read_text() == "0\n"

"""The daemon as a process: start, refusals, signals, crash, and what a client sees of a fault."""

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from cri_daemon import LAUNCH, Daemon, private_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with private_daemon("sampancri0", "10.89.71.0/24") as server:
        yield server


def refused(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Start once more with the same configuration, expecting it to end by itself."""
    return subprocess.run(
        [sys.executable, "-c", LAUNCH, str(daemon.folder / "config.toml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_serves_ends_and_leaves_no_socket(daemon: Daemon) -> None:
    daemon.start()
    mode = os.stat(daemon.socket).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert stat.S_IMODE(os.stat(daemon.folder / "root").st_mode) == 0o700
    version = daemon.runtime.Version(pb.VersionRequest(version="0.1.0"))
    assert (version.runtime_name, version.runtime_api_version) == ("sampan", "v1")
    status = daemon.runtime.Status(pb.StatusRequest(verbose=True))
    assert {condition.type for condition in status.status.conditions} == {"RuntimeReady", "NetworkReady"}
    assert [handler.name for handler in status.runtime_handlers] == ["", "sampan"]
    process = daemon.process
    assert process is not None
    daemon.stop()
    assert process.returncode == 0
    assert not daemon.socket.exists()


def test_a_second_daemon_is_refused_and_the_first_serves_on(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    second = refused(daemon)
    assert second.returncode != 0
    assert f"another daemon (pid {daemon.process.pid}) holds" in second.stderr
    daemon.runtime.Version(pb.VersionRequest())


def test_a_foreign_socket_is_not_taken(daemon: Daemon) -> None:
    daemon.command()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.socket))
        other.listen()
        assert "somebody listens on it" in refused(daemon).stderr


def test_after_a_kill_it_starts_over_the_stale_socket(daemon: Daemon) -> None:
    daemon.start()
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    daemon.runtime.Version(pb.VersionRequest())


def test_its_zygote_ends_with_it(daemon: Daemon) -> None:
    daemon.start()
    pidfds = [os.pidfd_open(child) for child in daemon.children()]
    assert pidfds
    daemon.kill()
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(5000), "the zygote outlived its daemon"
        os.close(pidfd)


def test_sighup_reloads_the_log_level_and_survives_a_fault(daemon: Daemon) -> None:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(daemon.folder / "notify"))
    notify.settimeout(10)
    environment = daemon.environment
    daemon.environment = lambda: {**environment(), "NOTIFY_SOCKET": notify.getsockname()}  # type: ignore[method-assign]
    daemon.start()
    assert daemon.process is not None
    assert notify.recv(1000).startswith(b"READY=1")
    config = daemon.folder / "config.toml"

    def reload() -> None:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        while not notify.recv(1000).startswith(b"READY=1"):
            pass

    good = config.read_text()
    config.write_text('log_level = "debug"\n' + good)
    reload()
    daemon.runtime.Version(pb.VersionRequest())
    config.write_text("log_level = 5\n" + good)
    reload()
    daemon.runtime.Version(pb.VersionRequest())
    daemon.stop()
    log = daemon.log.read_text()
    assert "configuration reloaded" in log
    assert "Version took" in log
    assert f"configuration not reloaded: {config}: log_level" in log
    notify.close()


def test_metrics_and_health(daemon: Daemon) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon.settings = f'metrics_address = "127.0.0.1:{port}"\n'
    daemon.start()
    daemon.runtime.Version(pb.VersionRequest())
    with pytest.raises(grpc.RpcError):
        daemon.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="none"))
    address = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'sampan_cri_calls_total{method="Version",outcome="ok"} 1.0' in text
    assert 'sampan_cri_calls_total{method="PodSandboxStatus",outcome="error"} 1.0' in text
    assert "sampan_build_info" in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("call", "request_", "code", "part"),
    [
        ("RunPodSandbox", pb.RunPodSandboxRequest(), "INVALID_ARGUMENT", "config.metadata: is missing"),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(), "INVALID_ARGUMENT", "pod_sandbox_id: is missing"),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id="f" * 64), "NOT_FOUND", "does not exist"),
        ("ContainerStatus", pb.ContainerStatusRequest(container_id="f" * 64), "NOT_FOUND", "does not exist"),
        ("ExecSync", pb.ExecSyncRequest(container_id="f" * 64), "INVALID_ARGUMENT", "cmd: is missing"),
        ("StartContainer", pb.StartContainerRequest(container_id="f" * 64), "NOT_FOUND", "does not exist"),
        (
            "RunPodSandbox",
            pb.RunPodSandboxRequest(
                config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a")), runtime_handler="kata"
            ),
            "INVALID_ARGUMENT",
            'no runtime handler is called "kata"',
        ),
    ],
)
def test_faults_have_a_code_and_one_line(daemon: Daemon, call: str, request_: object, code: str, part: str) -> None:
    daemon.start()
    with pytest.raises(grpc.RpcError) as caught:
        getattr(daemon.runtime, call)(request_)
    assert caught.value.code() is grpc.StatusCode[code]
    assert part in caught.value.details()
    assert len(caught.value.details().splitlines()) == 1


def test_what_is_gone_can_be_removed_again(daemon: Daemon) -> None:
    daemon.start()
    gone = "f" * 64
    daemon.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=gone))
    daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=gone))
    daemon.runtime.StopContainer(pb.StopContainerRequest(container_id=gone))
    daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=gone))
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="nothing:1")))
    assert not daemon.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="nothing:1"))).HasField("image")

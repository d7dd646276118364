"""The daemon as a process: start, refusals, signals, crash, and what a client sees of a fault."""

import os
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cri_daemon import LAUNCH, Daemon, private_daemon
from cri_servers import SLOWNESS

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


def test_it_may_open_as_many_files_as_it_is_let_and_containers_get_the_usual_limit(daemon: Daemon) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert daemon.process is not None
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
    for _ in range(2):
        (zygote,) = daemon.children()
        deadline = time.monotonic() + 10 * SLOWNESS
        while resource.prlimit(zygote, resource.RLIMIT_NOFILE) != (500, before[1]):  # it sets it when it has started
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(zygote, signal.SIGKILL)  # the next request starts another, and fails if it comes before the end
        config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"))
        with suppress(grpc.RpcError):
            daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
            daemon.remove_pods()


def test_an_idle_daemon_is_small(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    processes = [daemon.process.pid, *daemon.children()]
    deadline = time.monotonic() + 20 * SLOWNESS
    while (size := sum(map(share_of_memory, processes))) > 42_000_000:
        assert time.monotonic() < deadline, size
        time.sleep(0.2)


def share_of_memory(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


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


def test_metrics_and_health_on_a_unix_socket(daemon: Daemon) -> None:
    path = daemon.folder / "metrics.sock"
    daemon.settings = f'metrics_address = "unix://{path}"\n'
    daemon.start()
    for asked, wanted in (("/healthz", b"ok\n"), ("/metrics", b"sampan_build_info{")):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(f"GET {asked} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.0 200")
        assert wanted in answer
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o007 == 0


def test_the_socket_is_for_its_group(daemon: Daemon) -> None:
    daemon.settings = 'socket_group = "65534"\n'
    daemon.start()
    daemon.runtime.Version(pb.VersionRequest())  # it accepts before the socket is whose it shall be, and answers after
    status = os.stat(daemon.socket)
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 0o660)
    assert stat.S_IMODE(os.stat(daemon.folder / "state").st_mode) == 0o711


def test_a_watchdog_is_fed_at_half_its_interval(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(daemon.folder / "notify"))
        notify.settimeout(10)
        environment = daemon.environment
        more = {"NOTIFY_SOCKET": notify.getsockname(), "WATCHDOG_USEC": "400000"}
        daemon.environment = lambda: {**environment(), **more}  # type: ignore[method-assign]
        daemon.start()
        assert notify.recv(1000).startswith(b"READY=1")
        assert [notify.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        daemon.stop()
        rest: list[bytes] = []
        while not rest or rest[-1] != b"STOPPING=1":
            rest.append(notify.recv(1000))


def test_the_unit_file_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze")
    unit = Path(__file__).parents[2] / "contrib" / "sampan.service"
    copy = tmp_path / unit.name
    # What it starts must be there for the check; it is not where a package would put it.
    copy.write_text(unit.read_text().replace("/usr/bin/sampan", "/bin/true"))
    done = subprocess.run(
        [program, "--man=no", "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (about, done.returncode) == ([], 0)
    for line in ("Type=notify", "Delegate=yes", "KillMode=process", "WatchdogSec=60"):
        assert line in unit.read_text().splitlines()


def test_sighup_takes_up_networks_and_registries(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    notify_log = daemon.log

    def reloads() -> int:
        return notify_log.read_text().count("configuration reloaded")

    def reload() -> None:
        assert daemon.process is not None
        before = reloads()
        daemon.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while reloads() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def network() -> pb.RuntimeCondition:
        conditions = daemon.runtime.Status(pb.StatusRequest()).status.conditions
        found: pb.RuntimeCondition = next(each for each in conditions if each.type == "NetworkReady")
        return found

    def pull() -> str:
        with pytest.raises(grpc.RpcError) as caught:
            daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="registry.example/a:1")))
        return str(caught.value.details())

    assert network().status
    config = daemon.folder / "config.toml"
    good = config.read_text()
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni" / "10-other.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "no-such-plugin"}]}'
    )
    certs = tmp_path / "certs.d" / "registry.example"
    certs.mkdir(parents=True)
    (certs / "hosts.toml").write_text('server = "http://127.0.0.1:1"\n')
    config.write_text(
        good.replace(f"{daemon.folder}/cni", f"{tmp_path}/cni").replace(str(daemon.mirrors), f"{tmp_path}/certs.d")
    )
    reload()
    assert not network().status
    assert "no-such-plugin" in network().message
    assert "127.0.0.1:1" in pull()
    (tmp_path / "cni" / "10-other.conflist").unlink()
    assert network().status
    config.write_text(config.read_text().replace("[network]\n", "[network]\nbuilt_in = false\n"))
    reload()
    assert not network().status
    config.write_text(good)
    reload()
    assert network().status
    assert "127.0.0.1:1" not in pull()


def test_without_the_built_in_network_pods_wait_for_a_conflist(daemon: Daemon) -> None:
    """As a cluster wants it: a pod that started before its network would be on another one for good."""
    command = daemon.command()
    config = daemon.folder / "config.toml"
    config.write_text(config.read_text().replace("[network]\n", "[network]\nbuilt_in = false\n"))
    daemon.command = lambda: command  # type: ignore[method-assign]
    (conflist,) = (daemon.folder / "cni").iterdir()
    conflist.rename(daemon.folder / "kept")
    daemon.start()

    def network() -> pb.RuntimeCondition:
        conditions = daemon.runtime.Status(pb.StatusRequest()).status.conditions
        found: pb.RuntimeCondition = next(each for each in conditions if each.type == "NetworkReady")
        return found

    def run(name: str, mode: "pb.NamespaceMode.ValueType" = pb.POD) -> None:
        options = pb.NamespaceOption(network=mode)
        context = pb.LinuxSandboxSecurityContext(namespace_options=options)
        linux = pb.LinuxPodSandboxConfig(security_context=context)
        pod = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"), linux=linux)
        daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=pod))

    assert (network().status, network().reason) == (False, "NetworkPluginNotReady")
    assert f"{daemon.folder}/cni" in network().message
    with pytest.raises(grpc.RpcError) as caught:
        run("early")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"{daemon.folder}/cni" in caught.value.details()
    assert not daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
    run("agent", pb.NODE)
    (daemon.folder / "kept").rename(conflist)
    assert network().status
    run("early")
    daemon.remove_pods()


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

"""Containers of other engines, made by our runtime in runc's place: containerd, podman and buildah."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from runtime_bundle import make_rootfs

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{ROOT / '.work' / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
RUNTIME = str(ROOT / ".venv" / "bin" / "sampan-runtime")
IMAGE = "localhost/engines-test:1"


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"there is no {name} on this machine")
    return found


def _run(command: list[str], *, check: bool = True) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "PATH": PATH},
    )
    assert done.returncode == 0 or not check, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def _run_on_terminal(command: list[str]) -> str:
    """Runs a command whose standard streams are a terminal; what it shows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "PATH": PATH})
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the last slave is gone
        pass
    finally:
        os.close(master)
    assert process.wait(60) == 0, shown
    return shown.decode()


def _archive(folder: Path) -> Path:
    """A root file system as an archive."""
    make_rootfs(folder / "fs")
    with tarfile.open(folder / "fs.tar", "w") as archive:
        archive.add(folder / "fs", arcname=".")
    return folder / "fs.tar"


def _remove_cgroups(name: str) -> None:
    """What the engine has made for itself; empty as soon as its monitors (conmon) have ended."""
    deadline = time.monotonic() + 20
    while True:
        try:
            for hierarchy in Path("/sys/fs/cgroup").iterdir():
                for directory, _, _ in os.walk(hierarchy / name, topdown=False):
                    os.rmdir(directory)
        except OSError:
            # Nothing tells of the end of a process that is not our child.
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def _await_the_last_user(folder: Path) -> None:
    """Until no command names the folder: a monitor begins a clean-up by podman that nobody waits for."""
    deadline = time.monotonic() + 60
    while any(os.fsencode(folder) in line for line in _command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield (process / "cmdline").read_bytes()


class Podman:
    """podman on directories of its own."""

    def __init__(self, folder: Path) -> None:
        self.stores = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self.parent = f"engines-test-{os.getpid()}"
        self.command = [
            _program("podman"), *self.stores, "--tmpdir", str(folder / "tmp"), "--events-backend", "none",
            "--runtime", RUNTIME, "--cgroup-manager", "cgroupfs",
        ]  # fmt: skip
        self("import", str(_archive(folder)), IMAGE)

    def __call__(self, *arguments: str) -> str:
        """Runs podman; its standard output."""
        return _run([*self.command, *arguments])

    def options(self) -> list[str]:
        """Of a container: no network, and a cgroup of our choice."""
        return ["--net", "none", "--log-driver", "k8s-file", "--cgroup-parent", f"/{self.parent}"]


@pytest.fixture
def podman() -> Iterator[Podman]:
    _program("podman")
    # podman refuses a --runroot of more than 50 characters, for its sockets' sake.
    folder = Path(tempfile.mkdtemp(prefix="engines-", dir="/tmp"))
    try:
        engine = Podman(folder)
        yield engine
        _run([*engine.command, "rm", "--all", "--force", "--time", "0"], check=False)
        _remove_cgroups(engine.parent)
        _await_the_last_user(folder)
    finally:
        shutil.rmtree(folder)


def test_podman_limits_execs_logs_and_removes(podman: Podman) -> None:
    script = "echo started; trap 'exit 7' TERM; while :; do sleep 0.1; done"
    container = podman(
        "run", "-d", *podman.options(), "--memory", "64m", "--pids-limit", "50", IMAGE, "sh", "-c", script
    )
    assert podman("inspect", "--format", "{{.OCIRuntime}} {{.State.Status}}", container) == f"{RUNTIME} running"
    pid = podman("inspect", "--format", "{{.State.Pid}}", container)
    groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "pids" in groups:
        assert Path(f"/sys/fs/cgroup/pids{groups['pids']}/pids.max").read_text() == "50\n"
        limit = Path(f"/sys/fs/cgroup/memory{groups['memory']}/memory.limit_in_bytes").read_text()
        assert int(limit) == 64 << 20
    assert podman("exec", "-e", "GREETING=hello", container, "sh", "-c", "echo $GREETING").strip() == "hello"
    assert podman("logs", container) == "started"
    podman("stop", "--time", "20", container)
    assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "7"
    podman("rm", container)
    assert podman("ps", "--all", "--quiet") == ""


def test_podman_gives_terminals(podman: Podman) -> None:
    shown = _run_on_terminal([*podman.command, "run", "--rm", "-t", *podman.options(), IMAGE, "tty"])
    assert "/dev/pts/0" in shown.splitlines(), shown
    container = podman("run", "-d", *podman.options(), IMAGE, "sleep", "100")
    shown = _run_on_terminal([*podman.command, "exec", "-t", container, "tty"])
    # Beside it there may be a warning of a limit that root may not raise on this machine.
    assert any(line.startswith("/dev/pts/") for line in shown.splitlines()), shown


def test_podman_pauses_and_kills(podman: Podman) -> None:
    container = podman("run", "-d", *podman.options(), IMAGE, "sleep", "100")
    podman("pause", container)
    assert podman("inspect", "--format", "{{.State.Status}}", container) == "paused"
    podman("unpause", container)
    podman("kill", container)
    assert podman("wait", container) == "137"


def test_buildah_runs_a_step(tmp_path: Path) -> None:
    buildah = _program("buildah")
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    stores = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    command = [buildah, *stores]
    container = _run([*command, "from", "--signature-policy", str(policy), "scratch"])
    try:
        _run([*command, "add", container, str(_archive(tmp_path)), "/"])
        step = [*command, "run", "--runtime", RUNTIME, "--isolation", "oci", "--network", "none"]
        said = _run([*step, container, "sh", "-c", "echo built > /data/file; id -u"])
        assert said == "0"
        assert _run([*step, container, "cat", "/data/file"]) == "built"
        assert "/dev/pts/" in _run_on_terminal([*step, "-t", container, "tty"])
    finally:
        _run([*command, "rm", container])


class Containerd:
    """Debian's containerd on directories of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "containerd.sock")
        config = folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.socket}"\n'
            f'[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(
            [_program("containerd"), "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env={**os.environ, "PATH": PATH},
        )  # fmt: skip
        self.command = [_program("ctr"), "--address", self.socket, "--namespace", f"engines-{os.getpid()}"]
        deadline = time.monotonic() + 30
        # It says nothing when it is ready.
        while subprocess.run([*self.command, "version"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)

    def __call__(self, *arguments: str) -> str:
        """Runs ctr; its standard output."""
        return _run([*self.command, *arguments])

    def close(self) -> None:
        """Ends the daemon."""
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        _program(name)
    engine = Containerd(tmp_path)
    yield engine
    for name in engine("tasks", "ls", "-q").split():
        _run([*engine.command, "tasks", "rm", "--force", name], check=False)
    for name in engine("containers", "ls", "-q").split():
        _run([*engine.command, "containers", "rm", name], check=False)
    engine.close()
    _remove_cgroups(f"engines-{os.getpid()}")


def test_containerd_runs_execs_limits_and_kills(containerd: Containerd, tmp_path: Path) -> None:
    make_rootfs(tmp_path / "fs")
    fifos = ["--fifo-dir", str(tmp_path / "fifos")]
    options = [*fifos, "--runc-binary", RUNTIME, "--rootfs", "--memory-limit", str(64 << 20)]
    name = f"engines-test-{os.getpid()}"
    rootfs = str(tmp_path / "fs")
    assert (
        containerd("run", "--rm", *options, rootfs, f"{name}-0", "echo", "from the container") == "from the container"
    )
    containerd("run", "-d", *options, rootfs, name, "sleep", "100")
    state = tmp_path / "state" / "io.containerd.runtime.v2.task" / f"engines-{os.getpid()}" / name
    assert Path(state).is_dir()
    assert "RUNNING" in containerd("tasks", "ls")
    said = containerd(
        "tasks", "exec", *fifos, "--exec-id", "one", name, "sh", "-c", "echo $0 in $PWD; cat /proc/self/cgroup"
    )
    assert said.splitlines()[0] == "sh in /"
    assert "memory" in containerd("tasks", "metrics", name)
    containerd("tasks", "pause", name)
    assert "PAUSED" in containerd("tasks", "ls")
    containerd("tasks", "resume", name)
    containerd("tasks", "kill", "--signal", "SIGKILL", name)
    _wait_until_stopped(containerd)
    containerd("tasks", "rm", name)
    containerd("containers", "rm", name)


def _wait_until_stopped(containerd: Containerd) -> None:
    deadline = time.monotonic() + 20
    while "STOPPED" not in containerd("tasks", "ls"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_containerd_gives_terminals(containerd: Containerd, tmp_path: Path) -> None:
    make_rootfs(tmp_path / "fs")
    fifos = ["--fifo-dir", str(tmp_path / "fifos")]
    options = [*fifos, "--runc-binary", RUNTIME, "--rootfs", str(tmp_path / "fs"), f"engines-tty-{os.getpid()}"]
    shown = _run_on_terminal([*containerd.command, "run", "--rm", "-t", *options, "tty"])
    assert shown.strip() == "/dev/pts/0"

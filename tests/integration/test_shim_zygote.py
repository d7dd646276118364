"""The zygote: what its children are, and what they survive."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_pods import Pod, ended, process, ready

from sampan import errors
from sampan.linux.process import PR_SET_CHILD_SUBREAPER, prctl
from sampan.shim import spawn
from sampan.shim.client import MonitorClient
from sampan.shim.zygote import Zygote

pytestmark = pytest.mark.root


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote.start() as started:
        yield started


def test_children_run_from_a_sealed_copy_of_the_interpreter(zygote: Zygote, tmp_path: Path) -> None:
    pid = zygote.fork_monitor("p", str(tmp_path / "p"))
    try:
        assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:")
        with open(f"/proc/{pid}/exe", "rb") as program:
            assert fcntl.fcntl(program, 1034) == 0b1111  # F_GET_SEALS: seal, shrink, grow, write
        assert MonitorClient(f"{tmp_path}/p/control.sock").info()["pid"] == pid
        assert Path(f"/proc/{pid}/comm").read_text() == "sampan-monitor\n"
        assert os.getsid(pid) == pid
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"PYTEST" not in environment
        assert (tmp_path / "p/control.sock").stat().st_mode & 0o777 == 0o600
    finally:
        MonitorClient(f"{tmp_path}/p/control.sock").shutdown()


def program_pages(pid: int) -> int:
    """KB of the interpreter's program that a process has mapped."""
    found = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            counted = words[1] == "r-xp" and "memfd:sampan" in line
        elif words[0] == "Rss:" and counted:
            found += int(words[1])
    return found


def test_a_monitor_gives_back_the_program_that_it_waits_without(zygote: Zygote, tmp_path: Path) -> None:
    pid = zygote.fork_monitor("p", str(tmp_path / "p"))
    client = MonitorClient(f"{tmp_path}/p/control.sock")
    with pytest.raises(errors.NotFound):
        client.start("nobody")
    deadline = time.monotonic() + 10
    while program_pages(pid) > program_pages(zygote.pid) * 0.6:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # nothing tells of it
    assert client.info()["pid"] == pid
    client.shutdown()


def test_a_monitor_holds_no_descriptor_of_its_makers(zygote: Zygote, tmp_path: Path) -> None:
    pid = zygote.fork_monitor("p", str(tmp_path / "p"))
    client = MonitorClient(f"{tmp_path}/p/control.sock")
    client.info()
    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    programs = {"/sampan-init", "/pause"}
    kinds = sorted(target.split(":")[0] for target in targets if target not in programs)
    # standard streams; the loop's epoll and its pipe; the listener and our connection
    assert kinds == ["/dev/null"] * 3 + ["anon_inode", "pipe", "pipe", "socket", "socket"]
    client.shutdown()


def test_threads_share_a_zygote(zygote: Zygote, tmp_path: Path) -> None:
    found: list[str] = []

    def life(number: int) -> None:
        directory = f"{tmp_path}/{number}"
        zygote.fork_monitor(f"pod{number}", directory)
        client = MonitorClient(f"{directory}/control.sock")
        found.append(client.info()["pod_id"])
        client.shutdown()

    threads = [threading.Thread(target=life, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"pod{n}" for n in range(8)]


def test_a_zygote_that_was_killed_is_replaced(zygote: Zygote, tmp_path: Path) -> None:
    pidfd = os.pidfd_open(zygote.pid)
    os.kill(zygote.pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    zygote.fork_monitor("p", f"{tmp_path}/p")
    MonitorClient(f"{tmp_path}/p/control.sock").shutdown()


def test_a_zygote_that_is_killed_in_a_request_is_replaced_for_the_next(zygote: Zygote, tmp_path: Path) -> None:
    zygote.fork_monitor("first", f"{tmp_path}/first")  # it has started
    os.kill(zygote.pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (zygote.pid, signal.SIGKILL)).start()
    with pytest.raises(errors.Unavailable):
        zygote.fork_monitor("p", f"{tmp_path}/p")
    zygote.fork_monitor("p", f"{tmp_path}/p")
    for name in ("first", "p"):
        MonitorClient(f"{tmp_path}/{name}/control.sock").shutdown()


def test_a_folder_that_cannot_be_made_is_an_error(zygote: Zygote) -> None:
    with pytest.raises(errors.SampanError, match="/proc/nothing"):
        zygote.fork_monitor("p", "/proc/nothing/here")


def test_a_worker_returns_and_raises_and_is_killed(zygote: Zygote) -> None:
    with zygote.run_worker("sampan.shim.zygote:echo", {"a": [1, None]}) as worker:
        assert worker.result(10) == {"argument": {"a": [1, None]}, "descriptors": 0}
    reading, writing = os.pipe()
    with zygote.run_worker("sampan.shim.zygote:echo", {}, (writing,)) as worker:
        assert worker.result(10)["descriptors"] == 1
    os.close(writing)
    os.close(reading)
    with zygote.run_worker("sampan.shim.zygote:nothing", {}) as worker, pytest.raises(errors.SampanError):
        worker.result(10)
    with zygote.run_worker("os:getpid", {}) as worker, pytest.raises(errors.InvalidInput):
        worker.result(10)
    with zygote.run_worker("sampan.shim.zygote:stay", {}) as worker:
        with pytest.raises(errors.TimedOut):
            worker.result(0.05)
        worker.kill()
        with pytest.raises(errors.Unavailable):
            worker.result(10)
    with pytest.raises(errors.Exhausted):
        zygote.run_worker("sampan.shim.zygote:echo", {"a": "x" * 1_000_000})


def test_a_worker_that_is_closed_has_ended(zygote: Zygote) -> None:
    """Or it would still write to a layer's directory that is being removed."""
    for _ in range(10):
        worker = zygote.run_worker("sampan.shim.zygote:stay", {})
        own = os.dup(worker.pidfd)
        worker.close()
        assert ready(own, 0)
        os.close(own)


def test_workers_end_with_their_zygote() -> None:
    zygote = Zygote.start()
    worker = zygote.run_worker("sampan.shim.zygote:stay", {})
    zygote.close()
    assert ready(worker.pidfd)
    worker.close()


def test_a_monitor_without_a_zygote_is_nobodys_child(tmp_path: Path) -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 0)  # other tests of this process want to be one
    pid = spawn.monitor("p", f"{tmp_path}/p")
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" not in status
    with spawn.worker("sampan.shim.zygote:echo", 1) as worker:
        assert worker.result(10)["argument"] == 1
    MonitorClient(f"{tmp_path}/p/control.sock").shutdown()


def test_pods_live_on_when_their_daemon_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, os, pathlib
sys.path[:0] = {sys.path!r}
from shim_pods import Pod
from sampan.shim.zygote import Zygote
zygote = Zygote.start()
pod = Pod(pathlib.Path({str(tmp_path)!r}), zygote, "native")
pod.run("one", "read x; echo got $x", stdin=True)
print(zygote.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ended(int(done.stdout))
    client = MonitorClient(f"{tmp_path}/pod/control.sock")
    assert client.info()["containers"][0]["state"] == "running"
    reading, writing = os.pipe()
    os.write(writing, b"it\n")
    with client.attach("one", stdin=reading):
        os.close(reading)
        assert client.wait("one", timeout=10).exit_code == 0
    os.close(writing)
    assert " stdout F got it\n" in (tmp_path / "one.log").read_text()
    client.shutdown(force=True)


@pytest.mark.timeout(30)  # who waits for itself does so for ten seconds each turn
def test_a_monitor_ends_with_what_runs_in_a_shared_pid_namespace(zygote: Zygote, tmp_path: Path) -> None:
    """The pause process ends when the monitor has reaped the others: nothing may wait for it before."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for turn in range(4):
        pod = Pod(tmp_path / str(turn), zygote, "native")
        made = pod.client.sandbox(
            str(pod.path / "ns"), ["network", "ipc", "uts"], pause=True, pause_cgroup=f"{pod.cgroup}/pause"
        )
        namespaces = [{"type": "mount"}, *({"type": kind, "path": path} for kind, path in made["paths"].items())]
        pod.run("one", "sleep 1000", namespaces=namespaces)
        for _ in range(3):
            pod.client.exec("one", process("/bin/sleep", "1000"), stdin=null, stdout=null, stderr=null)
        pod.close()
        assert not list((pod.path / "ns").glob("*"))
    os.close(null)


def test_containers_share_the_namespaces_of_a_pod(zygote: Zygote, tmp_path: Path) -> None:
    pod = Pod(tmp_path, zygote, "native")
    events = pod.client.events()
    made = pod.client.sandbox(
        str(tmp_path / "ns"),
        ["network", "ipc", "uts"],
        hostname="shared",
        pause=True,
        pause_cgroup=f"{pod.cgroup}/pause",
    )
    assert made["pause_pid"] > 0
    assert pod.client.sandbox(str(tmp_path / "ns"), []) == made
    assert pod.client.info()["sandbox"] == made
    namespaces = [{"type": "mount"}, *({"type": kind, "path": path} for kind, path in made["paths"].items())]
    pod.run("one", "kill -0 1 && cat /proc/sys/kernel/hostname; echo $$; sleep 1000 & exit 0", namespaces=namespaces)
    assert pod.client.wait("one", timeout=10).exit_code == 0
    name, pid = pod.texts("one")
    assert name == "shared"
    assert int(pid) > 1
    os.kill(made["pause_pid"], signal.SIGKILL)
    kinds = []
    while "pause-exit" not in kinds:
        kinds.append((events.next(10) or {})["kind"])
    events.close()
    pod.close()
    assert not (tmp_path / "ns").exists()

"""Each option of `run`, `create`, `exec` and `update`, felt by the program that it is for."""

import fcntl
import json
import os
import pty
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_command import Runtime, private_runtime

from sampan.cgroup import mode
from sampan.cgroup.hierarchy import parse_proc_cgroup

pytestmark = pytest.mark.root

BUSYBOX = "/bin/busybox"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with private_runtime(tmp_path) as made:
        yield made


def _stopped(runtime: Runtime, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    runtime.run("kill", "c1", "KILL")
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_keep_leaves_the_container_stopped(runtime: Runtime) -> None:
    runtime.configure(shell="exit 4")
    runtime.run("run", "--keep", "c1", code=4)
    assert runtime.state("c1")["status"] == "stopped"
    runtime.run("run", "--keep", "c1", code=1)  # the name is taken
    runtime.run("delete", "c1")


def test_the_session_keyring_is_the_callers_on_request(runtime: Runtime) -> None:
    runtime.config["mounts"] = [one for one in runtime.config["mounts"] if one["destination"] != "/proc"]
    runtime.config["mounts"].insert(0, {"destination": "/proc", "type": "proc", "source": "proc"})
    runtime.config["linux"]["maskedPaths"] = []
    runtime.configure("cat", "/proc/keys")
    if "/proc/keys" not in str(list(Path("/proc").iterdir())):
        pytest.skip("this kernel has no keyrings")
    assert "_ses.c1:" in runtime.run("run", "c1").stdout
    # Under another name: the kernel collects the first one's keyring when it likes.
    assert "_ses.c2:" not in runtime.run("run", "--no-new-keyring", "c2").stdout


def test_exec_has_the_session_keyring_of_its_container(runtime: Runtime) -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keyrings")
    for path in ("/usr", "/lib", "/lib64"):
        mount = {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        runtime.config["mounts"].append(mount)
    runtime.config["root"]["readonly"] = False
    # KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING: keyctl(2).
    number = 250 if os.uname().machine == "x86_64" else 219
    code = f"import ctypes; print(ctypes.CDLL(None).syscall({number}, 0, -3, 0))"
    runtime.configure(shell=f"/usr/bin/python3 -I -S -c '{code}' > /fifo; exec /bin/busybox sleep 1000")
    os.mkfifo(runtime.bundle / "rootfs/fifo")
    ask = ["/usr/bin/python3", "-I", "-S", "-c", code]

    def keyrings(name: str, *options: str) -> tuple[str, str]:
        command = runtime.command("create", *options, name)
        subprocess.run(command, cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
        runtime.run("start", name)
        found = (runtime.bundle / "rootfs/fifo").read_text(), runtime.run("exec", name, *ask).stdout
        runtime.run("delete", "--force", name)
        return found

    callers = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    first, execs = keyrings("c1")
    assert first == execs != callers
    assert keyrings("c2", "--no-new-keyring") == (callers, callers)


def test_no_pivot_has_the_root_all_the_same(runtime: Runtime) -> None:
    runtime.configure("ls", "/")
    assert runtime.run("run", "--no-pivot", "c1").stdout == runtime.run("run", "c1").stdout


def test_preserved_descriptors_reach_run_and_exec(runtime: Runtime) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"one\ntwo\n")
    os.close(writable)

    def arrange() -> None:
        os.dup2(readable, 3)

    more: dict[str, Any] = {"pass_fds": (3,), "preexec_fn": arrange}
    runtime.configure(shell="read x <&3; echo $x")
    assert runtime.run("run", "--preserve-fds", "1", "c1", **more).stdout == "one\n"
    runtime.configure("sleep", "1000")
    runtime.start("c1")
    read = ("c1", "/bin/sh", "-c", "read x <&3; echo $x")
    assert runtime.run("exec", "--preserve-fds", "1", *read, **more).stdout == "two\n"
    # Without the option it is not there.
    assert "Bad file descriptor" in runtime.run("exec", *read, **more).stderr
    os.close(readable)


def test_orphans_come_to_the_command_or_not(runtime: Runtime) -> None:
    """Without a PID namespace an orphan of the container goes to the nearest subreaper."""
    runtime.config["linux"]["namespaces"] = [
        one for one in runtime.config["linux"]["namespaces"] if one["type"] != "pid"
    ]
    runtime.configure(shell=f"({BUSYBOX} sleep 100 &) ; echo ready; exec {BUSYBOX} sleep 100")
    for options, adopts in (((), True), (("--no-subreaper",), False)):
        process = subprocess.Popen(runtime.command("run", *options, "c1"), cwd=runtime.bundle, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pids = json.loads(runtime.run("ps", "-f", "json", "c1").stdout)
        init = runtime.state("c1")["pid"]
        orphan = next(pid for pid in pids if pid != init)
        parent = int(Path(f"/proc/{orphan}/status").read_text().partition("PPid:")[2].split()[0])
        assert (parent == process.pid) is adopts
        runtime.run("kill", "--all", "c1", "KILL")
        assert process.wait(10) == 128 + signal.SIGKILL
        process.stdout.close()


def test_exec_gets_a_terminal_and_gives_it_to_a_socket(runtime: Runtime) -> None:
    runtime.start("c1")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        runtime.command("exec", "-t", "c1", BUSYBOX, "tty"), cwd=runtime.bundle, stdin=slave, stdout=slave, stderr=slave
    )
    assert process.wait(10) == 0
    assert b"/dev/pts/" in os.read(master, 100)
    os.close(slave)
    os.close(master)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path := str(runtime.bundle / "s"))
        server.listen()
        options = ("--tty", "--detach", "--console-socket", path, "--pid-file", str(runtime.bundle / "pid"))
        runtime.run("exec", *options, "c1", BUSYBOX, "sleep", "1000")
        with server.accept()[0] as connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    assert int((runtime.bundle / "pid").read_text()) in json.loads(runtime.run("ps", "-f", "json", "c1").stdout)
    assert os.isatty(fds[0])
    os.close(fds[0])


def _received(server: socket.socket) -> tuple[bytes, int]:
    with server.accept()[0] as connection:
        message, (fd,), _, _ = socket.recv_fds(connection, 4096, 1)
    return message, fd


def test_a_pidfd_of_the_process_comes_over_a_socket(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path := str(runtime.bundle / "s"))
        server.listen()
        for number, command in enumerate((("create",), ("run", "-d"))):
            words = runtime.command(*command, "--pidfd-socket", path, name := f"c{number}")
            subprocess.run(words, cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
            message, pidfd = _received(server)
            assert message == b"standard"
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], 10)[0]
            os.close(pidfd)
            assert runtime.state(name)["status"] == "stopped"
            runtime.run("delete", name)
        runtime.start("c1")
        process = subprocess.Popen(runtime.command("exec", "--pidfd-socket", path, "c1", BUSYBOX, "sleep", "1000"))
        message, pidfd = _received(server)
        assert message == b"setns"
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        assert process.wait(10) == 128 + signal.SIGUSR1
        os.close(pidfd)
        assert runtime.state("c1")["status"] == "running"
    assert "send pidfd" in runtime.run("exec", "--pidfd-socket", path, "c1", BUSYBOX, "sleep", "1000", code=255).stderr
    runtime.run("delete", "--force", "c1")
    assert "send pidfd" in runtime.run("create", "--pidfd-socket", path, "c1", code=1).stderr
    assert runtime.run("list", "-q").stdout == ""


def test_exec_in_a_paused_container_waits_where_it_may(runtime: Runtime) -> None:
    runtime.start("c1")
    runtime.run("pause", "c1")
    assert "paused" in runtime.run("exec", "c1", BUSYBOX, "true", code=255).stderr
    command = runtime.command("exec", "--ignore-paused", "c1", "/bin/sh", "-c", "exit 6")
    process = subprocess.Popen(command, cwd=runtime.bundle)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    given_up = subprocess.Popen(command, cwd=runtime.bundle)
    with pytest.raises(subprocess.TimeoutExpired):
        given_up.wait(0.2)
    given_up.terminate()
    assert given_up.wait(10) == -signal.SIGTERM
    runtime.run("resume", "c1")
    assert process.wait(10) == 6


def test_exec_changes_rights(runtime: Runtime) -> None:
    runtime.config["process"]["noNewPrivileges"] = False
    runtime.configure("sleep", "1000")
    runtime.start("c1")

    def status(*options: str) -> dict[str, str]:
        said = runtime.run("exec", *options, "c1", BUSYBOX, "cat", "/proc/self/status").stdout
        return {key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())}

    plain = status()
    assert (plain["NoNewPrivs"], int(plain["CapEff"], 16) >> 12 & 1) == ("0", 0)
    assert status("--no-new-privs")["NoNewPrivs"] == "1"
    for given in ("CAP_NET_ADMIN", "net_admin"):
        changed = status("--cap", given)
        assert [int(changed[key], 16) >> 12 & 1 for key in ("CapEff", "CapPrm", "CapBnd")] == [1, 1, 1]
    assert status("--user", "7:8", "--additional-gids", "9", "-g", "10")["Groups"].split() == ["9", "10"]
    assert "process.selinuxLabel" in runtime.run(
        "exec", "--process-label", "a:b:c:s0", "c1", BUSYBOX, "true", code=255
    ).stderr or os.path.isdir("/sys/fs/selinux/booleans")


def test_kill_all_reaches_every_process(runtime: Runtime) -> None:
    runtime.configure(shell=f"{BUSYBOX} sleep 1000 & {BUSYBOX} sleep 1000 & wait")
    runtime.start("c1")
    command = runtime.command("exec", "-d", "c1", BUSYBOX, "sleep", "1000")
    subprocess.run(command, stdin=-3, stdout=-3, stderr=-3, check=True)
    pids = json.loads(runtime.run("ps", "-f", "json", "c1").stdout)
    while len(pids) < 4:
        pids = json.loads(runtime.run("ps", "-f", "json", "c1").stdout)
    ends = [os.pidfd_open(pid) for pid in pids]
    runtime.run("kill", "-a", "c1", "KILL")
    for pidfd in ends:
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)


@pytest.mark.parametrize(
    ("option", "value", "v1", "content", "v2"),
    [
        ("--cpu-share", "512", "cpu/cpu.shares", "512", "cpu.weight"),
        ("--cpu-period", "50000", "cpu/cpu.cfs_period_us", "50000", "cpu.max"),
        ("--cpu-quota", "20000", "cpu/cpu.cfs_quota_us", "20000", "cpu.max"),
        ("--cpu-idle", "1", "cpu/cpu.idle", "1", "cpu.idle"),
        ("--cpuset-cpus", "0", "cpuset/cpuset.cpus", "0", "cpuset.cpus"),
        ("--cpuset-mems", "0", "cpuset/cpuset.mems", "0", "cpuset.mems"),
        ("--memory", "64m", "memory/memory.limit_in_bytes", str(64 << 20), "memory.max"),
        ("--memory-reservation", "32m", "memory/memory.soft_limit_in_bytes", str(32 << 20), "memory.low"),
        ("--memory-swap", "-1", "memory/memory.memsw.limit_in_bytes", "", "memory.swap.max"),
        ("--pids-limit", "33", "pids/pids.max", "33", "pids.max"),
        ("--cpu-burst", "1000", "cpu/cpu.cfs_burst_us", "1000", "cpu.max.burst"),
        ("--blkio-weight", "500", "blkio/blkio.bfq.weight", "500", "io.weight"),
        ("--cpu-rt-period", "500000", "cpu/cpu.rt_period_us", "500000", ""),
        ("--cpu-rt-runtime", "100", "cpu/cpu.rt_runtime_us", "100", ""),
    ],
)
def test_update_sets_each_limit_or_names_it(
    runtime: Runtime, option: str, value: str, v1: str, content: str, v2: str
) -> None:
    runtime.config["linux"]["resources"]["cpu"] = {"quota": 50000}
    runtime.configure("sleep", "1000")
    runtime.start("c1")
    command = runtime.command("update", option, value, "c1")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        assert "linux.resources." in done.stderr
        assert not v2 or option in ("--blkio-weight", "--cpu-burst", "--cpu-idle")
        return
    own = parse_proc_cgroup(Path(f"/proc/{runtime.state('c1')['pid']}/cgroup").read_text())
    place = Path("/sys/fs/cgroup", own[""].lstrip("/"), v2)
    if mode() != "v2":
        controller, name = v1.split("/")
        place = Path("/sys/fs/cgroup", controller, own[controller].lstrip("/"), name)
    assert place.is_file()
    if mode() != "v2":
        assert content in place.read_text()


@pytest.mark.parametrize(
    ("option", "key", "v1", "v2"),
    [("--cpu-idle", "idle", "cpu.idle", "cpu.idle"), ("--cpu-burst", "burst", "cpu.cfs_burst_us", "cpu.max.burst")],
)
def test_a_file_of_resources_can_put_a_value_back_to_0(
    runtime: Runtime, option: str, key: str, v1: str, v2: str
) -> None:
    runtime.config["linux"]["resources"]["cpu"] = {"quota": 50000}
    runtime.configure("sleep", "1000")
    runtime.start("c1")
    own = parse_proc_cgroup(Path(f"/proc/{runtime.state('c1')['pid']}/cgroup").read_text())
    place = Path("/sys/fs/cgroup", own[""].lstrip("/"), v2)
    if mode() != "v2":
        place = Path("/sys/fs/cgroup/cpu", own["cpu"].lstrip("/"), v1)
    if not place.exists():
        pytest.skip(f"this kernel has no {place.name}")
    runtime.run("update", option, "1", "c1")
    assert place.read_text() == "1\n"
    (limits := runtime.bundle / "limits.json").write_text(json.dumps({"cpu": {key: 0, "quota": 0, "shares": 0}}))
    runtime.run("update", "-r", str(limits), "c1")
    assert place.read_text() == "0\n"


def test_update_refuses_what_it_does_not_do(runtime: Runtime) -> None:
    runtime.start("c1")
    for option in ("--l3-cache-schema", "--mem-bw-schema"):
        assert option in runtime.run("update", option, "x", "c1", code=1).stderr
    for option in ("--kernel-memory", "--kernel-memory-tcp"):
        runtime.run("update", option, "1m", "c1")
    limits = runtime.bundle / "limits.json"
    limits.write_text(json.dumps({"pids": {"limit": 44}}))
    runtime.run("update", "--resources", str(limits), "--pids-limit", "55", "c1")
    assert json.loads(runtime.run("events", "--stats", "c1").stdout)["data"]["pids"]["limit"] == 44
    limits.write_text(json.dumps({"memory": {"limit": "x"}, "pids": {"limit": []}}))
    said = runtime.run("update", "-r", str(limits), "c1", code=1).stderr
    assert "resources.memory.limit" in said
    assert "resources.pids.limit" in said


def test_events_come_at_the_interval(runtime: Runtime) -> None:
    runtime.start("c1")
    process = subprocess.Popen(runtime.command("events", "--interval", "50ms", "c1"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        assert json.loads(process.stdout.readline())["type"] == "stats"
    _stopped(runtime, runtime.state("c1")["pid"])
    process.stdout.read()
    process.stdout.close()
    assert process.wait(10) == 0


def test_the_rootless_option_takes_runcs_values(runtime: Runtime) -> None:
    for value in ("true", "false", "auto"):
        runtime.run("--rootless", value, "list")
    assert "--rootless" in runtime.run("--rootless", "perhaps", "list", code=1).stderr


def test_a_pipe_is_not_held_by_the_command(runtime: Runtime) -> None:
    """A detached container's output ends with its processes, not with somebody who only made it."""
    runtime.configure(shell="echo said; exec >/dev/null 2>&1; exec /bin/busybox sleep 1000")
    readable, writable = os.pipe()
    subprocess.run(runtime.command("run", "-d", "c1"), cwd=runtime.bundle, stdout=writable, stdin=-3, check=True)
    os.close(writable)
    assert os.read(readable, 100) == b"said\n"
    assert os.read(readable, 100) == b""
    assert fcntl.fcntl(readable, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(readable)

"""`sampan-runtime` as other engines call it."""

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_command import LAUNCH, Runtime, private_runtime

pytestmark = pytest.mark.root


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with private_runtime(tmp_path) as made:
        yield made


def test_create_start_state_kill_delete(runtime: Runtime) -> None:
    pid_file = runtime.bundle / "pid"
    subprocess.run(
        runtime.command("create", "--pid-file", str(pid_file), "c1"),
        cwd=runtime.bundle,
        stdin=-3,
        stdout=-3,
        stderr=-3,
        check=True,
    )
    state = runtime.state("c1")
    assert state["status"] == "created"
    assert state["pid"] == int(pid_file.read_text())
    assert state["bundle"] == str(runtime.bundle)
    assert runtime.run("list", "-q").stdout == "c1\n"
    runtime.run("start", "c1")
    assert runtime.state("c1")["status"] == "running"
    assert "c1" in runtime.run("list").stdout
    assert "is running" in runtime.run("delete", "c1", code=1).stderr
    assert runtime.state("c1")["status"] == "running"
    pidfd = os.pidfd_open(state["pid"])
    runtime.run("kill", "c1", "KILL")
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert runtime.state("c1")["status"] == "stopped"
    assert "container not running" in runtime.run("kill", "c1", code=1).stderr
    runtime.run("delete", "c1")
    assert "does not exist" in runtime.run("state", "c1", code=1).stderr
    runtime.run("delete", "-f", "c1")


def test_no_container_gets_hold_of_the_machines_interpreter(runtime: Runtime) -> None:
    """With a startContainer hook the runtime's own process executes the program: its /proc/self/exe must be a copy."""
    runtime.config["hooks"] = {"startContainer": [{"path": "/bin/busybox", "args": ["busybox", "true"]}]}
    runtime.configure("sleep", "1000")
    create = runtime.command("create", "c1")
    subprocess.run(create, cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    assert os.readlink(f"/proc/{runtime.state('c1')['pid']}/exe").startswith("/memfd:")
    runtime.run("start", "c1")
    assert runtime.state("c1")["status"] == "running"


def test_the_launcher_answers_state_as_python_does(runtime: Runtime, tmp_path: Path) -> None:
    """A copy of the launcher that has no Python beside it."""
    launcher = tmp_path / "alone"
    shutil.copy(LAUNCH.parents[3] / "launcher" / "sampan-runtime", launcher)

    def ask(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([launcher, *args], check=False, capture_output=True, text=True)

    def same(status: str) -> None:
        expected = runtime.run("state", "c1").stdout
        assert json.loads(expected)["status"] == status
        for more in ((), ("--log", "/dev/null", "--log-format", "json"), ("--systemd-cgroup",)):
            ended = ask("--root", str(runtime.root), *more, "state", "c1")
            assert (ended.stdout, ended.stderr, ended.returncode) == (expected, "", 0)

    runtime.config["annotations"] = {"a": 'b"\\n\u00e9', "pid": '  "pid": 7,', "n": '\n  "status": "running",\n'}
    runtime.configure("sleep", "1000")
    subprocess.run(runtime.command("create", "c1"), cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    # What is not plain is left to Python.
    assert ask("--root", str(runtime.root), "state", "c1").returncode not in (0, 1)
    runtime.run("start", "c1")
    same("running")
    runtime.run("pause", "c1")
    same("paused")
    runtime.run("resume", "c1")
    same("running")
    pidfd = os.pidfd_open(runtime.state("c1")["pid"])
    runtime.run("kill", "c1", "KILL")
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    same("stopped")
    for args in (
        ("state", "nope"),
        ("state", "c1", "more"),
        ("state", "../root/c1"),
        ("state",),
        ("--bad", "state", "c1"),
    ):
        assert ask("--root", str(runtime.root), *args).returncode not in (0, 1), args
    os.utime(runtime.root / "c1" / "state.json")
    assert ask("--root", str(runtime.root), "state", "c1").returncode not in (0, 1)


def test_run_gives_the_programs_exit_code_and_leaves_nothing(runtime: Runtime) -> None:
    runtime.configure(shell="echo out; echo err >&2; exit 7")
    ended = runtime.run("run", "c1", code=7)
    assert (ended.stdout, ended.stderr) == ("out\n", "err\n")
    runtime.configure(shell="echo ready; exec /bin/busybox sleep 1000")
    process = subprocess.Popen(runtime.command("run", "c1"), cwd=runtime.bundle, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    runtime.run("kill", "c1", "KILL")
    assert process.wait(10) == 128 + 9
    process.stdout.close()
    assert runtime.run("list", "-q").stdout == ""


def test_run_passes_signals_on(runtime: Runtime) -> None:
    runtime.configure(shell="trap 'exit 5' TERM; echo ready; while true; do /bin/busybox sleep 0.05; done")
    process = subprocess.Popen(runtime.command("run", "c1"), cwd=runtime.bundle, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 5
    process.stdout.close()


def test_every_signal_reaches_what_runs_in_the_foreground(runtime: Runtime) -> None:
    """Those too by which a fault of the runtime's own would show, and those that end it where its output has gone."""
    numbers = sorted(set(range(1, 65)) - {9, 17, 19, 28, 32, 33})
    traps = "".join(f"trap 'echo {number}' {number}; " for number in numbers)
    runtime.configure(shell=f"{traps}echo ready; while true; do /bin/busybox sleep 0.05; done")
    process = subprocess.Popen(runtime.command("run", "c1"), cwd=runtime.bundle, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for number in numbers:
        process.send_signal(number)
        assert process.stdout.readline() == b"%d\n" % number
    runtime.run("kill", "c1", "KILL")
    assert process.wait(10) == 128 + 9
    process.stdout.close()


def test_a_fault_of_the_runtimes_own_ends_it_though_it_passes_such_signals_on() -> None:
    program = (
        "import _signal, ctypes, os, sys\n"
        "from sampan.linux import signals\n"
        "fd = signals.receive({_signal.SIGSEGV, _signal.SIGUSR1})\n"
        "os.kill(os.getpid(), 11); os.kill(os.getpid(), 10)\n"
        "print(sorted(signals.take(fd)) == [(10, os.getpid()), (11, os.getpid())], signals.take(fd), flush=True)\n"
        "ctypes.string_at(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("True []\n", -signal.SIGSEGV)


def test_a_created_container_is_ended_by_what_says_stop_alone(runtime: Runtime) -> None:
    runtime.configure(shell="exec /bin/busybox sleep 1000")
    subprocess.run(runtime.command("create", "c1"), cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    pidfd = os.pidfd_open(runtime.state("c1")["pid"])
    for name in ("USR1", "ALRM", "PIPE", "WINCH", "RTMIN", "PWR"):
        runtime.run("kill", "c1", name)
        assert not select.select([pidfd], [], [], 0.02)[0], name
    assert runtime.state("c1")["status"] == "created"
    runtime.run("kill", "c1", "HUP")
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert runtime.state("c1")["status"] == "stopped"


def test_run_with_a_terminal(runtime: Runtime) -> None:
    runtime.configure(shell="/bin/busybox stty size; read x; echo got $x", terminal=True)
    master, slave = pty.openpty()
    import termios

    termios.tcsetwinsize(slave, (33, 77))
    process = subprocess.Popen(
        runtime.command("run", "c1"), cwd=runtime.bundle, stdin=slave, stdout=slave, stderr=slave
    )
    os.write(master, b"hello\r")
    output = b""
    while b"got hello" not in output:
        assert select.select([master], [], [], 10)[0], output
        output += os.read(master, 1000)
    assert b"33 77" in output
    assert process.wait(10) == 0
    os.close(slave)
    os.close(master)


def test_a_program_that_does_not_read_its_terminal_is_not_waited_for(runtime: Runtime, tmp_path: Path) -> None:
    (lines := tmp_path / "lines").write_text("\n" * 200_000)
    runtime.start("c1")
    with lines.open() as typed:
        script = "/bin/busybox sleep 0.5; echo said"
        ended = runtime.run("exec", "-t", "c1", "/bin/sh", "-c", script, stdin=typed, timeout=20)
    assert "said" in ended.stdout


def test_a_program_that_reads_its_terminal_late_gets_all_of_it(runtime: Runtime, tmp_path: Path) -> None:
    (lines := tmp_path / "lines").write_text("\n" * 200_000)
    runtime.configure(shell="/bin/busybox sleep 0.5; /bin/busybox head -c 200000 | /bin/busybox wc -c", terminal=True)
    with lines.open() as typed:
        assert "200000" in runtime.run("run", "c1", stdin=typed, timeout=20).stdout


def test_signals_pass_though_nobody_reads_what_the_terminal_says(runtime: Runtime) -> None:
    shell = "trap 'exit 5' TERM; /bin/busybox yes & while true; do /bin/busybox sleep 0.05; done"
    runtime.configure(shell=shell, terminal=True)
    reading, writing = os.pipe()
    process = subprocess.Popen(runtime.command("run", "c1"), cwd=runtime.bundle, stdin=-3, stdout=writing)
    while select.select([], [writing], [], 0.5)[1]:  # until it has been full for that long
        pass
    pidfd = os.pidfd_open(runtime.state("c1")["pid"])
    process.send_signal(signal.SIGTERM)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    os.close(writing)
    while os.read(reading, 65536):
        pass
    os.close(reading)
    assert process.wait(10) == 5


def test_a_console_socket_gets_the_terminal(runtime: Runtime) -> None:
    runtime.configure("tty", terminal=True)
    assert "--console-socket" in runtime.run("create", "c1", code=1).stderr
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path := str(runtime.bundle / "s"))
        server.listen()
        runtime.run("run", "-d", "--console-socket", path, "c1")
        connection, _ = server.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    assert select.select([fds[0]], [], [], 10)[0]
    assert b"/dev/pts/0" in os.read(fds[0], 100) or b"/dev/console" in os.read(fds[0], 100)
    os.close(fds[0])


def test_exec(runtime: Runtime) -> None:
    runtime.start("c1")
    shell = ("/bin/sh", "-c")
    assert runtime.run("exec", "-e", "A=b", "--cwd", "/bin", "c1", *shell, "echo $A $PWD").stdout == "b /bin\n"
    terminal = ("-e", "TERM=vt100", "c1", "/bin/busybox", "env")
    assert [line for line in runtime.run("exec", *terminal).stdout.split() if "TERM" in line] == ["TERM=vt100"]
    runtime.run("exec", "c1", *shell, "exit 3", code=3)
    ids = runtime.run("exec", "-u", "5:6", "-g", "7", "c1", "/bin/busybox", "id").stdout
    assert "uid=5 gid=6" in ids
    assert "7" in ids.partition("groups=")[2]
    process = runtime.bundle / "process.json"
    process.write_text(json.dumps({"cwd": "/", "args": ["/bin/busybox", "pwd"], "env": []}))
    assert runtime.run("exec", "--process", str(process), "c1").stdout == "/\n"
    script = ["/bin/sh", "-c", "/bin/busybox grep -E 'CapEff|CapBnd' /proc/self/status"]
    process.write_text(json.dumps({"cwd": "/", "args": script}))
    as_others = runtime.run("exec", "c1", *script).stdout
    assert runtime.run("exec", "--process", str(process), "c1").stdout == as_others
    assert "exec failed" in runtime.run("exec", "c1", "/none", code=255).stderr
    assert "/typo: ENOENT" in runtime.run("exec", "--cwd", "/typo", "c1", "/bin/sh", code=255).stderr
    runtime.run("exec", "c1", code=255)
    assert "4294967295" in runtime.run("exec", "-u", "4294967295", "c1", "/bin/sh", code=255).stderr
    assert runtime.run("exec", "-u", "010:011", "c1", "/bin/busybox", "id", "-u").stdout == "10\n"
    assert "--user" in runtime.run("exec", "-u", "0x10", "c1", "/bin/busybox", "id", code=255).stderr
    runtime.run("exec", "--cap", "CAP_SYS_ADMIN", "c1", *shell, "/bin/busybox mount -t tmpfs x /tmp || true")


def test_pause_resume_ps_update_events(runtime: Runtime) -> None:
    runtime.start("c1")
    pid = runtime.state("c1")["pid"]
    runtime.run("pause", "c1")
    assert runtime.state("c1")["status"] == "paused"
    runtime.run("pause", "c1", code=1)
    runtime.run("resume", "c1")
    runtime.run("resume", "c1", code=1)
    assert json.loads(runtime.run("ps", "-f", "json", "c1").stdout) == [pid]
    assert str(pid) in runtime.run("ps", "c1").stdout
    runtime.run("update", "--memory", "64m", "--pids-limit", "20", "c1")
    runtime.run("update", "-r", "-", "c1", stdin=None, input='{"cpu": {"quota": 20000, "period": 100000, "shares": 0}}')
    event = json.loads(runtime.run("events", "--stats", "c1").stdout)
    assert (event["type"], event["id"]) == ("stats", "c1")
    assert event["data"]["pids"] == {"current": 1, "limit": 20}
    assert event["data"]["memory"]["usage"]["limit"] == 64 << 20


def test_events_tell_of_memory_running_out(runtime: Runtime) -> None:
    runtime.config["linux"]["resources"]["memory"] = {"limit": 20 << 20, "swap": 20 << 20}
    runtime.configure("sleep", "1000")
    runtime.start("c1")
    process = subprocess.Popen(runtime.command("events", "--interval", "1h", "c1"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["type"] == "stats"
    eater = runtime.command(
        "exec", "c1", "/bin/sh", "-c", "x=$(/bin/busybox dd if=/dev/zero bs=1M count=64 | /bin/busybox tr '\\0' x)"
    )
    subprocess.run(eater, capture_output=True, check=False)
    assert json.loads(process.stdout.readline()) == {"type": "oom", "id": "c1"}
    runtime.run("delete", "-f", "c1")
    process.stdout.close()
    assert process.wait(10) == 0


def test_hooks_that_fail_too_late_are_told_of_in_the_log(runtime: Runtime) -> None:
    log = runtime.bundle / "log.json"
    fails = {"path": "/bin/sh", "args": ["sh", "-c", "echo no luck; exit 3"]}
    runtime.config["hooks"] = {"poststart": [fails], "poststop": [fails]}
    runtime.config["ociVersion"] = "1.2.0"  # since 1.3 a poststart hook that fails ends the container
    runtime.configure("true")
    ended = runtime.run("--log", str(log), "--log-format", "json", "run", "c1")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["level"] for entry in entries] == ["warning", "warning"]
    for kind, entry in zip(("poststart", "poststop"), entries, strict=True):
        assert entry["msg"].startswith(f"{kind} hook 0 at /bin/sh: exit status 3: no luck"), entry
    assert ended.stderr == ""


def test_errors_go_to_the_log_as_json(runtime: Runtime) -> None:
    log = runtime.bundle / "log.json"
    ended = runtime.run("--log", str(log), "--log-format", "json", "start", "nobody", code=1)
    entry = json.loads(log.read_text())
    assert entry["level"] == "error"
    assert "does not exist" in entry["msg"]
    assert ended.stderr.strip() == entry["msg"]


def test_misuse_is_one_line(runtime: Runtime) -> None:
    assert len(runtime.run("frobnicate", code=3).stderr.splitlines()) == 1
    for args in (
        ["run"],
        ["run", "a", "b"],
        ["run", "--nope", "a"],
        ["kill", "a", "NOPE"],
        ["--log-format", "xml", "list"],
    ):
        ended = runtime.run(*args, code=1)
        assert len(ended.stderr.splitlines()) == 1, ended
    assert "exists already" in runtime.run("spec", code=1).stderr
    assert "criu" in runtime.run("restore", "c1", code=1).stderr
    for args in (["--help"], ["help"], ["run", "--help"], ["--version"], ["features"]):
        assert runtime.run(*args).stdout


def test_run_tells_all_faults_of_a_configuration_without_a_process(runtime: Runtime) -> None:
    runtime.config["linux"]["sysctl"] = {"kernel.foo": "1"}
    process = runtime.config.pop("process")
    (runtime.bundle / "config.json").write_text(json.dumps(runtime.config))
    assert "linux.sysctl['kernel.foo']" in runtime.run("run", "c1", code=1).stderr
    runtime.config["linux"]["sysctl"] = {}
    (runtime.bundle / "config.json").write_text(json.dumps(runtime.config))
    assert "process: is required" in runtime.run("run", "c1", code=1).stderr
    runtime.config["process"] = process


def test_a_log_that_cannot_be_written_is_said(runtime: Runtime) -> None:
    for path in ("/nodir/log", "/proc/version/log"):
        ended = runtime.run("--log", path, "list", code=1)
        assert f"open log at {path}" in ended.stderr
        assert ended.stdout == ""
    # One that is full is told of, with what was to be in it.
    ended = runtime.run("--log", "/dev/full", "state", "nope", code=1)
    assert "No space left on device" in ended.stderr
    assert "does not exist" in ended.stderr


def test_a_trace_names_the_steps(runtime: Runtime) -> None:
    runtime.configure("true")
    text = runtime.run("--trace", "run", "c1").stderr
    assert "pivot root" in text
    trace = runtime.bundle / "trace.json"
    runtime.run("--trace-file", str(trace), "run", "c1")
    assert any(event["name"] == "pivot root" for event in json.loads(trace.read_text())["traceEvents"])


def test_the_trace_of_a_failure_ends_with_what_failed(runtime: Runtime) -> None:
    runtime.config["mounts"].append({"destination": "/bad", "type": "tmpfs", "source": "x", "options": ["nonsense"]})
    runtime.configure("true")
    said = runtime.run("--trace", "run", "c1", code=1).stderr
    steps = [line for line in said.splitlines() if " ms  " in line]
    assert any("runtime" in step and "make cgroup" in step for step in steps)
    assert 'init     mount "tmpfs"  /bad' in steps[-1]
    assert "Unknown parameter 'nonsense'" in said


def test_debug_tells_each_step_in_the_log(runtime: Runtime) -> None:
    runtime.configure("true")
    log = runtime.bundle / "log"
    assert runtime.run("--debug", "--log", str(log), "--log-format", "json", "run", "c1").stderr == ""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["level"] for entry in entries} == {"debug"}
    assert any(entry["msg"].startswith("init: pivot root at ") for entry in entries)


def test_all_faults_come_before_the_terminals(runtime: Runtime) -> None:
    runtime.config["linux"]["namespaces"].append({"type": "moon"})
    runtime.config["process"]["cwd"] = "here"
    runtime.configure("true", terminal=True)
    for command in ("create", "run"):
        said = runtime.run(command, "--console-socket", "/none", "c1", code=1).stderr
        assert "process.cwd" in said
        assert "linux.namespaces[6].type" in said


def test_exec_into_groups_below(runtime: Runtime) -> None:
    runtime.start("c1")
    path = runtime.config["linux"]["cgroupsPath"].lstrip("/")
    below = [group / "below" for group in Path("/sys/fs/cgroup").glob(f"*/{path}")] or [
        Path("/sys/fs/cgroup", path, "below")
    ]
    for directory in below:
        directory.mkdir()
        if directory.parts[4] == "cpuset":
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / name).write_text((directory.parent / name).read_text())
    show = ("c1", "/bin/busybox", "cat", "/proc/self/cgroup")
    unified = len(below) == 1
    groups = runtime.run("exec", "--cgroup", "/below/", *show).stdout.split()
    assert {line.split(":")[2] for line in groups if line.split(":")[1] or unified} >= {"/below"}
    if not unified:
        groups = runtime.run("exec", "--cgroup", "pids,freezer:below", *show).stdout.split()
        found = {line.split(":")[1]: line.split(":")[2] for line in groups}
        assert (found["pids"], found["freezer"], found["memory"]) == ("/below", "/below", "/")
    assert "ENOENT" in runtime.run("exec", "--cgroup", "none", *show, code=255).stderr
    wrong = runtime.run("exec", "--cgroup", "nonsense:below", *show, code=255).stderr
    assert "nonsense" in wrong or "one hierarchy" in wrong


def test_sockets_of_systemd_are_passed_on(runtime: Runtime) -> None:
    runtime.configure(shell="echo $LISTEN_FDS $LISTEN_PID; /bin/busybox cat <&3")
    readable, writable = os.pipe()
    os.write(writable, b"three")
    os.close(writable)

    def arrange() -> None:
        os.dup2(readable, 3)

    command = runtime.command("run", "c1")
    for pid, output in (("$$", "1 1\nthree"), ("1", "\n"), ("", "\n")):  # another's, and nobody's
        script = f'LISTEN_FDS=1 LISTEN_PID={pid} exec "$@"'
        ended = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *command],
            cwd=runtime.bundle,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(3,),
            preexec_fn=arrange,
        )
        assert ended.stdout == output
    os.close(readable)


LIST_FILES = "for each in /proc/self/fd/*; do busybox readlink $each; done > /open; true"


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
@pytest.mark.parametrize("command", ["run", "exec"])
def test_a_closed_stream_is_not_taken_by_what_the_runtime_opens(
    runtime: Runtime, command: str, closed: tuple[int, ...]
) -> None:
    """The container would have the machine's control groups for its output (CVE-2024-21626's kind)."""
    runtime.config["root"]["readonly"] = False
    runtime.configure(shell=LIST_FILES)
    arguments = ["run", "c1"]
    if command == "exec":
        runtime.configure("sleep", "100")
        subprocess.run(
            runtime.command("run", "-d", "c1"), cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True
        )
        arguments = ["exec", "c1", "/bin/sh", "-c", LIST_FILES]
    redirections = " ".join(f"{number}>&-" for number in closed)
    subprocess.run(["sh", "-c", f'exec "$@" {redirections}', "sh", *runtime.command(*arguments)],
                   check=True, stdin=-3, stdout=-3, stderr=-3, cwd=runtime.bundle)  # fmt: skip
    seen = (runtime.bundle / "rootfs" / "open").read_text().split()
    # The shell's own: its list of files, and where that goes.
    assert {path for path in seen if not path.startswith(("/dev/null", "/open", "/proc/"))} == set()


def test_the_quick_answer_is_kept_only_where_it_is_one(runtime: Runtime) -> None:
    runtime.config["annotations"] = {f"a{number}": "v" * 1000 for number in range(1000)}
    runtime.configure("sleep", "100")
    subprocess.run(runtime.command("run", "-d", "c1"), cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    assert not (runtime.root / "c1" / "answer").exists()
    assert len(runtime.state("c1")["annotations"]) == 1000


def test_what_is_no_program_is_called_so_in_the_words_that_engines_look_for(runtime: Runtime) -> None:
    (runtime.bundle / "rootfs" / "plain").touch()
    for path in ("/plain", "/bin"):
        runtime.config["process"]["args"] = [path]
        (runtime.bundle / "config.json").write_text(json.dumps(runtime.config))
        assert "permission denied" in runtime.run("run", "c1", code=1).stderr


def test_a_name_that_is_no_text_is_refused_in_a_line(runtime: Runtime) -> None:
    runtime.configure("sleep", "100")
    subprocess.run(runtime.command("run", "-d", "c1"), cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    refused = runtime.run("update", "--cpuset-cpus", os.fsdecode(b"\xff"), "c1", code=1)
    assert "cpu" in refused.stderr
    assert "Traceback" not in refused.stderr

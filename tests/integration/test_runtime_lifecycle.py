"""A container's life in our own runtime, from create to delete, on the real kernel."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box, read_terminal

from sampan.errors import AlreadyExists, InvalidInput, NotFound, StageFailed, WrongState
from sampan.runtime import trace
from sampan.runtime.handler import Stdio
from sampan.runtime.options import Options

pytestmark = pytest.mark.root


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


def test_a_container_lives_and_leaves_nothing(box: Box) -> None:
    created = box.create("sh", "-c", "exit 7")
    assert box.handler.state(box.container_id)["status"] == "created"
    assert box.handler.state(box.container_id)["pid"] == created.pid
    box.handler.start(box.container_id)
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == 7
    state = box.handler.state(box.container_id)
    assert (state["status"], state["pid"]) == ("stopped", 0)
    group = box.handler.group(box.container_id)
    box.handler.delete(box.container_id)
    assert os.listdir(box.handler.root) == []
    assert not group.exists()
    with pytest.raises(NotFound):
        box.handler.state(box.container_id)


def test_a_created_container_runs_the_trampoline_not_the_interpreter(box: Box) -> None:
    created = box.create("sleep", "100")
    with open(f"/proc/{created.pid}/cmdline", "rb") as file:
        assert file.read().split(b"\0")[2:4] == [b"sleep", b"100"]
    assert os.readlink(f"/proc/{created.pid}/exe") == "/sampan-init"
    open_files = {os.readlink(f"/proc/{created.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{created.pid}/fd")}
    state = f"{box.handler.root}/{box.container_id}"
    assert open_files == {"/dev/null", f"{state}/exec.fifo", f"{state}/report.fifo"}
    with open(f"/proc/{created.pid}/statm", "rb") as file:
        assert int(file.read().split()[1]) < 16
    box.discard(created)


@pytest.mark.parametrize("all_", [False, True])
@pytest.mark.parametrize("own_pids", [False, True])
def test_a_created_container_is_ended_by_a_signal_that_ends_processes(box: Box, own_pids: bool, all_: bool) -> None:
    if not own_pids:
        box.linux["namespaces"] = [one for one in box.linux["namespaces"] if one["type"] != "pid"]
    created = box.create("sleep", "100")
    for harmless in (0, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH):
        box.handler.kill(box.container_id, harmless, all=all_)
    assert box.handler.state(box.container_id)["status"] == "created"
    box.handler.kill(box.container_id, signal.SIGTERM, all=all_)
    pidfd = os.pidfd_open(created.pid)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert box.handler.state(box.container_id)["status"] == "stopped"
    ended = os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1])
    assert ended == -(signal.SIGKILL if own_pids else signal.SIGTERM)
    box.handler.delete(box.container_id)


def test_a_created_container_can_be_deleted_unstarted(box: Box) -> None:
    created = box.create("true")
    box.handler.delete(box.container_id)
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == -signal.SIGKILL
    assert os.listdir(box.handler.root) == []


def test_states_allow_what_they_should(box: Box) -> None:
    created = box.create("sleep", "100")
    with pytest.raises(AlreadyExists):
        box.create("true")
    assert box.handler.state(box.container_id)["status"] == "created"
    box.handler.start(box.container_id)
    assert box.handler.state(box.container_id)["status"] == "running"
    with pytest.raises(WrongState):
        box.handler.start(box.container_id)
    with pytest.raises(WrongState):
        box.handler.delete(box.container_id)
    box.handler.pause(box.container_id)
    assert box.handler.state(box.container_id)["status"] == "paused"
    with pytest.raises(WrongState):
        box.exec("true")
    box.handler.resume(box.container_id)
    with pytest.raises(WrongState):
        box.handler.resume(box.container_id)
    assert box.handler.pids(box.container_id) == [created.pid]
    box.handler.kill(box.container_id, signal.SIGKILL)
    os.waitpid(created.pid, 0)
    with pytest.raises(WrongState):
        box.handler.kill(box.container_id, signal.SIGKILL)
    with pytest.raises(WrongState):
        box.handler.start(box.container_id)
    box.handler.delete(box.container_id)
    box.handler.delete(box.container_id, force=True)


@pytest.mark.parametrize("where", ["host", "path"])
def test_a_kill_ends_all_of_a_container_without_a_pid_namespace_of_its_own(box: Box, where: str) -> None:
    box.linux["namespaces"] = [one for one in box.linux["namespaces"] if one["type"] != "pid"]
    if where == "path":
        box.linux["namespaces"].append({"type": "pid", "path": "/proc/self/ns/pid"})
    reader, writer = os.pipe2(os.O_CLOEXEC)
    created = box.create("sh", "-c", "sleep 100 & echo on; sleep 100 & wait", stdio=Stdio(-1, writer, -1))
    os.close(writer)
    box.handler.start(box.container_id)
    assert os.read(reader, 10) == b"on\n"
    box.handler.kill(box.container_id, signal.SIGKILL)
    os.waitpid(created.pid, 0)
    # Its end comes when the last process that could write there has ended.
    assert select.select([reader], [], [], 5)[0]
    assert os.read(reader, 10) == b""
    os.close(reader)
    box.handler.delete(box.container_id)


def test_a_kill_ends_a_paused_container(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    box.handler.pause(box.container_id)
    box.handler.kill(box.container_id, signal.SIGKILL)
    pidfd = os.pidfd_open(created.pid)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    os.waitpid(created.pid, 0)
    box.handler.delete(box.container_id)


def test_a_start_does_not_wait_for_an_init_that_another_has_stopped(box: Box) -> None:
    box.linux["namespaces"] = [one for one in box.linux["namespaces"] if one["type"] != "pid"]
    box.linux["namespaces"].append({"type": "pid", "path": "/proc/self/ns/pid"})
    created = box.create("true")
    os.kill(created.pid, signal.SIGSTOP)
    with pytest.raises(StageFailed, match="wait for the program to run: the process was stopped on its way"):
        box.handler.start(box.container_id)
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == -signal.SIGKILL
    box.handler.delete(box.container_id)


def test_a_paused_container_is_deleted_by_force_at_once(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    box.handler.pause(box.container_id)
    before = time.monotonic()
    box.handler.delete(box.container_id, force=True)
    assert time.monotonic() - before < 5
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == -signal.SIGKILL


def test_a_container_that_is_being_created_is_left_to_its_creator(box: Box) -> None:
    refused = []

    def meddle(step: str) -> None:
        if step == "set cgroup limits":
            with pytest.raises(WrongState, match="is being created"):
                box.handler.delete(box.container_id)
            refused.append(step)

    trace.hook = meddle
    try:
        created = box.create("true")
    finally:
        trace.hook = None
    assert refused
    box.handler.delete(box.container_id)
    os.waitpid(created.pid, 0)


def test_a_program_that_is_not_there_fails_the_create(box: Box) -> None:
    with pytest.raises(StageFailed) as caught:
        box.create("no-such-program")
    assert caught.value.errno == 2
    assert "no-such-program" in str(caught.value)
    assert os.listdir(box.handler.root) == []


def test_a_program_of_a_foreign_format_fails_the_start(box: Box) -> None:
    (box.rootfs / "bin" / "odd").write_bytes(b"\x7fELF but not really")
    (box.rootfs / "bin" / "odd").chmod(0o755)
    created = box.create("odd")
    with pytest.raises(StageFailed) as caught:
        box.handler.start(box.container_id)
    assert caught.value.errno == 8
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == 126


def test_exec_joins_everything(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    ended = box.exec(
        "sh", "-c", "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done; cat /proc/1/cmdline"
    )
    expected = [os.readlink(f"/proc/{created.pid}/ns/{n}") for n in ("pid", "net", "ipc", "uts", "mnt", "cgroup")]
    assert ended.output.split("\n")[:6] == expected
    assert ended.output.endswith("sleep\x00100\x00")
    with open(f"/proc/{created.pid}/cgroup") as file:
        groups = file.read()
    running = box.handler.exec(box.container_id, {**box.process, "args": ["sleep", "100"]}, Stdio())
    with open(f"/proc/{running.pid}/cgroup") as file:
        inside = [line for line in file.read().splitlines() if not line.startswith("0::")]
    assert inside == [line for line in groups.splitlines() if not line.startswith("0::")]
    assert sorted(box.handler.pids(box.container_id)) == sorted([created.pid, running.pid])
    assert os.readlink("/proc/self/ns/pid") == os.readlink("/proc/self/ns/pid_for_children")
    box.handler.kill(box.container_id, signal.SIGKILL)
    os.waitpid(running.pid, 0)
    os.waitpid(created.pid, 0)
    with pytest.raises(WrongState):
        box.exec("true")


def test_exec_of_a_missing_program_leaves_the_container(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    with pytest.raises(StageFailed):
        box.exec("nothing-here")
    with pytest.raises(InvalidInput):
        box.handler.exec(box.container_id, {"args": []}, Stdio())
    assert box.handler.pids(box.container_id) == [created.pid]
    box.discard(created)


def test_a_terminal_is_of_the_containers_devpts(box: Box) -> None:
    box.process["terminal"] = True
    box.process["consoleSize"] = {"height": 33, "width": 99}
    created = box.create("sh", "-c", "tty; stty size; stat -c %t:%T /dev/console; test -t 0 && echo ok")
    box.handler.start(box.container_id)
    output = read_terminal(created.console)
    os.close(created.console)
    os.waitpid(created.pid, 0)
    assert output.split("\r\n")[:4] == ["/dev/pts/0", "33 99", "88:0", "ok"]


def test_a_paused_container_is_not_started(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.pause(box.container_id)
    with pytest.raises(WrongState, match="is paused"):
        box.handler.start(box.container_id)
    box.handler.resume(box.container_id)
    box.handler.start(box.container_id)
    assert box.handler.state(box.container_id)["status"] == "running"
    box.discard(created)


@pytest.fixture
def machine_dev(tmp_path: Path) -> Iterator[Path]:
    """The machine's /dev with all that is mounted there, in a place where mounts spread to nobody but its own peers."""
    place = tmp_path / "dev"
    place.mkdir()
    subprocess.run(["mount", "--rbind", "/dev", place], check=True)
    try:
        for kind in ("--make-rprivate", "--make-rshared"):
            subprocess.run(["mount", kind, place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-R", place], check=True)


@pytest.mark.parametrize("spreads", [False, True])
def test_a_terminal_where_a_volume_is_the_machines_dev(box: Box, machine_dev: Path, spreads: bool) -> None:
    """As storage plugins of Kubernetes have it, into which people exec with a terminal."""
    box.config["mounts"] = [one for one in box.config["mounts"] if not one["destination"].startswith("/dev")]
    options = ["rbind", "rshared" if spreads else "rprivate"]
    box.config["mounts"].append({"destination": "/dev", "type": "bind", "source": str(machine_dev), "options": options})
    if spreads:
        box.linux["rootfsPropagation"] = "shared"
    box.process["terminal"] = True
    created = box.create("sh", "-c", "test -t 0 && stat -c %t:%T $(tty) /dev/console; exec sleep 100")
    box.handler.start(box.container_id)
    poll = select.poll()
    poll.register(created.console, select.POLLIN)
    said = ""
    while said.count("\n") < 2:
        assert poll.poll(10_000)
        said += os.read(created.console, 100).decode()
    terminal, console = said.split()
    # Over the machine's own console it would be everybody's.
    assert (terminal.partition(":")[0], console == terminal) == ("88", not spreads)
    seen = Path("/proc/self/mountinfo").read_text()
    assert f"{machine_dev}/console" not in seen
    document = {**box.process, "args": ["sh", "-c", "test -t 0 && stat -c %t $(tty)"]}
    inner = box.handler.exec(box.container_id, document, Stdio())
    assert read_terminal(inner.console) == "88\r\n"
    os.close(inner.console)
    os.waitpid(inner.pid, 0)
    box.discard(created)


def test_a_terminal_goes_to_the_console_socket(box: Box, tmp_path: Path) -> None:
    import socket

    box.process["terminal"] = True
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        created = box.create("echo", "hello", options=Options(console_socket=path))
        assert created.console == -1
        with listener.accept()[0] as connection:
            _, fds, _, _ = socket.recv_fds(connection, 100, 1)
    box.handler.start(box.container_id)
    assert read_terminal(fds[0]) == "hello\r\n"
    os.close(fds[0])
    os.waitpid(created.pid, 0)


def test_preserved_descriptors_reach_the_program(box: Box) -> None:
    pid = os.fork()
    if pid == 0:
        # In a process of its own: descriptor 3 must be free to be taken.
        try:
            reader, writer = os.pipe()
            os.dup2(writer, 3)
            created = box.create(
                "sh", "-c", "echo through >&3; ls /proc/self/fd | wc -l >&3", options=Options(preserve_fds=1)
            )
            box.handler.start(box.container_id)
            os.waitpid(created.pid, 0)
            said = os.read(reader, 100).split()
            os._exit(0 if said == [b"through", b"5"] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_bad_names_are_refused(box: Box) -> None:
    for name in ("", ".", "..", "a/b", "a b", "x" * 2000, "ü"):
        with pytest.raises(InvalidInput):
            box.handler.create(name, str(box.bundle), Stdio(), config=box.config)


def test_a_cut_short_creation_is_deleted_by_force(box: Box) -> None:
    os.makedirs(f"{box.handler.root}/{box.container_id}")
    with pytest.raises(NotFound):
        box.handler.delete(box.container_id)
    box.handler.delete(box.container_id, force=True)
    assert os.listdir(box.handler.root) == []


def test_two_containers_do_not_share_a_cgroup(box: Box, tmp_path: Path) -> None:
    """The same id under another root means the same default cgroup: the second must not end the first."""
    created = box.create("sleep", "100")
    other = Box(tmp_path / "other")
    other.container_id = box.container_id
    with pytest.raises(WrongState, match="has processes already"):
        other.create("true")
    assert box.handler.pids(box.container_id) == [created.pid]
    assert os.listdir(other.handler.root) == []
    box.discard(created)


def test_a_container_without_a_process_is_created_and_runs_nothing(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    del box.config["process"]
    created = box.handler.create(box.container_id, str(box.bundle), Stdio(), config=box.config)
    assert box.handler.state(box.container_id)["status"] == "created"
    box.handler.start(box.container_id)
    os.waitpid(created.pid, 0)
    assert box.handler.state(box.container_id)["status"] == "stopped"
    assert "process is not set" in capfd.readouterr().err

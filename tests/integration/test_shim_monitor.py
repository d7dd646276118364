"""Containers in a monitor, by both handlers: streams, logs, execs, ends."""

import errno
import os
import select
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_pods import RUNC, Pod, process

from sampan import errors
from sampan.linux.mount import MNT_DETACH, mount, umount
from sampan.shim.client import read_exit
from sampan.shim.zygote import Zygote

pytestmark = pytest.mark.root

HANDLERS = ["native", pytest.param("external", marks=pytest.mark.skipif(not RUNC, reason="runc is not installed"))]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote.start() as started:
        yield started


@pytest.fixture(params=HANDLERS)
def pod(request: pytest.FixtureRequest, tmp_path: Path, zygote: Zygote) -> Iterator[Pod]:
    made = Pod(tmp_path, zygote, request.param)
    yield made
    made.close()
    assert not os.path.exists(f"{made.directory}/control.sock")
    assert not os.path.exists(f"{made.directory}/crash.txt")


@pytest.fixture
def native(tmp_path: Path, zygote: Zygote) -> Iterator[Pod]:
    made = Pod(tmp_path, zygote, "native")
    yield made
    made.close()
    assert not os.path.exists(f"{made.directory}/crash.txt")


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def read_until(fd: int, wanted: bytes, timeout: float = 10) -> bytes:
    text = b""
    while wanted not in text:
        assert select.select([fd], [], [], timeout)[0], text
        try:
            data = os.read(fd, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # a pty whose other side is closed
                raise
            data = b""
        assert data, text
        text += data
    return text


def test_a_life(pod: Pod) -> None:
    client = pod.client
    events = client.events()
    pid = pod.create("one", "echo out; echo err >&2; exit 3")
    assert [c["state"] for c in client.info()["containers"]] == ["created"]
    client.start("one")
    ended = client.wait("one", timeout=20)
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (3, 0, False)
    assert 0 < ended.started_at <= ended.finished_at
    recorded = read_exit(pod.directory, "one")
    assert recorded is not None
    assert recorded.as_dict() == ended.as_dict()
    assert pod.texts("one") == ["out"]
    assert pod.texts("one", "stderr") == ["err"]
    assert pod.log("one").stat().st_mode & 0o777 == 0o640
    client.delete("one")
    assert client.info()["containers"] == []
    seen = [events.next(10) or {} for _ in range(4)]
    assert [(e["seq"], e["kind"], e["id"]) for e in seen] == [
        (1, "create", "one"),
        (2, "start", "one"),
        (3, "exit", "one"),
        (4, "delete", "one"),
    ]
    assert seen[0]["pid"] == pid
    assert seen[2]["exit_code"] == 3
    with client.events(since=2) as late:
        assert (late.next(10) or {})["kind"] == "exit"
    events.close()


def test_exec(pod: Pod) -> None:
    client = pod.client
    pod.run("one", "sleep 1000")
    reading, writing = os.pipe()
    with open("/dev/null", "rb") as null:
        ended = client.exec_wait(
            "one", process("/bin/sh", "-c", "echo hi; exit 4"), stdin=null.fileno(), stdout=writing, stderr=writing
        )
    os.close(writing)
    assert read_all(reading) == b"hi\n"
    assert ended.exit_code == 4
    started = client.exec("one", process("/bin/sleep", "1000"), exec_id="nap")
    assert started.pid > 0
    with pytest.raises(errors.TimedOut):
        client.wait("one", "nap", timeout=0.01)
    client.signal("one", signal.SIGKILL, exec_id="nap")
    assert client.wait("one", "nap").signal == signal.SIGKILL
    assert client.stop("one", signal.SIGKILL, timeout=10).signal == signal.SIGKILL


def test_who_stops_what_comes_into_his_container_holds_up_nobody_else(native: Pod) -> None:
    client = native.client
    native.run("one", "while :; do kill -STOP -1; done")
    native.run("two", "while :; do echo on; sleep 0.1; done")
    refused = []
    for terminal in (False, True):
        for _ in range(10):
            try:
                made = client.exec("one", process("/bin/true", terminal=terminal), timeout=1)
            except errors.StageFailed as error:
                refused.append(str(error))
            else:
                if made.console >= 0:
                    os.close(made.console)
    assert refused
    assert [text for text in refused if "stopped on its way" not in text] == []
    assert client.exec_wait("two", process("/bin/true")).exit_code == 0
    assert client.stop("one", signal.SIGKILL, timeout=10).signal == signal.SIGKILL


def test_an_exec_out_of_time_ends_with_its_process_group(pod: Pod) -> None:
    pod.run("one", "sleep 1000")
    reading, writing = os.pipe()
    ended = pod.client.exec_wait(
        "one", process("/bin/sh", "-c", "sleep 1000 & echo started; wait"), stdout=writing, timeout=0.3
    )
    os.close(writing)
    assert ended.timed_out
    assert ended.exit_code == 137
    assert read_all(reading) == b"started\n"  # ends only when the grandchild has ended too


def test_exec_with_a_terminal(pod: Pod) -> None:
    pod.run("one", "sleep 1000")
    started = pod.client.exec("one", process("/bin/sh", "-c", "read x; stty size; exit 5", terminal=True))
    assert started.console >= 0
    started.resize(100, 40)
    os.write(started.console, b"\n")
    assert b"40 100" in read_until(started.console, b"40 100")
    assert pod.client.wait("one", started.id, timeout=10).exit_code == 5
    os.close(started.console)


def test_input_and_output_of_an_attached_client(pod: Pod) -> None:
    pod.create("one", "cat; echo end >&2", stdin=True, stdin_once=True)
    out, out_theirs = os.pipe()
    err, err_theirs = os.pipe()
    in_theirs, into = os.pipe()
    attached = pod.client.attach("one", stdin=in_theirs, stdout=out_theirs, stderr=err_theirs)
    for fd in (out_theirs, err_theirs, in_theirs):
        os.close(fd)
    pod.client.start("one")
    os.write(into, b"to be\n")
    assert read_until(out, b"\n") == b"to be\n"
    os.write(into, b"or not")
    os.close(into)
    assert read_all(out) == b"or not"
    assert read_all(err) == b"end\n"
    assert "closed its output" in attached.wait_closed(10)
    attached.close()
    assert pod.client.wait("one", timeout=10).exit_code == 0
    assert pod.texts("one") == ["to be", "or not"]
    assert b" stdout P or not\n" in pod.log("one").read_bytes()


def test_a_terminal(pod: Pod) -> None:
    pod.create("one", "stty -echo; echo ready; read x; stty size; echo got $x", stdin=True, terminal=True)
    pod.client.resize("one", 132, 50)
    ours, theirs = socket.socketpair()
    attached = pod.client.attach("one", stdin=theirs.fileno(), stdout=theirs.fileno())
    theirs.close()
    pod.client.start("one")
    read_until(ours.fileno(), b"ready\r\n")
    ours.send(b"it\n")
    assert b"50 132" in read_until(ours.fileno(), b"got it\r\n")
    assert "closed its output" in attached.wait_closed(10)
    attached.close()
    ours.close()
    assert pod.client.wait("one", timeout=10).exit_code == 0
    assert b"got it\r\n" in pod.log("one").read_bytes()


def test_many_clients_at_once_and_one_that_goes(native: Pod) -> None:
    native.create("one", "read x; seq 1000; read x; seq 1000", stdin=True)
    pipes = [os.pipe() for _ in range(3)]
    attached = [native.client.attach("one", stdout=writing) for _, writing in pipes]
    for _, writing in pipes:
        os.close(writing)
    in_theirs, into = os.pipe()
    typist = native.client.attach("one", stdin=in_theirs)
    os.close(in_theirs)
    native.client.start("one")
    os.write(into, b"\n")
    half = b"".join(b"%d\n" % n for n in range(1, 1001))
    for reading, _ in pipes:
        assert read_until(reading, b"\n1000\n") == half
    os.close(pipes[0][0])  # its reader goes without a word
    attached[1].close()  # this one detaches
    os.write(into, b"\n")
    assert read_all(pipes[1][0]) == b""
    assert read_all(pipes[2][0]) == half
    assert native.client.wait("one", timeout=10).exit_code == 0
    assert native.texts("one") == [str(n) for n in range(1, 1001)] * 2
    for one in (*attached, typist):
        one.close()
    os.close(into)


def test_a_client_that_reads_nothing_delays_but_loses_nothing(native: Pod) -> None:
    native.create("one", "seq 200000")
    reading, writing = os.pipe()
    attached = native.client.attach("one", stdout=writing)
    os.close(writing)
    native.client.start("one")
    with pytest.raises(errors.TimedOut):
        native.client.wait("one", timeout=0.5)  # more than the backlog and the pipes hold
    assert read_all(reading) == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert native.client.wait("one", timeout=10).exit_code == 0
    attached.close()
    assert len(native.texts("one")) == 200000


def test_a_log_that_is_rotated_loses_no_line(native: Pod) -> None:
    native.create("one", "read x; seq 100000; read x; echo last", stdin=True)
    in_theirs, into = os.pipe()
    with native.client.attach("one", stdin=in_theirs):
        os.close(in_theirs)
        native.client.start("one")
        os.write(into, b"\n")
        parts = []
        for number in range(5):
            part = native.path / f"part{number}"
            native.log("one").rename(part)
            native.client.reopen_log("one")
            parts.append(part)
        os.write(into, b"\n")
        assert native.client.wait("one", timeout=20).exit_code == 0
    os.close(into)
    text = b"".join(part.read_bytes() for part in parts) + native.log("one").read_bytes()
    numbers = [line.split(b" ", 3)[3] for line in text.splitlines()]
    assert numbers == [b"%d" % n for n in range(1, 100001)] + [b"last"]


def test_a_full_disk_tears_no_line_and_holds_up_nobody(native: Pod) -> None:
    small = native.path / "small"
    small.mkdir()
    mount("tmpfs", str(small), "tmpfs", 0, "size=64k")
    try:
        bundle = native.bundle("one", "seq 100000")
        native.client.create("one", bundle, log_path=str(small / "log"), cgroup=f"{native.cgroup}/one")
        native.client.start("one")
        assert native.client.wait("one", timeout=20).exit_code == 0
        lines = (small / "log").read_bytes().split(b"\n")
        assert lines.pop() == b""
        numbers = [int(line.split(b" ", 3)[3]) for line in lines]
        assert numbers[:1000] == list(range(1, 1001))
        assert numbers == sorted(set(numbers))
        assert native.client.info()["containers"][0]["log_lost"] > 0
        native.client.delete("one")
    finally:
        umount(str(small), MNT_DETACH)


def test_an_end_that_a_full_disk_does_not_take_is_told_and_recorded_later(native: Pod) -> None:
    folder = Path(native.directory) / "one"
    folder.mkdir()
    mount("tmpfs", str(folder), "tmpfs", 0, "size=4k")
    try:
        (folder / "full").write_bytes(bytes(4096))
        with native.client.events() as events:
            native.run("one", "exit 3")
            assert native.client.wait("one", timeout=20).exit_code == 3
            assert read_exit(native.directory, "one") is None
            (folder / "full").unlink()
            kinds: list[str] = []
            while kinds.count("exit") < 2:
                event = events.next(20)
                assert event, kinds
                kinds.append(event["kind"])
        recorded = read_exit(native.directory, "one")
        assert recorded is not None
        assert recorded.exit_code == 3
        assert sorted(os.listdir(folder)) == ["exit.json"]
        native.client.delete("one")
    finally:
        umount(str(folder), MNT_DETACH)


def test_a_client_whose_disk_is_full_is_let_go(native: Pod) -> None:
    small = native.path / "small"
    small.mkdir()
    mount("tmpfs", str(small), "tmpfs", 0, "size=64k")
    try:
        native.create("one", "seq 100000")
        file = os.open(small / "output", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        with native.client.attach("one", stdout=file) as attachment:
            os.close(file)
            native.client.start("one")
            assert "the client went away" in attachment.wait_closed(20)
        assert native.client.wait("one", timeout=20).exit_code == 0
        assert native.texts("one")[-1] == "100000"
    finally:
        umount(str(small), MNT_DETACH)


def test_an_orphan_that_keeps_the_output_open_delays_nobody(native: Pod) -> None:
    native.run("one", "sleep 1000 & echo out")
    assert native.client.wait("one", timeout=5).exit_code == 0
    assert native.texts("one") == ["out"]


def test_the_kernel_kills_for_want_of_memory(pod: Pod) -> None:
    events = pod.client.events()
    limits = {"memory": {"limit": 32 << 20, "swap": 32 << 20}, "devices": [{"allow": True, "access": "rwm"}]}
    pod.run("one", "x=a; while true; do x=$x$x; done", resources=limits)
    ended = pod.client.wait("one", timeout=60)
    assert ended.oom_killed
    assert ended.exit_code == 137
    seen = set()
    while "exit" not in seen:
        event = events.next(10)
        assert event
        seen.add(event["kind"])
    events.close()


def test_stop_asks_first_and_kills_then(pod: Pod) -> None:
    pod.run("polite", "trap 'exit 9' TERM; while true; do sleep 0.05; done")
    pod.run("deaf", "trap '' TERM; echo; while true; do sleep 1; done")
    while not pod.texts("deaf"):
        select.select([], [], [], 0.01)
    assert pod.client.stop("polite", signal.SIGTERM, timeout=20).exit_code == 9
    assert pod.client.stop("deaf", signal.SIGTERM, timeout=0.2).signal == signal.SIGKILL


def test_pause_and_resume(pod: Pod) -> None:
    pod.run("one", "while true; do sleep 0.05; done")
    pod.client.pause("one")
    assert pod.client.info()["containers"][0]["state"] == "paused"
    pod.client.resume("one")
    assert pod.client.info()["containers"][0]["state"] == "running"
    assert len(pod.client.pids("one")) >= 1
    assert pod.client.stats("one")["pids"]["current"] >= 1
    pod.client.update("one", {"pids": {"limit": 50}})


def test_what_cannot_be_done_is_refused(pod: Pod) -> None:
    client = pod.client
    with pytest.raises(errors.NotFound):
        client.start("none")
    with pytest.raises(errors.InvalidInput):
        client.create("../x", "/")
    pod.create("one", "sleep 1000")
    with pytest.raises(errors.AlreadyExists):
        client.create("one", str(pod.path / "one"))
    with pytest.raises(errors.WrongState):
        client.exec("one", process("/bin/true"))
    with pytest.raises(errors.WrongState):
        client.delete("one")
    with pytest.raises(errors.WrongState):
        client.resize("one", 1, 1)
    client.start("one")
    with pytest.raises(errors.WrongState):
        client.start("one")
    with pytest.raises(errors.SampanError):
        client.exec("one", process("/bin/nothing-of-this-name"))
    with pytest.raises(errors.WrongState, match="running"):
        client.shutdown()
    client.delete("one", force=True)
    with pytest.raises(errors.SampanError):
        client.create("bad", str(pod.path / "absent"))
    assert client.info()["containers"] == []


def test_a_program_that_is_not_there(pod: Pod) -> None:
    bundle = pod.bundle("one", "", args=["/bin/nothing-of-this-name"])

    def life() -> None:  # where it is found out is the runtime's choice
        pod.client.create("one", bundle)
        pod.client.start("one")

    with pytest.raises(errors.SampanError, match="nothing-of-this-name"):
        life()


def test_a_monitor_outlives_what_made_it(tmp_path: Path) -> None:
    zygote = Zygote.start()
    pod = Pod(tmp_path, zygote, "native")
    pod.run("one", "sleep 0.3; echo still here")
    zygote.close()
    assert pod.client.wait("one", timeout=10).exit_code == 0
    assert pod.texts("one") == ["still here"]
    pod.close()
    shutil.rmtree(pod.directory)

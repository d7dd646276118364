"""The `sampan` command as a person uses it, with no daemon."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_world import World, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("command")) as made:
        yield made


def alive(here: World) -> list[str]:
    return here.sampan("ps", "-aq").stdout.split()


def all_go(here: World) -> None:
    """Wait until no container is left."""
    deadline = time.monotonic() + 20
    while alive(here) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(here) == []


@contextmanager
def terminal(here: World, code: int, *words: str) -> Iterator[int]:
    """Our side of a terminal at which `sampan WORDS` runs; at the end it must have ended, with this exit code."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(here.command()[0], here.command(*words))
    yield master
    expect(master, b"")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    os.close(master)


def test_run_over_the_machines_own_root(here: World) -> None:
    done = here.sampan(
        "run", "--rm", "--network", "none", "--rootfs", "/", "--", "sh", "-c", "echo $0 hi; exit 4", "sh"
    )
    assert (done.stdout, done.returncode) == ("sh hi\n", 4), done.stderr
    assert alive(here) == []
    assert here.mounts() == []


def test_run_from_an_image_with_most_flags(here: World, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("volume")
    tmp_path.chmod(0o755)
    script = "cat /v/in; pwd; id -u; hostname; echo $A $B; touch /v/x 2>/dev/null || echo readonly; exit 9"
    done = here.sampan(
        "run", "--rm", "--name", "full", "-e", "A=1", "-e", "B=two words", "-v", f"{tmp_path}:/v:ro", "-w", "/tmp",
        "--user", "www-data", "--hostname", "box", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "20",
        "--network", "none", here.image, "sh", "-c", script,
    )  # fmt: skip
    assert done.stdout == "volume/tmp\n33\nbox\n1 two words\nreadonly\n", done.stderr
    assert done.returncode == 9


@pytest.mark.parametrize(
    ("content", "mode", "code"), [("garbage", 0o755, 126), ("#!/no/such\n", 0o755, 127), ("", 0o644, 126)]
)
def test_a_program_that_can_not_run(here: World, tmp_path: Path, content: str, mode: int, code: int) -> None:
    tmp_path.chmod(0o755)
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(mode)
    done = here.sampan("run", "--network", "none", "-v", f"{tmp_path}:/v", here.image, "/v/program")
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "/v/program" in line
    assert alive(here) == []


@pytest.mark.parametrize(("mode", "links"), [("none", {"lo"}), ("bridge", {"lo", "eth0"})])
def test_networks(here: World, mode: str, links: set[str]) -> None:
    done = here.sampan("run", "--rm", "--network", mode, here.image, "ls", "/sys/class/net")
    assert links <= set(done.stdout.split()), done.stderr
    assert ("eth0" in done.stdout) is ("eth0" in links)


def test_host_network_is_the_machines(here: World) -> None:
    done = here.sampan("run", "--rm", "--network", "host", here.image, "readlink", "/proc/self/ns/net")
    assert done.stdout.strip() == os.readlink("/proc/self/ns/net")


def test_detached_then_logs_exec_inspect_stop_rm(here: World) -> None:
    script = "echo begun; trap 'echo ended; exit 0' TERM; while :; do sleep 0.05; done"
    made = here.sampan("run", "-d", "--name", "job", "--network", "none", here.image, "sh", "-c", script)
    assert made.returncode == 0, made.stderr
    cid = made.stdout.strip()
    assert len(cid) == 64
    row = here.sampan("ps").stdout.splitlines()[1]
    assert cid[:12] in row
    assert row.endswith("job")
    assert here.sampan("exec", "-e", "X=1", "job", "sh", "-c", "echo $X; exit 3").returncode == 3
    assert here.sampan("exec", "-i", cid[:8], "cat", stdin="through").stdout == "through"
    assert here.sampan("run", "--name", "job", here.image).returncode == 125
    assert json.loads(here.sampan("inspect", "job").stdout)[0]["state"] == "running"
    assert json.loads(here.sampan("inspect", "--spec", "job").stdout)["process"]["args"][0] == "sh"
    assert here.sampan("rm", "job").returncode == 1
    assert here.sampan("stop", "-t", "20", "job").returncode == 0
    assert here.sampan("logs", "job").stdout == "begun\nended\n"
    assert here.sampan("logs", "-n", "1", "job").stdout == "ended\n"
    assert here.sampan("wait", "job").stdout == "0\n"
    assert here.sampan("rm", "job").returncode == 0
    assert alive(here) == []


def test_detached_with_rm_goes_by_itself(here: World) -> None:
    assert here.sampan("run", "-d", "--rm", "--network", "none", here.image, "true").returncode == 0
    all_go(here)


def test_a_terminal_has_our_size_passes_signals_and_gives_the_exit_code(here: World) -> None:
    with terminal(here, 6, "run", "-it", "--rm", "--network", "none", here.image, "sh") as master:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        expect(master, b"# ")
        os.write(master, b"stty size; echo do''ne\n")
        assert b"33 101" in expect(master, b"done")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
        expect(master, b"# ")
        os.write(master, b"sleep 0.2; stty size; cat\n")
        expect(master, b"20 50\r\n")
        os.write(master, b"typed\n")
        expect(master, b"typed\r\ntyped\r\n")  # so that cat is there to be interrupted
        os.write(master, b"\x03")
        expect(master, b"# ")
        os.write(master, b"exit 6\n")


def test_detached_from_a_terminal_it_runs_on_and_goes_when_it_ends(here: World) -> None:
    with terminal(here, 0, "run", "-it", "--rm", "--name", "left", "--network", "none", here.image, "sh") as master:
        expect(master, b"# ")
        os.write(master, b"\x10\x11")
    assert len(alive(here)) == 1
    assert here.sampan("exec", "left", "true").returncode == 0
    assert here.sampan("kill", "left").returncode == 0
    all_go(here)


def test_a_reader_gets_all_however_slow_it_is(here: World) -> None:
    """The monitor lets go of a client after ten seconds, but not of this one."""
    lines = 200_000
    words = here.command("run", "--rm", "--network", "none", here.image, "seq", str(lines))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        time.sleep(11)
        rest = process.stdout.read()
        assert process.wait(20) == 0
    assert rest == b"".join(b"%d\n" % number for number in range(2, lines + 1))


def test_an_exec_on_a_terminal(here: World) -> None:
    assert here.sampan("run", "-d", "--name", "job", "--network", "none", here.image, "sleep", "1000").returncode == 0
    for flags in (["-it"], ["-d", "-t"]):
        refused = here.sampan("exec", *flags, "job", "cat", stdin="nobody reads this")
        assert refused.returncode == 2
        assert "leave -t" in refused.stderr
    with terminal(here, 5, "exec", "-it", "job", "sh") as master:
        expect(master, b"# ")
        os.write(master, b"\x10\x11")  # nobody could come back: these are keys like others
        os.write(master, b"\x03")
        os.write(master, b"echo do''ne\n")
        expect(master, b"done")
        os.write(master, b"exit 5\n")
    script = "stty -echo; echo rea''dy; sleep 1; echo do''ne"  # and reads nothing
    with terminal(here, 0, "exec", "-it", "job", "sh", "-c", script) as master:
        expect(master, b"ready")
        os.write(master, b"\n" * 200_000)
        expect(master, b"done")
    assert here.sampan("rm", "-f", "job").returncode == 0


def test_an_empty_entrypoint_is_none(here: World) -> None:
    done = here.sampan("run", "--rm", "--network", "none", "--entrypoint", "", here.image, "echo", "alone")
    assert (done.stdout, done.returncode) == ("alone\n", 0)


def expect(fd: int, text: bytes) -> bytes:
    """Read until ``text`` comes; an empty text waits for the end."""
    seen = b""
    deadline = time.monotonic() + 20
    while not text or text not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, seen
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        if not data:
            assert not text, seen
            break
        seen += data
    return seen


def test_a_signal_to_us_reaches_the_container(here: World) -> None:
    script = "trap 'exit 12' TERM; echo ready; while :; do sleep 0.05; done"
    words = here.command("run", "--rm", "--network", "none", here.image, "sh", "-c", script)
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 12


def test_images_are_listed_tagged_and_removed(here: World) -> None:
    name = here.image.rpartition("/")[0] + "/other:2"
    assert here.sampan("tag", here.image, name).returncode == 0
    listed = json.loads(here.sampan("images", "--format", "json").stdout)
    assert sorted(listed[0]["repo_tags"]) == sorted([here.image, name])
    assert here.sampan("rmi", name).returncode == 0
    assert here.sampan("inspect", name).returncode == 1
    assert here.sampan("inspect", here.image).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["run", "nosuch.invalid/x"], 125, "nosuch.invalid"),
        (["run", "UPPER//case"], 125, "UPPER"),
        (["run", "--rootfs", "/nosuch"], 125, "/nosuch"),
        (["run", "--memory", "lots", "IMAGE"], 125, "--memory"),
        (["run", "-p", "x:80", "IMAGE"], 125, "--publish"),
        (["run", "-v", "/nosuch-source:/x", "IMAGE"], 125, "/nosuch-source"),
        (["run", "--cap-add", "NONSENSE", "IMAGE"], 125, "NONSENSE"),
        (["run", "--network", "nosuch", "IMAGE"], 125, "nosuch"),
        (["run", "--runtime", "nosuch", "IMAGE"], 125, "nosuch"),
        (["run", "--name", "../../../victim", "IMAGE"], 125, "--name"),
        (["run", "--name", "..", "IMAGE"], 125, "--name"),
        (["run", "--rm", "--name", "a/b", "IMAGE"], 125, "--name"),
        (["-n", "..", "run", "IMAGE"], 125, "namespace"),
        (["run", "--entrypoint", "", "IMAGE"], 125, "command"),
        (["run", "--network", "none", "IMAGE", "no-such-program"], 127, "no-such-program"),
        (["run", "--network", "none", "IMAGE", "/etc/passwd"], 126, "/etc/passwd"),
        (["exec", "nosuch", "true"], 1, "nosuch"),
        (["logs", "nosuch"], 1, "nosuch"),
        (["rmi", "nosuch"], 1, "nosuch"),
        (["pull", "127.0.0.1:1/x:1"], 1, "127.0.0.1:1"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(here: World, words: list[str], code: int, text: str) -> None:
    done = here.sampan(*(here.image if word == "IMAGE" else word for word in words))
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert text in line
    assert "Traceback" not in done.stderr
    assert alive(here) == []
    assert here.mounts() == []
    assert os.listdir(here.folder / "state/pods") == []

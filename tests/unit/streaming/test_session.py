"""A session on a socket pair and real pipes, with programs of this machine at their other ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import SampanError, TimedOut
from sampan.streaming import remote
from sampan.streaming.channels import RESIZE, Said, WebSocketChannels
from sampan.streaming.link import PlainLink
from sampan.streaming.remote import Ends, Session, await_channels, failure, status


class Plain:
    """Channels without a transport: input is what comes, output what is sent."""

    ready = True

    def __init__(self, link: PlainLink) -> None:
        self.link = link

    def receive(self) -> list[Said] | None:
        messages = self.link.read()
        return None if messages is None else [Said(0, data, finished=False) for data in messages]

    def send(self, channel: int, data: bytes) -> None:
        self.link.write(data if channel == 1 else data.upper())

    def finish(self, outcome: bytes) -> None:
        self.link.write(outcome)


class Program:
    """A program of this machine as a session's process."""

    def __init__(self, *command: str, tty: bool = False) -> None:
        self.sizes: list[tuple[int, int]] = []
        if tty:
            self.console, slave = pty.openpty()
            self.process = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True
            )
            os.close(slave)
            self.ends = Ends(self.console, self.console, -1)
        else:
            stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
            self.process = subprocess.Popen(command, stdin=stdin[0], stdout=stdout[1], stderr=stderr[1])
            for fd in (stdin[0], stdout[1], stderr[1]):
                os.close(fd)
            self.ends = Ends(stdin[1], stdout[0], stderr[0])
        self.ended = os.pidfd_open(self.process.pid)

    def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))
        fcntl.ioctl(self.console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def outcome(self) -> int:
        return self.process.wait()

    def abandon(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ended)


class Running:
    """A session in its thread."""

    def __init__(self, program: Program, idle: float = 30) -> None:
        ours, self.client = socket.socketpair()
        self.client.settimeout(20)
        self.link = PlainLink(ours)
        self.session = Session(self.link, Plain(self.link), program, program.ends, idle)
        self.result: list[object] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result.append(self.session.run([]))
        except SampanError as error:
            self.result.append(error)
        self.link.close()

    def read_all(self) -> bytes:
        got = bytearray()
        while data := self.client.recv(1 << 16):
            got += data
        self.client.close()
        self.thread.join(20)
        return bytes(got)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    before = set(os.listdir("/proc/self/fd"))
    started: list[Program] = []
    yield started
    for program in started:
        program.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_both_streams_are_copied_to_their_end(programs: list[Program]) -> None:
    programs.append(Program("sh", "-c", "head -c 3000000 /dev/zero; echo err >&2; exit 3"))
    running = Running(programs[0])
    got = running.read_all()
    assert len(got) == 3_000_004
    assert b"ERR\n" in got
    assert running.result == [True]
    assert programs[0].outcome() == 3


def test_a_process_that_closed_its_output_is_waited_for(programs: list[Program]) -> None:
    programs.append(Program("sh", "-c", "exec >&- 2>&-; read line"))
    running = Running(programs[0])
    running.client.sendall(b"go\n")
    assert running.read_all() == b""
    assert running.result == [True]


def test_late_output_of_a_child_is_waited_for_briefly(programs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "DRAIN_TIME", 0.2)
    programs.append(Program("sh", "-c", "(echo late; exec sleep 4) & exit 0"))
    began = time.monotonic()
    assert Running(programs[0]).read_all() == b"late\n"
    assert time.monotonic() - began < 3.5


def test_a_child_that_prints_without_end_does_not_hold_the_session(
    programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DRAIN_TIME", 0.1)
    programs.append(Program("sh", "-c", "yes & exit 0"))
    running = Running(programs[0])
    assert set(running.read_all()) == set(b"y\n")
    assert running.result == [True]


def test_a_client_that_does_not_read_stops_the_process_and_not_the_memory(programs: list[Program]) -> None:
    programs.append(Program("yes"))
    running = Running(programs[0])
    place = f"/proc/{programs[0].process.pid}/wchan"
    deadline = time.monotonic() + 10
    while "pipe" not in open(place).read() or running.link.backlog() <= 1 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running.link.backlog() <= (1 << 20) + (1 << 17)
    running.client.close()
    running.thread.join(10)
    assert running.result == [False]


def test_a_terminal_ends_with_its_last_holder(programs: list[Program]) -> None:
    programs.append(Program("sh", "-c", "read x; echo got $x", tty=True))
    running = Running(programs[0])
    running.client.sendall(b"word\n")
    assert running.read_all() == b"word\r\ngot word\r\n"
    assert running.result == [True]


def test_silence_ends_it(programs: list[Program]) -> None:
    programs.append(Program("sleep", "60"))
    running = Running(programs[0], idle=0.05)
    running.read_all()
    assert isinstance(running.result[0], TimedOut)


@given(
    st.lists(st.tuples(st.integers(-5, 70_000), st.integers(-5, 70_000)), max_size=6),
    st.integers(1, 40),
    st.sampled_from([b"", b"\n", b" ", b"\xff\xfe", b"[1]", b"null"]),
)
def test_sizes_are_understood_wherever_they_are_cut(sizes: list[tuple[int, int]], step: int, between: bytes) -> None:
    text = between.join(json.dumps({"Width": width, "Height": height}).encode() for width, height in sizes)
    assert heard_sizes([text[at : at + step] for at in range(0, len(text), step)]) == [
        (width, height) for width, height in sizes if 0 < width < 65536 and 0 < height < 65536
    ]


@pytest.mark.parametrize("rubbish", [b'{"a":' * 2000, b"[" * 4000, b'{"Width":' + b"9" * 4080, b"{" * 5000, b"\0" * 99])
def test_rubbish_for_a_size_is_survived(rubbish: bytes) -> None:
    assert heard_sizes([rubbish]) == []


def heard_sizes(parts: list[bytes]) -> list[tuple[int, int]]:
    class Recorder(Program):
        def __init__(self) -> None:
            self.sizes = []
            self.ended = -1

        def resize(self, width: int, height: int) -> None:
            self.sizes.append((width, height))

    recorder = Recorder()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = PlainLink(ours)
        Session(link, Plain(link), recorder, Ends(-1, -1, -1)).run([])
        session = Session(link, Plain(link), recorder, Ends(-1, -1, -1))
        session._hear([Said(RESIZE, part, finished=False) for part in parts])
    return recorder.sizes


def test_outcomes_are_said_as_each_version_has_them() -> None:
    assert status(0, version="v4.channel.k8s.io") == b'{"metadata":{},"status":"Success"}'
    assert json.loads(status(137, version="v5.channel.k8s.io"))["details"]["causes"][0]["message"] == "137"
    assert status(0, version="channel.k8s.io") == b""
    assert b"137" in status(137, version="v2.channel.k8s.io")
    assert json.loads(failure(SampanError('a "b"'), version="v4.channel.k8s.io"))["message"] == 'a "b"'
    assert failure(SampanError("x"), version="v1") == b"x"


def test_a_client_that_opens_too_little_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CREATION_TIME", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = PlainLink(ours)
        channels = Plain(link)
        channels.ready = False
        with pytest.raises(TimedOut):
            await_channels(link, channels)
        theirs.close()
        assert await_channels(link, channels) is None


def test_the_server_speaks_first_on_a_websocket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        class Recorder(PlainLink):
            def write(self, data: bytes) -> None:
                said.append(data)

        said: list[bytes] = []
        channels = WebSocketChannels(Recorder(ours), {3, 2})
        channels.send(1, b"not wanted")
        channels.send(2, b"x")
        channels.finish(b"end")
        assert said == [b"\2", b"\2x", b"\3end"]

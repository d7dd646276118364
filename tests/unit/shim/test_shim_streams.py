"""Sinks, sources and the loop, on real pipes and sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.shim import streams
from sampan.shim.logfile import LogFile
from sampan.shim.loop import READABLE, Loop
from sampan.shim.streams import Sink, Source


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(lambda pid, status: None, lambda: None)
    yield made
    made.close()


def test_a_sink_keeps_what_is_not_read_yet_and_says_when_there_is_room(loop: Loop) -> None:
    reading, writing = os.pipe()
    reasons: list[str] = []
    sink = Sink(loop, writing, reasons.append)
    sent = b"x" * (streams.BACKLOG + 200_000)
    sink.send(sent)
    assert sink.full
    room: list[bool] = []
    sink.when_room(lambda: room.append(True))
    got = b""
    while len(got) < len(sent):
        got += os.read(reading, 65536)
        if len(got) < len(sent):
            loop.run_once()
    assert got == sent
    assert room == [True]
    sink.finish()
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert reasons == []


def test_a_sink_that_nobody_reads_is_given_up(loop: Loop) -> None:
    reading, writing = os.pipe()
    reasons: list[str] = []
    sink = Sink(loop, writing, reasons.append, patience=0.02)
    sink.send(b"x" * (streams.BACKLOG + 200_000))
    while not reasons:
        loop.run_once()
    assert "too long" in reasons[0]
    assert sink.fd < 0
    sink.send(b"more")
    sink.close()
    os.close(reading)


def test_a_sink_whose_reader_went_says_so_once(loop: Loop) -> None:
    reading, writing = os.pipe()
    reasons: list[str] = []
    sink = Sink(loop, writing, reasons.append)
    os.close(reading)
    sink.send(b"x")
    sink.send(b"x")
    assert reasons == ["Broken pipe"]


def test_others_descriptors_stay_blocking(loop: Loop) -> None:
    reading, writing = os.pipe()
    sink = Sink(loop, os.dup(writing), lambda _: None)
    ours, theirs = socket.socketpair()
    other = Sink(loop, os.dup(theirs.fileno()), lambda _: None)
    assert os.get_blocking(writing)
    assert os.get_blocking(theirs.fileno())
    other.send(b"hi")
    assert ours.recv(2) == b"hi"
    for one in (sink, other):
        one.close()
    for fd in (reading, writing):
        os.close(fd)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_a_source_waits_for_its_sink(loop: Loop, tmp_path: Path, kind: str) -> None:
    text = b"".join(b"%d\n" % n for n in range(200_000))
    (tmp_path / "file").write_bytes(text)
    feeder = -1
    if kind == "file":
        fd = os.open(tmp_path / "file", os.O_RDONLY)
    elif kind == "pipe":
        fd, feeder = os.pipe()
    else:
        ours, theirs = socket.socketpair()
        fd, feeder = theirs.detach(), ours.detach()
    reading, writing = os.pipe()
    sink = Sink(loop, writing, lambda _: None, patience=0)
    over: list[bool] = []
    Source(loop, fd, sink, lambda: over.append(True))
    if feeder >= 0:
        os.set_blocking(feeder, False)
    os.set_blocking(reading, False)
    left, got = text if feeder >= 0 else b"", b""
    while len(got) < len(text) or not over:
        if left:
            try:
                left = left[os.write(feeder, left) :]
            except BlockingIOError:
                pass
            if not left:
                os.close(feeder)
        loop.run_once()
        try:
            got += os.read(reading, 1 << 20)
        except BlockingIOError:
            pass
    assert got == text
    sink.close()
    os.close(reading)


def test_timers_are_called_in_time_and_can_be_cancelled(loop: Loop) -> None:
    called: list[int] = []
    loop.later(0.01, lambda: called.append(1))
    loop.later(0.0, lambda: called.append(0))
    loop.later(0.005, lambda: called.append(2)).cancel()
    while len(called) < 2:
        loop.run_once()
    assert called == [0, 1]


def test_quiet_is_told_once_after_something_happened() -> None:
    reading, writing = os.pipe()
    told: list[str] = []
    loop = Loop(lambda pid, status: None, lambda: told.append("quiet"))
    loop.watch(reading, READABLE, lambda ready: told.append(os.read(reading, 1).decode()))
    for name in ("a", "b"):
        os.write(writing, name.encode())
        while told[-1:] != ["quiet"]:
            loop.run_once()
        told.append("next")
    assert told == ["a", "quiet", "next", "b", "quiet", "next"]
    assert loop._timeout() is None  # and not again, until something happens
    loop.close()
    os.close(reading)
    os.close(writing)


def test_ended_children_are_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    loop = Loop(lambda pid, status: told.append((pid, os.waitstatus_to_exitcode(status))), lambda: None)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    while not told:
        loop.run_once()
    assert told == [(pid, 3)]
    loop.close()


def test_a_log_whose_folder_has_gone_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "log"
    log = LogFile(str(path))
    path.unlink()
    path.parent.rmdir()
    log.reopen()
    log.write([b"line\n"])
    log.close()
    assert path.read_bytes() == b"line\n"


def test_a_log_goes_on_where_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "logs/one.log"
    log = LogFile(str(path))
    log.write([b"a", b"\n"])
    path.rename(tmp_path / "old")
    log.write([b"b\n"])
    log.reopen()
    log.write([b"%d\n" % n for n in range(3000)])
    log.close()
    log.write([b"dropped\n"])
    assert (tmp_path / "old").read_bytes() == b"a\nb\n"
    assert path.read_bytes() == b"".join(b"%d\n" % n for n in range(3000))
    LogFile("").write([b"x"])


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/shm/sampan-elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LogFile(str(tmp_path / "log"))


def test_a_sink_that_never_gives_up_its_reader_does_not_at_its_end(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE", 0.02)
    reading, writing = os.pipe()
    sink = Sink(loop, writing, lambda _: None, patience=0)
    sent = b"x" * 300_000
    sink.send(sent)
    sink.finish()
    loop.later(0.1, lambda: None)
    loop.run_once()
    got = b""
    while piece := os.read(reading, 65536):
        got += piece
        if sink.fd >= 0:
            loop.run_once()
    assert got == sent
    os.close(reading)


def test_a_slow_reader_gets_all_at_the_end_and_one_that_stops_is_given_up(loop: Loop) -> None:
    reading, writing = os.pipe()
    sink = Sink(loop, writing, lambda _: None, patience=0.2)
    sink.send(b"x" * 400_000)
    sink.finish()
    got = 0
    for _ in range(4):  # each less than the patience, together more
        loop.later(0.1, lambda: None)
        loop.run_once()
        got += len(os.read(reading, 65536))
        loop.run_once()
        assert sink.fd >= 0
    while sink.fd >= 0:
        loop.run_once()
    assert got < 400_000
    os.close(reading)


@pytest.mark.parametrize("size", [0, 100_000, streams.BACKLOG + 200_000], ids=["nothing", "some", "more than fits"])
def test_what_a_writer_sent_before_it_hung_up_is_passed_on_and_then_the_end(loop: Loop, size: int) -> None:
    fd, feeder = os.pipe()
    reading, writing = os.pipe()
    sink = Sink(loop, writing, lambda _: None, patience=0)
    over: list[bool] = []
    source = Source(loop, fd, sink, lambda: over.append(True))
    os.set_blocking(feeder, False)
    sent = 0
    while sent < size:
        try:
            sent += os.write(feeder, b"x" * (size - sent))
        except BlockingIOError:
            loop.run_once()
            if sink.full:
                break
    source.hang_up()
    source.hang_up()
    assert over == [True]
    assert source.fd < 0
    sink.finish()
    got = 0
    while piece := os.read(reading, 65536):
        got += len(piece)
        if sink.fd >= 0:
            loop.run_once()
    assert got == sent if sent == size else got >= streams.BACKLOG
    for one in (reading, feeder):
        os.close(one)


def test_a_time_that_is_far_off_is_waited_for(loop: Loop) -> None:
    called: list[str] = []
    far = loop.later(1e9, lambda: called.append("far"))
    loop.later(0.01, lambda: called.append("near"))
    while not called:
        loop.run_once()
    assert called == ["near"]
    reading, writing = os.pipe()
    loop.watch(reading, READABLE, lambda _: called.append("ready"))
    os.write(writing, b"x")
    loop.run_once()  # with nothing but the far one to come
    assert called == ["near", "ready"]
    far.cancel()
    for fd in (reading, writing):
        os.close(fd)

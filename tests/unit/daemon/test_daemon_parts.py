"""Lock, service manager, sockets and log lines."""

import json
import logging
import os
import pathlib
import socket

import pytest

from sampan.daemon import sockets
from sampan.daemon.lock import Lock
from sampan.daemon.logs import JsonFormatter, TextFormatter
from sampan.daemon.notify import Notifier
from sampan.errors import InvalidInput, StageFailed, WrongState


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path: pathlib.Path) -> None:
    directory = str(tmp_path / "root")
    first = Lock(directory, 0o700)
    with pytest.raises(WrongState, match=f"pid {os.getpid()}"):
        Lock(directory, 0o700)
    first.close()
    first.close()
    Lock(directory, 0o700).close()


def test_a_lock_that_cannot_be_made_says_where(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageFailed, match="file/root"):
        Lock(str(tmp_path / "file" / "root"), 0o700)


def test_the_service_manager_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        notifier = Notifier.from_environment()
        assert "NOTIFY_SOCKET" not in os.environ
        assert notifier.interval == 15
        notifier.ready("serving")
        notifier.alive()
        notifier.stopping()
        assert manager.recv(1000).decode() == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving"
        assert manager.recv(1000) == b"WATCHDOG=1"
        assert manager.recv(1000) == b"STOPPING=1"


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    notifier = Notifier.from_environment()
    assert notifier.interval == 0
    notifier.ready("serving")
    Notifier("/nowhere/at/all").ready("serving")


def test_a_watchdog_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier.from_environment().interval == 0


def test_stale_sockets_are_removed_and_live_ones_are_not(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "s")
    sockets.remove_stale(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(StageFailed, match="EADDRINUSE"):
            sockets.remove_stale(path)
    sockets.remove_stale(path)
    assert not os.path.exists(path)


def test_a_file_in_place_of_the_socket_is_kept(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StageFailed, match="not a socket"):
        sockets.remove_stale(str(path))
    assert path.read_text() == "precious"


def test_groups() -> None:
    assert sockets.group_id("0") == 0
    assert sockets.group_id("root") == 0
    with pytest.raises(InvalidInput):
        sockets.group_id("no-such-group-here")


def _record() -> logging.LogRecord:
    return logging.LogRecord("sampan.cri", logging.INFO, "f", 1, 'image "%s"', ("a\nb",), None)


def test_a_log_line_is_one_line() -> None:
    line = TextFormatter().format(_record())
    assert line.endswith(r'level=info from=sampan.cri msg="image \"a\nb\""')
    assert "\n" not in line


def test_a_json_log_line_reads_back() -> None:
    document = json.loads(JsonFormatter().format(_record()))
    assert document["msg"] == 'image "a\nb"'
    assert document["level"] == "info"

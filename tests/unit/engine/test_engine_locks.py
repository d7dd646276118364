"""Locks on one object: held by one, and only ever let go of by its holder."""

import os
import signal
import threading
from pathlib import Path

import pytest

from sampan.engine.records import Locks


class Interrupted(Exception):
    pass


def _interrupt(*_: object) -> None:
    raise Interrupted


def _wait_for(locks: Locks, name: str) -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with locks.hold(name):
        raise AssertionError("two hold it")


def test_the_file_goes_with_the_holder(tmp_path: Path) -> None:
    locks = Locks(str(tmp_path))
    with locks.hold("one"):
        assert not locks.free("one")
        assert locks.free("another")
    with pytest.raises(ValueError, match="inside"), locks.hold("one"):
        raise ValueError("inside")
    assert locks.free("one")
    assert os.listdir(tmp_path) == []


def test_who_is_interrupted_while_it_waits_leaves_the_lock_to_its_holder(tmp_path: Path) -> None:
    locks = Locks(str(tmp_path))
    held, enough = threading.Event(), threading.Event()

    def holder() -> None:
        with locks.hold("one"):
            held.set()
            enough.wait(30)

    thread = threading.Thread(target=holder)
    thread.start()
    assert held.wait(30)
    before = signal.signal(signal.SIGUSR1, _interrupt)
    try:
        with pytest.raises(Interrupted):
            _wait_for(locks, "one")
        assert not locks.free("one")
    finally:
        signal.signal(signal.SIGUSR1, before)
        enough.set()
        thread.join()
    assert os.listdir(tmp_path) == []

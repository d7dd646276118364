"""The nursery: workers that are forked from one process, and end with it and with whoever made it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sampan.errors import Corrupt, Exhausted, SampanError, StageFailed, Unavailable
from sampan.storage.worker import Nursery

_TELL, _STAY = "worker_functions:tell", "worker_functions:stay"


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    gc.collect()  # of other tests
    before = os.listdir("/proc/self/fd")
    with Nursery("worker_functions") as nursery:
        yield nursery
    assert os.listdir("/proc/self/fd") == before


def test_a_function_gets_what_was_passed_and_its_result_comes_back(nursery: Nursery) -> None:
    reader, writer = os.pipe()
    worker = nursery.launch(_TELL, {"a": 1, "b": ["\udcff"]}, [writer])
    os.close(writer)
    told = worker.result()
    worker.close()
    assert isinstance(told, dict)
    assert told["argument"] == {"a": 1, "b": ["\udcff"]}
    assert (os.read(reader, 10), os.read(reader, 10)) == (b"here", b"")
    os.close(reader)


def test_workers_are_forked_from_one_process_and_leave_nothing_in_it(nursery: Nursery) -> None:
    facts, held = [], set()
    for _ in range(30):
        worker = nursery.launch(_TELL, {}, [])
        told = worker.result()
        worker.close()
        assert isinstance(told, dict)
        facts.append(told)
        held.add(len(os.listdir(f"/proc/{told['parent']}/fd")))
    assert len({one["pid"] for one in facts}) == 30
    assert len({one["parent"] for one in facts}) == 1
    assert len({one["open"] for one in facts}) == 1  # descriptors of the workers before are not handed down
    assert max(held) - min(held) <= 2  # at most the one just passed on is still to be closed


@pytest.mark.parametrize(
    ("words", "times"),
    [("what?", 1), ('["done"]', 1), ('["failed", "os", 1, ""]', 1), ("[" * 1000, 90), (" " * 32768, 33)],
)
def test_what_a_worker_says_is_not_relied_on(nursery: Nursery, words: str, times: int) -> None:
    worker = nursery.launch("worker_functions:babble", {"words": words, "times": times}, [])
    try:
        with pytest.raises(Corrupt, match="its outcome makes no sense"):
            worker.result()
    finally:
        worker.close()


def test_a_failure_of_no_known_kind_is_one_all_the_same(nursery: Nursery) -> None:
    worker = nursery.launch("worker_functions:babble", {"words": '["failed", "annotations", "so", ""]', "times": 1}, [])
    try:
        with pytest.raises(SampanError, match="so"):
            worker.result()
    finally:
        worker.close()


def test_threads_share_one(nursery: Nursery) -> None:
    def one(number: int) -> object:
        worker = nursery.launch(_TELL, {"number": number}, [])
        try:
            told = worker.result()
        finally:
            worker.close()
        assert isinstance(told, dict)
        return told["argument"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [{"number": number} for number in range(40)]


def test_errors_come_back_as_they_were(nursery: Nursery) -> None:
    worker = nursery.launch("worker_functions:refuse", {}, [])
    with pytest.raises(Exhausted, match="there is no more") as caught:
        worker.result()
    assert caught.value.hint == "ask for less"
    worker.close()
    for function, said in (("crash", "ZeroDivisionError: oh"), ("nothing", "AttributeError")):
        worker = nursery.launch(f"worker_functions:{function}", {}, [])
        with pytest.raises(SampanError, match=f"worker: {said}"):
            worker.result()
        worker.close()


def test_a_worker_that_is_killed_says_so_and_one_that_is_closed_has_ended(nursery: Nursery) -> None:
    for end in ("kill", "close"):
        reader, writer = os.pipe()
        worker = nursery.launch(_STAY, {}, [writer])
        os.close(writer)
        assert os.read(reader, 10) == b"here"
        if end == "kill":
            worker.kill()
            with pytest.raises(Unavailable, match="killed before"):
                worker.result()
        worker.close()
        worker.close()
        assert os.read(reader, 10) == b""  # nobody has the other end any more
        os.close(reader)


def test_without_its_nursery_a_worker_ends_and_no_other_starts(nursery: Nursery) -> None:
    reader, writer = os.pipe()
    worker = nursery.launch(_STAY, {}, [writer])
    first = nursery.launch(_TELL, {}, [])
    told = first.result()
    first.close()
    assert isinstance(told, dict)
    os.close(writer)
    assert os.read(reader, 10) == b"here"
    os.kill(int(str(told["parent"])), signal.SIGKILL)
    assert os.read(reader, 10) == b""
    os.close(reader)
    with pytest.raises(Unavailable):
        worker.result()
    worker.close()
    with pytest.raises((StageFailed, Unavailable)):
        nursery.launch(_TELL, {}, []).result()


def test_all_end_with_whoever_made_them() -> None:
    """A program that is killed can end nobody; its workers must not go on writing."""
    reader, writer = os.pipe()
    code = (
        "import os, sys, time\n"
        "from sampan.storage.worker import Nursery\n"
        "nursery = Nursery('worker_functions')\n"
        f"worker = nursery.launch({_STAY!r}, {{}}, [{writer}])\n"
        f"os.close({writer})\n"
        "time.sleep(3600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen([sys.executable, "-c", code], pass_fds=[writer], env=environment)
    os.close(writer)
    assert os.read(reader, 10) == b"here"
    program.kill()
    program.wait()
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_an_interrupt_from_the_terminal_is_left_to_the_program(nursery: Nursery) -> None:
    worker = nursery.launch(_TELL, {}, [])
    told = worker.result()
    worker.close()
    assert isinstance(told, dict)
    os.kill(int(str(told["parent"])), signal.SIGINT)
    worker = nursery.launch(_TELL, {}, [])
    assert isinstance(worker.result(), dict)
    worker.close()

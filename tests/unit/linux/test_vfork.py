"""A child in its maker's memory: what it does stays its own, what it says arrives, and its end is survived or not."""

import errno
import os
import signal
import threading
from collections.abc import Callable

import pytest

from sampan.linux import vfork

pytestmark = pytest.mark.skipif(not vfork.available(), reason="needs x86-64 and CPython before 3.14")


def _shell(script: str, *environment: str) -> vfork.Image:
    return vfork.Image(os.open("/bin/sh", os.O_RDONLY | os.O_CLOEXEC), ["sh", "-c", script], list(environment))


def _status(child: Callable[[], vfork.Image | None]) -> int:
    pid, number = vfork.spawn(0, child)
    assert number == 0
    return os.waitpid(pid, 0)[1]


def _children() -> list[str]:
    """Children of this thread, ended ones too: other tests of this process may have some left."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as file:
        return file.read().split()


def test_it_executes_what_the_function_returned() -> None:
    reading, writing = os.pipe()

    def child() -> vfork.Image:
        os.dup2(writing, 1)
        os.chdir("/usr")
        return _shell('echo "$PWD $A"; exit 3', "A=b")

    here = os.getcwd()
    assert os.waitstatus_to_exitcode(_status(child)) == 3
    os.close(writing)
    assert os.read(reading, 100) == b"/usr b\n"
    os.close(reading)
    assert os.getcwd() == here


def test_what_it_learns_is_its_makers_too() -> None:
    seen: list[int] = []
    pid, _ = vfork.spawn(0, lambda: seen.append(os.getpid()))
    assert os.waitpid(pid, 0) == (pid, 256)
    assert seen == [pid]


def test_an_exception_ends_the_child_alone() -> None:
    def child() -> vfork.Image:
        raise ValueError

    assert os.waitstatus_to_exitcode(_status(child)) == 1


def test_a_program_that_cannot_be_executed() -> None:
    pid, number = vfork.spawn(0, lambda: vfork.Image(-1, [], []))
    os.waitpid(pid, 0)
    assert number == errno.EBADF
    pid, number = vfork.spawn(0, lambda: _shell("x" * (1 << 21)))
    os.waitpid(pid, 0)
    assert number == errno.E2BIG


def test_signals_wait_until_it_has_executed() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:

        def child() -> vfork.Image:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getppid(), signal.SIGUSR1)
            return _shell("exit 0")

        assert _status(child) == 0
        assert handled == [signal.SIGUSR1]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_its_maker_ends_with_it() -> None:
    pid = os.fork()
    if pid == 0:
        vfork.spawn(0, lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == vfork.ABANDONED


def test_a_thousand_leave_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    program = os.open("/bin/sh", os.O_RDONLY | os.O_CLOEXEC)
    for _ in range(1000):
        pid, _ = vfork.spawn(0, lambda: vfork.Image(program, ["sh", "-c", ":"], []))
        os.waitpid(pid, 0)
    os.close(program)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_child_joins_by_its_files_and_leads_a_session() -> None:
    reading, writing = os.pipe()
    joined, files = os.pipe()

    def child() -> vfork.Image:
        os.dup2(writing, 1)
        return _shell("read -r line </proc/self/stat; echo $line")

    pid = vfork.spawn_inside([files, files], child)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert vfork.outcome() == 0
    os.close(writing)
    fields = os.read(reading, 1000).decode().split()
    assert [int(fields[number]) for number in (0, 3, 4, 5)] == [pid, os.getpid(), pid, pid]
    assert os.read(joined, 10) == b"00"
    for fd in (reading, joined, files):
        os.close(fd)


def test_a_second_child_that_cannot_join_says_so() -> None:
    pid = vfork.spawn_inside([os.open("/dev/full", os.O_WRONLY)], lambda: _shell("exit 0"))
    os.waitpid(pid, 0)
    assert vfork.outcome() == errno.ENOSPC


def test_a_second_child_that_is_held_up_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    full = os.pipe()
    os.set_blocking(full[1], False)
    try:
        while os.write(full[1], bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(full[1], True)

    def child() -> vfork.Image:
        os.dup2(writing, 1)
        return _shell("echo $0 $WORD", "WORD=late")

    pid = vfork.spawn_inside([full[1]], child)  # it can't write
    garbage = [bytes(size) for size in range(1, 5000)]
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    while len(os.read(full[0], 1 << 20)) == 1 << 20:
        pass
    assert os.waitpid(pid, 0) == (pid, 0)
    assert vfork.outcome() == 0
    assert os.read(reading, 100) == b"sh late\n"
    assert len(garbage) == 4999
    for fd in (reading, writing, *full):
        os.close(fd)


def test_no_second_child_of_one_that_has_nothing_to_execute() -> None:
    before = _children()
    assert vfork.spawn_inside([], lambda: None) == 0
    assert _children() == before

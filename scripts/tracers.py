"""A process that may trace what it sees of a container, for tests of what an attacker there gets to see."""

import os
from collections.abc import Callable
from typing import NoReturn

from sampan.linux import capabilities
from sampan.linux.namespaces import CLONE_NEWNS, CLONE_NEWPID, setns

RIGHT = "CAP_SYS_PTRACE"


def start(pid: int, watch: Callable[[Callable[[], None], int], object]) -> tuple[int, int]:
    """Fork a process into the mount and PID namespaces of ``pid``, with :data:`RIGHT` and what helps to use it.

    Args:
        pid: The container's init.
        watch: Called in the new process with a function to call as soon as it looks, and the pipe's writing end.

    Returns:
        Pid of a child that ends with the new process, and the reading end of the pipe.
    """
    reader, writer = os.pipe()
    ready, tell = os.pipe()
    outer = os.fork()
    if outer == 0:
        _enter(pid, lambda: watch(lambda: _tell(tell), writer), (writer, tell))
    os.close(writer)
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    return outer, reader


def _tell(fd: int) -> None:
    os.write(fd, b"!")
    os.close(fd)


def _enter(pid: int, watch: Callable[[], object], ends: tuple[int, ...]) -> NoReturn:
    try:
        setns(os.pidfd_open(pid), CLONE_NEWNS | CLONE_NEWPID)
        inner = os.fork()
        if inner == 0:
            allowed = capabilities.mask([RIGHT, "CAP_DAC_OVERRIDE", "CAP_KILL"])
            capabilities.set_sets(allowed, allowed, 0)
            watch()
        else:
            for fd in ends:
                os.close(fd)
            os.waitpid(inner, 0)
    finally:
        os._exit(0)

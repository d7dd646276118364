"""Starting a fresh interpreter from a sealed copy of its program.

A process that enters a container shows the container its program as ``/proc/PID/exe``. Were that the machine's
``python3``, a container's root could write to it (CVE-2019-5736, runc). So the zygote, and by fork each monitor, runs
from a memory file that nobody can change, as runc's own "cloned binary" does.

The name that the interpreter is started by stays the real one: Python finds its library next to it.
"""

from __future__ import annotations

import fcntl
import os
import sys

from sampan.errors import StageFailed
from sampan.linux.process import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Descriptor of the child that is its end of the socket to its maker.
SOCKET_FD = 3
#: Above all numbers that the child's file actions write to.
_HIGH_FD = 16

#: What a child may know of its maker's environment. The rest can name files, servers and secrets.
_KEPT = ("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH", "DBUS_SESSION_BUS_ADDRESS", "TZ")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(source: Mapping[str, str]) -> dict[str, str]:
    """The environment of a zygote.

    The allocator is told to keep one arena and to give memory back early: a monitor lives as long as its pod and
    does little. The thresholds are above the buffers of one read of a log: below them, each read would map and unmap
    its buffers, which tripled the time for a gigabyte of lines.
    """
    kept = {name: source[name] for name in _KEPT if name in source}
    kept.setdefault("PATH", _PATH)
    kept["MALLOC_ARENA_MAX"] = "1"
    kept["MALLOC_MMAP_THRESHOLD_"] = "262144"
    kept["MALLOC_TRIM_THRESHOLD_"] = "262144"
    kept["LC_ALL"] = "C.UTF-8"
    return kept


def real_executable() -> str:
    """The file that the running interpreter is started from, behind a virtual environment's links."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base)


def sealed_copy(path: str) -> int:
    """A memory file with the content of ``path``, sealed; its number is high, so that low ones can be assigned.

    Raises:
        StageFailed: It can't be read, or memory files are not to be had.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            made = os.memfd_create("sampan", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
            try:
                left = os.fstat(source).st_size
                while left > 0:
                    sent = os.sendfile(made, source, None, left)
                    if not sent:
                        break
                    left -= sent
                fcntl.fcntl(made, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
                return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
            finally:
                os.close(made)
        finally:
            os.close(source)
    except OSError as error:
        raise StageFailed("make a sealed copy of the interpreter", error, path=path) from None


def spawn(script: str, arguments: Sequence[str], socket_fd: int) -> int:
    """Start ``script`` in a new interpreter that has ``socket_fd`` as :data:`SOCKET_FD`; returns its pid.

    posix_spawn(3) takes no lock of ours along and runs nothing of ours in the child, so threads don't matter. The
    child's standard input and output are /dev/null, its standard error is ours.
    """
    program = real_executable()
    copy = sealed_copy(program)
    try:
        return os.posix_spawn(
            f"/proc/self/fd/{copy}",
            [program, "-I", "-S", script, *arguments],
            environment(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, socket_fd, SOCKET_FD),
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=range(1, 32),  # what Python ignores (SIGPIPE) must not be ignored in containers
        )
    except OSError as error:
        raise StageFailed("start the interpreter", error, path=program) from None
    finally:
        os.close(copy)

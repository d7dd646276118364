"""Running a function in a fresh process: for callers that have no zygote to fork one.

The daemon's zygote offers the same by fork (:class:`Worker` and :class:`Launch` describe both). A process of several
threads must not fork, so this spawns an interpreter without ``site``: some 20 ms.
"""

import marshal
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from sampan import errors
from sampan.errors import SampanError, StageFailed, Unavailable

_CODE = "import sys; sys.path[:] = sys.argv[4:]; from sampan.storage import workermain; workermain.run()"


class Worker(Protocol):
    """A function running in another process."""

    def result(self, timeout: float | None = None) -> object:
        """Wait for it and return what it returned, or raise what it raised."""

    def kill(self) -> None:
        """End it, if it has not ended."""

    def close(self) -> None:
        """Let go of it; it is killed if it still runs."""


#: Starts ``module:function`` with an argument and descriptors.
Launch = Callable[[str, dict[str, object], Sequence[int]], Worker]


class SpawnedWorker:
    """A worker in a spawned interpreter; see :class:`Worker`."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    def fileno(self) -> int:
        """Readable when there is a result."""
        return self._pipe

    def result(self, timeout: float | None = None) -> object:
        """See :class:`Worker`; ``timeout`` is not kept."""
        del timeout
        data = b""
        while piece := os.read(self._pipe, 65536):
            data += piece
        self._reap()
        if not data:
            raise Unavailable("worker: it was killed before it had a result")
        outcome = marshal.loads(data)
        if outcome[0] == "done":
            return outcome[1]
        raise _rebuilt(*outcome[1:])

    def kill(self) -> None:
        """See :class:`Worker`."""
        if self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """See :class:`Worker`."""
        if self._pipe >= 0:
            self.kill()
            self._reap()
            pipe, self._pipe = self._pipe, -1
            os.close(pipe)

    def _reap(self) -> None:
        pid, self.pid = self.pid, 0
        if pid > 0:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # the program ignores SIGCHLD, or reaps every child itself
                pass


def _rebuilt(name: str, message: str, hint: str) -> SampanError:
    """An error of another process, as this one's."""
    kind = getattr(errors, name, SampanError)
    rebuilt: SampanError = SampanError.__new__(kind)
    SampanError.__init__(rebuilt, message, hint=hint)
    return rebuilt


def spawn(function: str, argument: dict[str, object], fds: Sequence[int]) -> SpawnedWorker:
    """Run ``module:function(argument, fds)`` in a fresh interpreter.

    Args:
        function: Where it is.
        argument: Of what :mod:`marshal` takes.
        fds: Passed on; they stay the caller's as well.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        passed = [writer, *fds]
        # Above all that are passed, so that none is overwritten before it is copied.
        base = max(passed) + 1
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_DUP2, fd, base + number) for number, fd in enumerate(passed)
        ]
        actions += [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        ]
        arguments = [function, f"{base}:{len(fds)}", marshal.dumps(argument).hex()]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _CODE, *arguments, *filter(os.path.isabs, sys.path)],
            {"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            file_actions=actions,
        )
    except OSError as error:
        os.close(reader)
        raise StageFailed("start a worker", error) from error
    finally:
        os.close(writer)
    return SpawnedWorker(pid, reader)

"""Running functions in processes of their own: for callers that have no zygote to fork them.

The daemon's zygote offers the same (:class:`Worker` and :class:`Launch` describe both). A process of several threads
must not fork, so a :class:`Nursery` spawns one interpreter that has a single thread (workermain.py): it imports what
workers need and forks each of them, so that their modules are loaded once and are in memory once.
"""

import _socket
import marshal
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from sampan import errors
from sampan.errors import Corrupt, SampanError, StageFailed, Unavailable
from sampan.wire import jsontext

_CODE = "import sys; sys.path[:] = sys.argv[3:]; from sampan.storage import workermain; workermain.run()"
_INT = 4
#: Most bytes of a worker's outcome, which is a few numbers and digests.
_MOST = 1 << 20


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


class Nursery:
    """Starts workers, as :class:`Launch` has it; threads may share one. They end with it, and it with its maker.

    Args:
        modules: What to import before workers are asked for.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._lock = threading.Lock()
        self._pid = 0
        self._requests: _socket.socket | None = None

    def launch(self, function: str, argument: dict[str, object], fds: Sequence[int]) -> "ForkedWorker":
        """Run ``module:function(argument, fds)`` in a process forked from the nursery, which is spawned if need be.

        Args:
            function: Where it is.
            argument: Of what :mod:`marshal` takes; small.
            fds: Passed on; they stay the caller's as well.

        Raises:
            StageFailed: There is no process to be had.
        """
        ours, its = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            rights = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in (its.fileno(), *fds))
            request = marshal.dumps((function, argument))
            with self._lock:
                self._started().sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError as error:
            ours.close()
            raise StageFailed("start a worker", error) from error
        finally:
            its.close()
        return ForkedWorker(ours)

    def _started(self) -> _socket.socket:
        if self._requests is None:
            ours, its = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
            try:
                self._pid = self._spawn(its.fileno())
            except BaseException:
                ours.close()
                raise
            finally:
                its.close()
            self._requests = ours
        return self._requests

    def _spawn(self, requests: int) -> int:
        # Not the same number, or it would stay close-on-exec.
        passed = max(3, requests + 1)
        return os.posix_spawn(
            sys.executable,
            [
                *(sys.executable, "-I", "-S", "-c", _CODE),
                *(str(passed), ",".join(self._modules)),
                *filter(os.path.isabs, sys.path),
            ],
            {"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, requests, passed),
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            ],
            # An interrupt from the terminal is this process's to handle.
            setsigmask=[signal.SIGINT],
        )

    def close(self) -> None:
        """End it and whatever workers it still has; a second call does nothing."""
        with self._lock:
            requests, self._requests = self._requests, None
            pid, self._pid = self._pid, 0
        if requests is not None:
            requests.close()
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # the program ignores SIGCHLD, or reaps every child itself
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ForkedWorker:
    """A worker of a :class:`Nursery`; see :class:`Worker`. For one thread.

    On its connection come one byte with a pidfd, when it has been forked; the outcome; and the end.
    """

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._pidfd = -1
        self._awaited = False

    def fileno(self) -> int:
        """To be polled for reading: when its result, or its end, is there."""
        return self._connection.fileno()

    def result(self, timeout: float | None = None) -> object:
        """See :class:`Worker`; ``timeout`` is not kept."""
        del timeout
        self._await_birth()
        data = b""
        while len(data) <= _MOST and (piece := self._connection.recv(65536)):
            data += piece
        if len(data) <= _MOST:
            self._await_end()
        if not data:
            raise Unavailable("worker: it was killed before it had a result")
        return _outcome(data)

    def kill(self) -> None:
        """See :class:`Worker`."""
        self._await_birth()
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """See :class:`Worker`; it has ended when this returns."""
        if self._connection.fileno() < 0:
            return
        self.kill()
        self._await_end()
        self._connection.close()

    def _await_birth(self) -> None:
        if self._awaited:
            return
        self._awaited = True
        _, control, _, _ = self._connection.recvmsg(1, _socket.CMSG_SPACE(_INT), _socket.MSG_CMSG_CLOEXEC)
        for _, _, packed in control:
            self._pidfd = int.from_bytes(packed[:_INT], sys.byteorder)

    def _await_end(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
            os.close(pidfd)


def _outcome(data: bytes) -> object:
    """What a worker says came of it. It has dealt with what an image brought, so nothing that it says is relied on."""
    try:
        if len(data) > _MOST:
            raise ValueError(f"more than {_MOST} bytes")
        match jsontext.loads(data):
            case ["done", value]:
                return value
            case ["failed", str(name), str(message), str(hint)]:
                raise _rebuilt(name, message, hint)
        raise ValueError("neither a result nor a failure")
    except ValueError as error:
        raise Corrupt(f"worker: its outcome makes no sense: {error}") from None


def _rebuilt(name: str, message: str, hint: str) -> SampanError:
    """An error of another process, as this one's."""
    kind = getattr(errors, name, None)
    if not isinstance(kind, type) or not issubclass(kind, SampanError):
        kind = SampanError
    rebuilt: SampanError = SampanError.__new__(kind)
    SampanError.__init__(rebuilt, message, hint=hint)
    return rebuilt

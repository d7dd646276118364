"""The zygote as its maker sees it: a process that forks monitors and workers on request.

A daemon has threads and may not fork; the zygote has none, and has imported already what its children need. It ends
when its maker does, its monitors do not.
"""

from __future__ import annotations

import _thread
import os
import select
import sys
import time

from sampan.errors import SampanError, TimedOut, Unavailable
from sampan.shim import interpreter, sockets
from sampan.wire import frames, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

#: Seconds for the zygote to answer; importing takes it a tenth of one at first.
_PATIENCE = 30.0
#: Bytes that a worker's result may have.
_MAX_RESULT = 64 * 1024 * 1024

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")


class Worker:
    """A process that runs one function. Its owner calls :meth:`result` or :meth:`close`, from one thread.

    Args:
        pid: Not to be signalled; :meth:`kill` cannot hit another process.
        pidfd: Readable when it has ended; -1 if it had before one could be had.
        pipe: Where its result can be read from.
    """

    def __init__(self, pid: int, pidfd: int, pipe: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._pipe = pipe
        self._text = bytearray()

    def fileno(self) -> int:
        """To be polled for reading: when its result, or its end, is there."""
        return self._pipe

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned; closes the worker.

        Raises:
            SampanError: The one that the function raised.
            Unavailable: It was killed.
            TimedOut: It goes on; ask again, or :meth:`close`.
        """
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise TimedOut(f"worker {self.pid} has not ended after {timeout} s")
            data = os.read(self._pipe, 1 << 16)
            if not data:
                break
            self._text += data
            if len(self._text) > _MAX_RESULT:
                self.close()
                raise SampanError(f"the result of worker {self.pid} exceeds {_MAX_RESULT} bytes")
        self.close()
        try:
            body = jsontext.loads(bytes(self._text))
        except ValueError:
            raise Unavailable(f"worker {self.pid} was killed before it had a result") from None
        if "error" in body:
            raise frames.restore_error(body["error"])
        return body["result"]

    def kill(self) -> None:
        """End it; no error if it has ended."""
        if self.pidfd >= 0:
            from sampan.linux.process import pidfd_send_signal

            try:
                pidfd_send_signal(self.pidfd, 9)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """End it if it runs, and let go of it: it writes nothing any more. A second call does nothing."""
        self.kill()
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.poll()
        for fd in (self.pidfd, self._pipe):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._pipe = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Zygote:
    """A zygote and the socket to it. Threads may share one: its requests take a millisecond and go one by one."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._open_files = _open_files()
        self._lock = _thread.allocate_lock()
        self._pid = 0
        self._channel: sockets.Channel | None = None

    @classmethod
    def start(cls, *, once: bool = False) -> Zygote:
        """Start one; returns before it is ready, and the first request waits for that.

        Args:
            once: It is for a single request: don't let it prepare for many.

        Raises:
            StageFailed: The interpreter can't be started.
        """
        zygote = cls("once" if once else "many")
        with zygote._lock:
            zygote._start()
        return zygote

    @property
    def pid(self) -> int:
        """Its process; 0 once closed."""
        return self._pid

    def fork_monitor(self, pod_id: str, directory: str, options: Mapping[str, Any] | None = None) -> int:
        """Fork the monitor of a pod; its control socket listens when this returns.

        Args:
            pod_id: Names the monitor.
            directory: The pod's folder, made if missing; the socket is ``control.sock`` in it.
            options: See :class:`sampan.shim.monitor.Options`.

        Returns:
            The monitor's pid.

        Raises:
            StageFailed: A system call failed.
            Unavailable: The zygote died; another was started, and a retry will do.
        """
        body = {"op": "fork_monitor", "pod_id": pod_id, "directory": directory, "options": dict(options or {})}
        reply = self._call(body, ())
        return int(reply.body["pid"])

    def run_worker(self, function: str, argument: object, fds: Sequence[int] = ()) -> Worker:
        """Run ``function(argument, descriptors)`` in a process of its own that ends with the zygote at the latest.

        Args:
            function: ``package.module:function``, of this package.
            argument: What JSON can hold.
            fds: Given to the function as a list of their numbers there; they stay the caller's to close.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            body = {"op": "fork_worker", "function": function, "argument": argument}
            reply = self._call(body, (writing, *fds))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return Worker(int(reply.body["pid"]), reply.descriptors[0] if reply.descriptors else -1, reading)

    def close(self) -> None:
        """Let the zygote and its workers end, and reap it; monitors live on. A second call does nothing."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _call(self, body: dict[str, Any], descriptors: Sequence[int]) -> frames.Frame:
        with self._lock:
            if self._channel is None:
                raise Unavailable("the zygote is closed")
            if self._channel.ended():
                self._replace()
            try:
                return self._channel.call(body, descriptors, _PATIENCE)
            except (Unavailable, TimeoutError) as error:
                # It may have been killed by an administrator, or for want of memory.
                self._replace()
                raise Unavailable(f"the zygote did not answer and was started anew: {error}") from None

    def _replace(self) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        ours, its = sockets.packet_pair()
        try:
            arguments = (self._mode, str(self._open_files), *_dependency_paths())
            self._pid = interpreter.spawn(_SCRIPT, arguments, its.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self._channel = sockets.Channel(ours, "the zygote", sockets.PACKET_SIZE)

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        pid, self._pid = self._pid, 0
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # the program that we are part of ignores SIGCHLD, or waits for any child


def _open_files() -> int:
    """The soft limit of open files, which our containers are to have although we may raise ours."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _dependency_paths() -> list[str]:
    """Folders in which the running program finds what is not of the standard library."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)]


def echo(argument: object, descriptors: list[int]) -> object:
    """A worker's function that shows what it was given: for tests, and to see that a machine can run workers."""
    return {"argument": argument, "descriptors": len(descriptors)}


def stay(argument: object, descriptors: list[int]) -> None:  # noqa: ARG001
    """A worker's function that never returns."""
    while True:
        time.sleep(3600)

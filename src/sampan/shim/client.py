"""Talking to a monitor."""

from __future__ import annotations

import _thread
import fcntl

from sampan.errors import TimedOut, Unavailable
from sampan.runtime.handler import Stdio
from sampan.shim import sockets
from sampan.shim.exits import Exit, read_exit
from sampan.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Self

    from sampan.shim.cancellation import Cancellation

__all__ = ["Attachment", "EventStream", "Exec", "Exit", "MonitorClient", "read_exit"]

#: Seconds for a monitor to answer what it answers at once.
PATIENCE = 60.0
#: Seconds for what runs hooks or starts processes.
SLOW = 300.0
#: Connections kept for the next call.
_KEPT = 4
_TIOCSWINSZ = 0x5414


class Exec:
    """A process that was started in a container.

    Args:
        id: Names it in the other calls.
        pid: Its pid in the monitor's namespace.
        console: Master of its pty, the caller's to read, write, resize and close; -1 without one.
    """

    __slots__ = ("console", "id", "pid")

    def __init__(self, id: str, pid: int, console: int) -> None:
        self.id = id
        self.pid = pid
        self.console = console

    def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal."""
        size = b"".join(value.to_bytes(2, "little") for value in (height, width, 0, 0))
        fcntl.ioctl(self.console, _TIOCSWINSZ, size)


class Attachment:
    """An attachment to a container's streams. Another thread may :meth:`close` it.

    Args:
        channel: A conversation that has no other use.
    """

    def __init__(self, channel: sockets.Channel) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """Readable when it is over."""
        return self._channel.fileno()

    def wait_closed(self, timeout: float | None = None) -> str:
        """Wait until the container's output has ended and was delivered; says why it is over.

        Raises:
            TimedOut: It goes on.
        """
        try:
            return str(self._channel.receive(timeout).body.get("reason", ""))
        except TimeoutError:
            raise TimedOut(f"still attached after {timeout} s") from None
        except Unavailable as error:
            return error.message

    def close(self) -> None:
        """Detach; the container goes on. A second call does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class EventStream:
    """Events of a pod, in sequence, as dictionaries with ``seq``, ``time``, ``kind``, ``id`` and what the kind has.

    Args:
        channel: A conversation that has no other use.
    """

    def __init__(self, channel: sockets.Channel) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """Readable when there may be an event, or the monitor has gone."""
        return self._channel.fileno()

    def next(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event; ``None`` if none came in time.

        Raises:
            Unavailable: The monitor has gone.
        """
        try:
            return self._channel.receive(timeout).body
        except TimeoutError:
            return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Events until the monitor goes."""
        while True:
            try:
                yield self._channel.receive().body
            except Unavailable:
                return

    def close(self) -> None:
        """A second call does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class MonitorClient:
    """A monitor's operations. Threads may share one; each call has a connection to itself while it lasts.

    Every method raises :class:`~sampan.errors.Unavailable` when nobody listens at the socket, and otherwise the error
    that the monitor answered with.

    Args:
        path: The control socket. Nothing is connected before the first call.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = _thread.allocate_lock()
        self._idle: list[sockets.Channel] = []

    def info(self, patience: float = PATIENCE) -> dict[str, Any]:
        """The pod and its containers as the monitor sees them.

        Raises:
            TimedOut: The monitor lives and has not answered after ``patience`` seconds: it waits for a runtime.
        """
        return self._call({"op": "info"}, patience)

    def sandbox(self, directory: str, kinds: Sequence[str], **options: Any) -> dict[str, Any]:
        """Make the pod's namespaces, once; see :func:`sampan.runtime.sandbox.create_sandbox`."""
        body = {"op": "sandbox", "directory": directory, "kinds": list(kinds), "options": options}
        return self._call(body, SLOW)

    def create(
        self,
        id: str,
        bundle: str,
        *,
        tty: bool = False,
        stdin: bool = False,
        stdin_once: bool = False,
        log_path: str = "",
        cgroup: str = "",
        systemd: bool = False,
    ) -> int:
        """Make a container; returns the pid of its init.

        Args:
            id: Its id.
            bundle: Folder of its config.json.
            tty: As ``process.terminal`` of the configuration.
            stdin: Whether it has an input at all.
            stdin_once: Whether its input ends with that of the first client that attaches one.
            log_path: Where its output goes in the CRI's log format; empty: nowhere.
            cgroup: Its cgroup, for OOM reports and for ending all of its processes.
            systemd: Whether ``cgroup`` is ``slice:prefix:name``.
        """
        body = {
            "op": "create",
            "id": id,
            "bundle": bundle,
            "tty": tty,
            "stdin": stdin,
            "stdin_once": stdin_once,
            "log_path": log_path,
            "cgroup": cgroup,
            "systemd": systemd,
        }
        return int(self._call(body, SLOW)["pid"])

    def start(self, id: str) -> None:
        """Let a created container's program run."""
        self._call({"op": "start", "id": id}, SLOW)

    def exec(
        self,
        id: str,
        process: dict[str, Any],
        *,
        exec_id: str = "",
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        timeout: float = 0,
        cancellation: Cancellation | None = None,
    ) -> Exec:
        """Run one more process in a container.

        Args:
            id: The container.
            process: An OCI process object. With ``terminal`` the descriptors are not used.
            exec_id: A name for it; empty: one is made.
            stdin: Its input, as the other two the caller's to close; -1 is /dev/null.
            stdout: Its output.
            stderr: Its error output.
            timeout: Seconds after which its process group is killed; 0 is never.
            cancellation: Ends the wait for its start.
        """
        body = _exec_body(id, process, exec_id, (stdin, stdout, stderr), timeout)
        frame = self._frame(*body, timeout + SLOW, cancellation)
        console = frame.descriptors[0] if frame.descriptors else -1
        return Exec(str(frame.body["exec_id"]), int(frame.body["pid"]), console)

    def exec_wait(
        self,
        id: str,
        process: dict[str, Any],
        *,
        exec_id: str = "",
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        timeout: float = 0,
    ) -> Exit:
        """Run one more process and wait for it, in one round trip; see :meth:`exec`."""
        body, descriptors = _exec_body(id, process, exec_id, (stdin, stdout, stderr), timeout, wait=True)
        frame = self._frame(body, descriptors, timeout + SLOW if timeout else None)
        return Exit.of_dict(frame.body["exit"])

    def wait(
        self, id: str, exec_id: str = "", timeout: float | None = None, cancellation: Cancellation | None = None
    ) -> Exit:
        """Wait for a container, or for an exec of it, to end.

        Raises:
            TimedOut: It has not in time.
            Unavailable: The monitor has gone, or the wait was cancelled.
        """
        body = {"op": "wait", "id": id, "exec_id": exec_id, "timeout": 0 if timeout is None else max(timeout, 0.001)}
        return Exit.of_dict(self._frame(body, (), None, cancellation).body["exit"])

    def attach(
        self, id: str, *, stdin: int = -1, stdout: int = -1, stderr: int = -1, patient: bool = False
    ) -> Attachment:
        """Copy a container's output to ``stdout`` and ``stderr``, and ``stdin`` to its input, from now on.

        The descriptors may be pipes, sockets, terminals or files, are duplicated, and stay the caller's to close. Of
        a container with a terminal, ``stdout`` gets what the terminal shows. Who takes nothing for ten seconds is let
        go of, unless the container is to be ``patient``.
        """
        channel = self._connect()
        given = Stdio(stdin, stdout, stderr).given()
        try:
            body = {"op": "attach", "id": id, "streams": list(given), "patient": patient}
            _in_time(channel, body, list(given.values()), PATIENCE)
        except BaseException:
            channel.close()
            raise
        return Attachment(channel)

    def resize(self, id: str, width: int, height: int) -> None:
        """Set the size of a container's terminal."""
        self._call({"op": "resize", "id": id, "width": width, "height": height})

    def signal(self, id: str, signal: int, *, all: bool = False, exec_id: str = "", patience: float = PATIENCE) -> None:
        """Signal a container's init, all its processes, or an exec (with ``all``, the exec's process group)."""
        self._call({"op": "signal", "id": id, "signal": signal, "all": all, "exec_id": exec_id}, patience)

    def stop(self, id: str, signal: int = 15, timeout: float = 10, *, patience: float = PATIENCE) -> Exit:
        """Signal a container, kill all of it after ``timeout`` seconds (0: at once), and wait for its end.

        Raises:
            TimedOut: It has not ended ``patience`` seconds after it should have, or nobody could say so.
        """
        body = {"op": "stop", "id": id, "signal": signal, "timeout": timeout}
        return Exit.of_dict(self._call(body, patience=timeout + patience)["exit"])

    def pause(self, id: str) -> None:
        """Freeze a container."""
        self._call({"op": "pause", "id": id})

    def resume(self, id: str) -> None:
        """Thaw a container."""
        self._call({"op": "resume", "id": id})

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Change limits: an OCI ``linux.resources`` object, of which absent fields stay."""
        self._call({"op": "update", "id": id, "resources": resources})

    def stats(self, id: str) -> dict[str, Any]:
        """Figures of a container, as the ``data`` of runc's ``events --stats``."""
        stats: dict[str, Any] = self._call({"op": "stats", "id": id})["stats"]
        return stats

    def pids(self, id: str) -> list[int]:
        """The pids of a container's processes, in the monitor's namespace."""
        pids: list[int] = self._call({"op": "pids", "id": id})["pids"]
        return pids

    def close_stdin(self, id: str) -> None:
        """Let a container see the end of its input."""
        self._call({"op": "close_stdin", "id": id})

    def reopen_log(self, id: str) -> None:
        """Go on in a new log file, after the old one was renamed."""
        self._call({"op": "reopen_log", "id": id})

    def delete(self, id: str, *, force: bool = False, patience: float = PATIENCE) -> None:
        """Remove a container that has exited, or with ``force`` one that has not."""
        self._call({"op": "delete", "id": id, "force": force}, patience)

    def events(self, since: int = 0, patience: float = PATIENCE) -> EventStream:
        """Subscribe to what happens after event number ``since``."""
        channel = self._connect()
        try:
            _in_time(channel, {"op": "events", "since": since}, (), patience)
        except BaseException:
            channel.close()
            raise
        return EventStream(channel)

    def shutdown(self, *, force: bool = False) -> bool:
        """End the monitor, with its namespaces and, if forced, its running containers.

        Returns:
            When its socket is gone, whether it did so; False if nobody listens, or it was killed on its way.

        Raises:
            WrongState: Containers are running.
        """
        try:
            channel = self._connect()
        except Unavailable:
            return False
        done = False
        try:
            _in_time(channel, {"op": "shutdown", "force": force}, (), PATIENCE)
            done = True
            while True:
                channel.receive(PATIENCE)
        except Unavailable:
            return done
        finally:
            channel.close()
            self.close()

    def close(self) -> None:
        """Close the idle connections; the client can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _call(self, body: dict[str, Any], patience: float | None = PATIENCE) -> dict[str, Any]:
        return self._frame(body, (), patience).body

    def _frame(
        self,
        body: dict[str, Any],
        descriptors: Sequence[int],
        patience: float | None,
        cancellation: Cancellation | None = None,
    ) -> frames.Frame:
        channel = self._take()
        try:
            if cancellation is None:
                return _in_time(channel, body, descriptors, patience)
            with cancellation.during(channel.hang_up):
                return _in_time(channel, body, descriptors, patience)
        finally:
            # A conversation with an unanswered question is of no further use.
            if channel.settled and not (cancellation and cancellation.cancelled):
                self._give_back(channel)
            else:
                channel.close()

    def _take(self) -> sockets.Channel:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, channel: sockets.Channel) -> None:
        with self._lock:
            if len(self._idle) < _KEPT:
                self._idle.append(channel)
                return
        channel.close()

    def _connect(self) -> sockets.Channel:
        return sockets.Channel(sockets.connect(self.path, PATIENCE), "the monitor")


def _exec_body(
    id: str,
    process: dict[str, Any],
    exec_id: str,
    stdio: tuple[int, int, int],
    timeout: float,
    *,
    wait: bool = False,
) -> tuple[dict[str, Any], list[int]]:
    """The request for one more process, and the descriptors that go with it."""
    given = Stdio(*stdio).given()
    body = {
        "op": "exec",
        "id": id,
        "exec_id": exec_id,
        "process": process,
        "streams": list(given),
        "timeout": timeout,
        "wait": wait,
    }
    return body, list(given.values())


def _in_time(
    channel: sockets.Channel, body: dict[str, Any], descriptors: Sequence[int], patience: float | None
) -> frames.Frame:
    try:
        return channel.call(body, descriptors, patience)
    except TimeoutError:
        raise TimedOut(f"the monitor has not answered {body['op']!r} after {patience:g} s") from None

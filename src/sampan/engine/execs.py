"""Commands run beside a container's first process, and connections to that process's streams.

The descriptors go to the process itself, through the monitor's control socket: what it prints never passes the
monitor (kubernetes#82440: exec probes must be cheap).
"""

import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sampan.engine.model import ContainerRecord
from sampan.engine.security import held_capabilities
from sampan.errors import InvalidInput, SampanError, TimedOut
from sampan.image.user import lookup_user
from sampan.linux import capabilities
from sampan.linux.process import pidfd_open
from sampan.shim.cancellation import Cancellation

if TYPE_CHECKING:
    from sampan.engine.engine import Engine
    from sampan.shim.client import MonitorClient

_CHUNK = 1 << 16
#: Seconds that output may still come after the command itself has ended: from children that hold the pipe.
_DRAIN = 2.0


class ExecResult(NamedTuple):
    """What a command printed, each stream up to the engine's bound, and its exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class ExecSession:
    """A command under way in a container.

    Args:
        engine: Whose.
        record: The container.
        handle: The monitor's answer: id, pid, console.
    """

    def __init__(self, engine: "Engine", record: ContainerRecord, handle: Any) -> None:
        self._monitor = engine.monitor(record.pod_id)
        self._container_id = record.id
        self.id: str = handle.id
        self.pid: int = handle.pid
        #: Master of the command's pty, or -1; ours to close.
        self.console: int = handle.console

    def resize(self, width: int, height: int) -> None:
        """Tell the pty its size in characters."""
        if self.console >= 0:
            fcntl.ioctl(self.console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait(self, timeout: float | None = None) -> int:
        """The command's exit code.

        Raises:
            TimedOut: It runs on after ``timeout`` seconds.
        """
        code: int = self._monitor.wait(self._container_id, exec_id=self.id, timeout=timeout).exit_code
        return code

    def signal(self, number: int) -> None:
        """Signal the command."""
        self._monitor.signal(self._container_id, number, exec_id=self.id)

    def kill(self) -> None:
        """End the command and its process group."""
        self._monitor.signal(self._container_id, 9, exec_id=self.id, all=True)

    def close(self) -> None:
        """Let go of the pty; the command gets a hang-up."""
        console, self.console = self.console, -1
        if console >= 0:
            os.close(console)


class AttachSession:
    """Descriptors connected to a container's first process; see :meth:`sampan.shim.client.MonitorClient.attach`."""

    def __init__(
        self,
        engine: "Engine",
        record: ContainerRecord,
        *,
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        patient: bool = False,
    ) -> None:
        self._monitor = engine.monitor(record.pod_id)
        self._container_id = record.id
        self._attachment = self._monitor.attach(record.id, stdin=stdin, stdout=stdout, stderr=stderr, patient=patient)

    def fileno(self) -> int:
        """Readable when the connection has ended."""
        return int(self._attachment.fileno())

    def resize(self, width: int, height: int) -> None:
        """Tell the container's pty its size in characters."""
        self._monitor.resize(self._container_id, width, height)

    def wait_closed(self, timeout: float | None = None) -> str:
        """Why the connection ended: the container's end, or a client too slow."""
        return str(self._attachment.wait_closed(timeout))

    def close(self) -> None:
        """Disconnect; the container runs on."""
        self._attachment.close()


def process_for(
    engine: "Engine",
    record: ContainerRecord,
    command: Sequence[str],
    *,
    tty: bool,
    env: tuple[str, ...] = (),
    user: str = "",
    cwd: str = "",
    privileged: bool = False,
) -> dict[str, Any]:
    """The OCI ``process`` of a command: the container's own, with other arguments.

    Raises:
        InvalidInput: The command is empty or holds a NUL byte; the user is unknown.
    """
    if not command or not command[0]:
        raise InvalidInput("is empty", field="cmd")
    if any("\0" in word for word in command):
        raise InvalidInput("holds a NUL byte", field="cmd")
    bundle = engine.layout.bundle(record.pod_id, record.id)
    process = _container_process(bundle)
    process["args"] = list(command)
    process["terminal"] = tty
    entries = [*(["TERM=xterm"] if tty else ()), *process.get("env", ()), *env]
    # By its name: a handler may pass on all that it is given, and programs would find the first of two.
    process["env"] = list({entry.partition("=")[0]: entry for entry in entries}.values())
    process.pop("consoleSize", None)
    if cwd:
        process["cwd"] = cwd
    if privileged:
        names = [name for name in capabilities.NAMES if name in held_capabilities()]
        process["capabilities"] = {"bounding": names, "effective": names, "permitted": names}
    if user:
        root = os.open(f"{bundle}/rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = lookup_user(root, user)
        finally:
            os.close(root)
        process["user"] = {"uid": found.uid, "gid": found.gid, "additionalGids": list(found.groups)}
    return process


def _container_process(bundle: str) -> dict[str, Any]:
    import json

    with open(f"{bundle}/config.json", encoding="utf-8") as file:
        process: dict[str, Any] = json.load(file)["process"]
    return process


def start_exec(
    engine: "Engine",
    record: ContainerRecord,
    command: Sequence[str],
    *,
    tty: bool,
    stdio: tuple[int, int, int],
    env: tuple[str, ...],
    user: str,
    cwd: str,
    privileged: bool,
) -> ExecSession:
    """Start a command; see :meth:`sampan.engine.containers.Containers.exec`."""
    process = process_for(engine, record, command, tty=tty, env=env, user=user, cwd=cwd, privileged=privileged)
    stdin, stdout, stderr = stdio
    handle = engine.monitor(record.pod_id).exec(record.id, process, stdin=stdin, stdout=stdout, stderr=stderr)
    return ExecSession(engine, record, handle)


def exec_sync(
    engine: "Engine",
    record: ContainerRecord,
    command: Sequence[str],
    timeout: float,
    cancellation: Cancellation | None = None,
) -> ExecResult:
    """Run a command and collect its output, at most ``max_exec_output`` bytes of each stream (CVE-2022-31030)."""
    cancellation = cancellation or Cancellation()
    process = process_for(engine, record, command, tty=False)
    monitor = engine.monitor(record.pod_id)
    out, out_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    err, err_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for writer in (out_writer, err_writer):
            os.set_blocking(writer, True)
        try:
            handle = monitor.exec(
                record.id, process, stdout=out_writer, stderr=err_writer, timeout=timeout, cancellation=cancellation
            )
        finally:
            os.close(out_writer)
            os.close(err_writer)
        outputs = {out: bytearray(), err: bytearray()}
        try:
            _collect(outputs, handle.pid, engine.config.max_exec_output, cancellation)
            end = monitor.wait(record.id, exec_id=handle.id, cancellation=cancellation)
        finally:
            if cancellation.cancelled:
                _end(monitor, record.id, handle.id)
    finally:
        os.close(out)
        os.close(err)
    if end.timed_out:
        raise TimedOut(f"command {command[0]!r} ran longer than {timeout:g} s in container {record.id[:12]}")
    return ExecResult(bytes(outputs[out]), bytes(outputs[err]), end.exit_code)


def _end(monitor: "MonitorClient", container_id: str, exec_id: str) -> None:
    """End a command that nobody waits for any more, if it has not ended by itself."""
    try:
        monitor.signal(container_id, 9, exec_id=exec_id, all=True, patience=_DRAIN)
    except SampanError:
        return


def _collect(outputs: dict[int, bytearray], pid: int, bound: int, cancellation: Cancellation) -> None:
    """Read until both streams end, or until the process has ended and a little longer, or it is cancelled."""
    poll = select.poll()
    for fd in outputs:
        poll.register(fd, select.POLLIN)
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        pidfd = -1
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    poll.register(wake, select.POLLIN)
    try:
        with cancellation.during(lambda: os.eventfd_write(wake, 1)):
            _read(poll, outputs, pidfd, bound, cancellation)
    finally:
        os.close(wake)
        if pidfd >= 0:
            os.close(pidfd)


def _read(poll: select.poll, outputs: dict[int, bytearray], pidfd: int, bound: int, cancellation: Cancellation) -> None:
    deadline = None if pidfd >= 0 else time.monotonic() + _DRAIN
    left = set(outputs)
    while left and not cancellation.cancelled:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = poll.poll(wait)
        if not ready:
            return
        for fd, _ in ready:
            if fd == pidfd:
                poll.unregister(pidfd)
                deadline = time.monotonic() + _DRAIN
            elif fd in left and not _take(fd, outputs[fd], bound):
                poll.unregister(fd)
                left.discard(fd)


def _take(fd: int, output: bytearray, bound: int) -> bool:
    """Read once into ``output``, dropping what is over the bound; False at the stream's end."""
    try:
        data = os.read(fd, _CHUNK)
    except BlockingIOError:
        return True
    output += data[: bound - len(output)]
    return bool(data)

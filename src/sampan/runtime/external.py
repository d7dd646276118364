"""Another OCI runtime, driven by runc's command line: runc, crun, kata, runsc, youki.

The caller is a child subreaper: the runtime's command ends, and the container's init, which it made, then becomes the
caller's child, to be waited for. Nothing is passed by descriptor but the container's streams: the log that the command
writes its reason for failing to, and the documents it reads, are memory files that it opens through /proc.
"""

from __future__ import annotations

import errno
import os

from sampan.errors import (
    AlreadyExists,
    NotFound,
    ProgramFailed,
    SampanError,
    StageFailed,
    TimedOut,
    Unsupported,
    WrongState,
)
from sampan.runtime import streams
from sampan.runtime.handler import Created, Stdio
from sampan.runtime.state import check_id, dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_MOST_LOG = 1 << 20
#: Seconds for a command that makes or starts a process.
TIMEOUT = 120.0
#: At most so many for any other: less than a client of the monitor waits for an answer.
_QUICK = 45.0
#: And for taking back what a command that hung has begun.
_AFTERMATH = 10.0
#: What a runtime says -> what it means. runc's words first, then crun's.
_MEANINGS: tuple[tuple[str, type[SampanError]], ...] = (
    ("does not exist", NotFound),
    ("no such container", NotFound),
    ("already exists", AlreadyExists),
    ("already in use", AlreadyExists),
    ("not running", WrongState),
    ("not paused", WrongState),
    ("is paused", WrongState),
    ("already paused", WrongState),
    ("is not stopped", WrongState),
    ("stopped container", WrongState),
    ("stopped state", WrongState),
    ("already started", WrongState),
    ("process already finished", WrongState),
    ("no such process", WrongState),
    ("not supported", Unsupported),
)
#: The same, of programs: their errno.
_OF_PROGRAMS = (
    ("executable file", errno.ENOENT),
    ("no such file or directory", errno.ENOENT),
    ("permission denied", errno.EACCES),
    ("exec format error", errno.ENOEXEC),
)


class ExternalHandler:
    """A :class:`~sampan.runtime.handler.Handler` by a runc-compatible command.

    Args:
        binary: Path of the command, or its name, to be found in PATH.
        root: Its state directory (``--root``); sockets and pid files lie in ``<root>.files`` while they are needed.
        systemd: Pass ``--systemd-cgroup``.
        options: Further global options.
        create_options: Further options of ``create``, such as ``--no-pivot``.
        timeout: Seconds after which a command that hangs is killed, with its process group.
    """

    __slots__ = ("_create_options", "_files", "_global", "_sequence", "_timeout", "binary", "root")

    def __init__(
        self,
        binary: str,
        root: str,
        *,
        systemd: bool = False,
        options: Sequence[str] = (),
        create_options: Sequence[str] = (),
        timeout: float = TIMEOUT,
    ) -> None:
        self.binary = binary
        self.root = root
        self._files = f"{root.rstrip('/')}.files"
        self._global = [*(["--systemd-cgroup"] if systemd else []), *options]
        self._create_options = list(create_options)
        self._sequence = 0
        self._timeout = timeout

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created:
        """See :class:`~sampan.runtime.handler.Handler`."""
        check_id(container_id)
        config = _read_config(bundle)
        process: Any = config.get("process") or {}
        linux: Any = config.get("linux") or {}
        streams.give(stdio, process, linux)
        command = ["create", "--bundle", bundle, *self._create_options]
        try:
            return self._spawn_process(command, [container_id], stdio, terminal=bool(process.get("terminal")))
        except TimedOut:
            self._take_back(container_id)
            raise

    def _take_back(self, container_id: str) -> None:
        """Remove what a ``create`` that hung has made, if the runtime can."""
        try:
            self._run(["delete", "--force", container_id], timeout=_AFTERMATH)
        except SampanError:
            return

    def start(self, container_id: str) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        self._run(["start", _checked(container_id)], timeout=self._timeout)

    def exec(
        self,
        container_id: str,
        process: dict[str, Any],
        stdio: Stdio,
        *,
        watched: bool = False,  # noqa: ARG002 -- its own affair
        bundle: str = "",
    ) -> Created:
        """See :class:`~sampan.runtime.handler.Handler`."""
        check_id(container_id)
        if bundle:
            streams.give(stdio, process, _read_config(bundle).get("linux") or {})  # type: ignore[arg-type]
        with _Memory(dumps(process)) as document:
            command = ["exec", "--detach", "--process", document.path]
            return self._spawn_process(command, [container_id], stdio, terminal=bool(process.get("terminal")))

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        self._run(["kill", *(["--all"] if all else []), _checked(container_id), str(signal)])

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        try:
            self._run(["delete", *(["--force"] if force else []), _checked(container_id)])
        except NotFound:
            if not force:
                raise

    def pause(self, container_id: str) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        self._run(["pause", _checked(container_id)])

    def resume(self, container_id: str) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        self._run(["resume", _checked(container_id)])

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """See :class:`~sampan.runtime.handler.Handler`."""
        with _Memory(dumps(resources)) as document:
            self._run(["update", "--resources", document.path, _checked(container_id)])

    def stats(self, container_id: str) -> dict[str, Any]:
        """See :class:`~sampan.runtime.handler.Handler`."""
        event = self._ask(["events", "--stats", _checked(container_id)])
        data = event.get("data") if isinstance(event, dict) else None
        if not isinstance(data, dict):
            raise SampanError(f"{self.binary} events --stats: no data in {str(event)[:200]!r}")
        return data

    def pids(self, container_id: str) -> list[int]:
        """See :class:`~sampan.runtime.handler.Handler`."""
        found = self._ask(["ps", "--format", "json", _checked(container_id)])
        return [int(pid) for pid in found or ()]

    def state(self, container_id: str) -> dict[str, Any]:
        """See :class:`~sampan.runtime.handler.Handler`."""
        found = self._ask(["state", _checked(container_id)])
        if not isinstance(found, dict):
            raise SampanError(f"{self.binary} state: {str(found)[:200]!r} is not a state")
        return found

    def _spawn_process(self, command: list[str], operands: list[str], stdio: Stdio, *, terminal: bool) -> Created:
        """Run a command that makes a process, and learn its pid and its console."""
        os.makedirs(self._files, 0o700, exist_ok=True)
        self._sequence += 1
        stem = f"{self._files}/{os.getpid()}-{self._sequence}"
        pid_file = f"{stem}.pid"
        console = _ConsoleSocket(f"{stem}.sock") if terminal else None
        try:
            options = ["--pid-file", pid_file]
            if console is not None:
                # With a console the runtime's own streams would only be held open by it.
                options += ["--console-socket", console.path]
                stdio = Stdio()
            self._run([*command, *options, *operands], stdio, timeout=self._timeout)
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read())
            return Created(pid, console.receive() if console is not None else -1)
        finally:
            if console is not None:
                console.close()
            _unlink(pid_file)
            try:
                os.rmdir(self._files)
            except OSError:
                pass  # another command's files are in it

    def _ask(self, arguments: list[str]) -> Any:
        with _Memory(b"") as output:
            self._run(arguments, Stdio(-1, output.fd, -1))
            content = output.content()
        try:
            return loads(content)
        except ValueError:
            raise SampanError(f"{self.binary} {arguments[0]}: no JSON in {content[:200]!r}") from None

    def _run(self, arguments: list[str], stdio: Stdio | None = None, *, timeout: float = _QUICK) -> None:
        """Run the command to its end.

        Raises:
            TimedOut: It hung, and was killed.
            SampanError: It failed; with the last error of its log, as the leaf that fits.
        """
        with _Memory(b"") as log:
            command = [self.binary, "--root", self.root, "--log", log.path, "--log-format", "json", *self._global]
            status = _execute([*command, *arguments], stdio or Stdio(), min(timeout, self._timeout))
            if status != 0:
                raise _meaning(f"{os.path.basename(self.binary)} {arguments[0]}", status, log.content())


def _checked(container_id: str) -> str:
    check_id(container_id)
    return container_id


class _Memory:
    """A memory file that another process opens through /proc."""

    __slots__ = ("fd", "path")

    def __init__(self, content: bytes) -> None:
        self.fd = os.memfd_create("sampan", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        os.write(self.fd, content)

    def content(self) -> bytes:
        return os.pread(self.fd, _MOST_LOG, 0)

    def __enter__(self) -> _Memory:  # noqa: PYI034 - typing is 10 ms
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _ConsoleSocket:
    """A socket on which a runtime hands over the master side of a pty (runc's docs/terminals.md)."""

    __slots__ = ("_socket", "path")

    def __init__(self, path: str) -> None:
        import _socket  # the C module alone: socket.py would bring selectors and enum

        self.path = path
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._socket.bind(path)
            self._socket.listen(1)
            # The runtime has connected and sent before it ends; if it did not, there is nothing to wait for.
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def receive(self) -> int:
        """The master side; close-on-exec."""
        import _socket

        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            raise SampanError("the runtime made a terminal but did not send it") from None
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        try:
            _, control, _, _ = connection.recvmsg(4096, _socket.CMSG_SPACE(4), 0x40000000)  # MSG_CMSG_CLOEXEC
        finally:
            connection.close()
        for level, kind, data in control:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) >= 4:
                import sys

                return int.from_bytes(data[:4], sys.byteorder)
        raise SampanError("the runtime sent no descriptor of its terminal")

    def close(self) -> None:
        self._socket.close()
        _unlink(self.path)


def _read_config(bundle: str) -> dict[str, Any]:
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            config = loads(file.read())
    except OSError as error:
        raise StageFailed("read configuration", error, path=path) from error
    except ValueError as error:
        raise SampanError(f"{path}: {error}") from None
    return config if isinstance(config, dict) else {}


def _execute(command: list[str], stdio: Stdio, timeout: float) -> int:
    """Run a command with these streams and wait for it; its exit code, or the negative of a signal.

    Raises:
        TimedOut: It ran on after ``timeout`` seconds and was killed, with its process group.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        streams = [fd if fd >= 0 else null for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
        # Out of the way first: a stream may itself be descriptor 0, 1 or 2, in another order.
        high = [_high_copy(fd) for fd in streams]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
            pid = os.posix_spawnp(
                command[0], command, os.environ, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=(13,)
            )
        finally:
            for fd in high:
                os.close(fd)
    except FileNotFoundError:
        raise NotFound(f"runtime {command[0]!r} is not installed") from None
    except OSError as error:
        raise StageFailed("run runtime", error, path=command[0]) from error
    finally:
        os.close(null)
    if not _ends(pid, timeout):
        os.killpg(pid, 9)
        os.waitpid(pid, 0)
        raise TimedOut(
            f"runtime {command[0]} has not ended after {timeout:g} s and was killed",
            hint="look at the runtime; [runtimes.NAME] timeout gives it longer",
        )
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ends(pid: int, timeout: float) -> bool:
    """Whether a child ends in time; it is not reaped."""
    import select

    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(pidfd)


def _high_copy(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _meaning(what: str, status: int, log: bytes) -> SampanError:
    """The error that a command's log explains."""
    reason = _last_error(log.decode("utf-8", "replace").splitlines())
    if not reason:
        reason = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
    lowered = reason.lower()
    if "exec: " in lowered or "executable file" in lowered:
        for words, number in _OF_PROGRAMS:
            if words in lowered:
                error = ProgramFailed(what, OSError(number, reason))
                error.message = f"{what}: {reason}"
                return error
    for words, kind in _MEANINGS:
        if words in lowered:
            return kind(f"{what}: {reason}")
    return SampanError(f"{what}: {reason}")


def _last_error(lines: Iterable[str]) -> str:
    found = ""
    for line in lines:
        try:
            entry = loads(line.encode())
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            found = str(entry.get("msg", "")) or found
    return found


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass

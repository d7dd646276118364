"""Our own OCI runtime as a handler: containers made by this very process.

It forks, so its caller must be single-threaded: the monitor, the zygote, or a command line. State is on disk
(:mod:`sampan.runtime.state`); any process may go on with a container that another made.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from sampan.cgroup import open_group
from sampan.errors import InvalidInput, NotFound, ProgramFailed, SampanError, StageFailed, WrongState
from sampan.linux.process import has_ended, pidfd_open, pidfd_send_signal
from sampan.runtime import trace
from sampan.runtime.handler import Created
from sampan.runtime.options import Options
from sampan.runtime.state import StateDir, document, dumps, loads, start_time, stopped, stopped_at
from sampan.spec.runtime_config import validate, validate_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroup import Group
    from sampan.runtime.checkpoint import Options as CheckpointOptions
    from sampan.runtime.handler import Stdio

_LARGEST_CONFIG = 16 << 20
_LOOK_MS, _START_LOOKS = 100, 600
_SIGKILL = 9
#: Those that end a created container, as they do runc's: HUP, INT, QUIT, ILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, TERM,
#: STKFLT and SYS (signal(7)).
_ENDS_CREATED = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 16, 31))
_STOP_OR_CONT = frozenset((18, 19))


class NativeHandler:
    """See :class:`sampan.runtime.handler.Handler`.

    Args:
        root: Directory of the containers' state.
        systemd_cgroup: Let systemd make cgroups.
        seccomp_cache: Directory in which compiled seccomp filters are kept, or empty.
        expendable: :meth:`create` is called in processes that live for it only: see :mod:`sampan.runtime.borrow`.
        warn: Is told what went wrong without an error: a hook by which nothing is decided any more. Standard error is
            told by default.
    """

    __slots__ = ("_expendable", "_warn", "root", "seccomp_cache", "systemd_cgroup")

    def __init__(
        self,
        root: str,
        *,
        systemd_cgroup: bool = False,
        seccomp_cache: str = "",
        expendable: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._expendable = expendable
        self._warn = warn or _warn
        self.root = root
        self.systemd_cgroup = systemd_cgroup
        self.seccomp_cache = seccomp_cache

    def create(
        self,
        container_id: str,
        bundle: str,
        stdio: Stdio,
        *,
        config: dict[str, Any] | None = None,
        options: Options | None = None,
    ) -> Created:
        """Make a container; its init is a child of the caller, who reaps it.

        Args:
            container_id: Its name under :attr:`root`.
            bundle: Directory of config.json; what the configuration names relatively starts there.
            stdio: Standard streams, when it has no terminal.
            config: The configuration, when the caller has it already; else it is read from the bundle.
            options: How it is made, beside what the configuration says.

        Raises:
            InvalidInput: The configuration is wrong: all faults, with their JSON paths.
            AlreadyExists: The name is taken.
            StageFailed: Something of it could not be made; nothing is left.
        """
        directory = StateDir(self.root, container_id)
        bundle = os.path.abspath(bundle)
        trace.step("read configuration", f"{bundle}/config.json")
        checked = validate(read_config(f"{bundle}/config.json") if config is None else config)
        if options is None:
            options = Options(
                systemd_cgroup=self.systemd_cgroup, seccomp_cache=self.seccomp_cache, expendable=self._expendable
            )
        from sampan.runtime.create import Creation

        return Creation(directory, bundle, checked, stdio, options, self._warn).run()

    def start(self, container_id: str) -> None:
        """Let a created container's program run; returns when it does.

        Raises:
            WrongState: It is not waiting to be started.
            StageFailed: The program could not be executed; the container has stopped.
        """
        directory = StateDir(self.root, container_id)
        record = directory.load()
        trace.step("start container")
        if start_time(record["pid"]) != record["start"] or not record["pid"]:
            raise WrongState(f"container {container_id!r} is not created but stopped")
        if record.get("empty"):
            # The specification wants an error and does not say where: as crun has it, the container ends.
            _kill_and_wait(record["pid"], self._group(record))
            self._warn("process is not set: nothing was run")
            return
        if not record.get("ungrouped") and self._group(record).frozen():
            raise WrongState(f"container {container_id!r} is paused", hint="resume it first")
        try:
            fifo = os.open(directory.file("exec.fifo"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise WrongState(f"container {container_id!r} is not created but running") from None
        try:
            report = os.open(directory.file("report.fifo"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _wake(fifo, container_id)
                message = _read_report(report, record["pid"], patient=_may_have(record, "startContainer"))
            finally:
                os.close(report)
        finally:
            os.close(fifo)
        directory.unlink("exec.fifo")
        directory.unlink("report.fifo")
        if message:
            raise _report_error(directory, message)
        self._run_hooks(directory, record, "poststart", "running")

    def exec(
        self,
        container_id: str,
        process: dict[str, Any],
        stdio: Stdio,
        *,
        watched: bool = False,
        bundle: str = "",  # noqa: ARG002 -- on record
        options: Options | None = None,
    ) -> Created:
        """Run one more process in a running container; it is a child of the caller, who reaps it.

        Args:
            container_id: The container.
            process: An OCI ``process`` object.
            stdio: Standard streams, when it has no terminal.
            watched: Another container in its PID namespace may trace processes, or a process that was exec'ed before.
            bundle: For handlers that keep no record of it.
            options: How it is made; ``watched`` is then said there.

        Raises:
            WrongState: The container is not running.
            StageFailed: The process could not be made.
        """
        from sampan.runtime.execute import execute

        directory = StateDir(self.root, container_id)
        record = directory.load()
        if options is None:
            options = Options(seccomp_cache=self.seccomp_cache, watched=watched)
        return execute(directory, record, process, stdio, options)

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """Signal the init, or with ``all`` each process of the container.

        SIGKILL ends a paused container too, and all of one without a PID namespace of its own: there the end of the
        init is not the end of the others. A created container is ended by what says stop, or tells of a fault; others
        leave it as it is.

        Raises:
            WrongState: The container has stopped.
        """
        directory = StateDir(self.root, container_id)
        record = directory.load()
        group = self._group(record)
        if signal and self._waits(directory):
            signal = _for_created(signal, is_first=not record.get("foreign_pids"))
        if all:
            group.kill(signal)
            return
        pid = record["pid"]
        try:
            pidfd = pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            pidfd = -1
        try:
            # Looked at after the pidfd was opened: then it is this process, and no later one of the same pid.
            if pidfd < 0 or start_time(pid) != record["start"]:
                raise WrongState(f"container {container_id!r} is not running")
            pidfd_send_signal(pidfd, signal)
            if signal == _SIGKILL:
                _end(group, all=bool(record.get("foreign_pids")))
        except PermissionError as error:
            hint = "its AppArmor profile, or another security module, lets it receive no signal from here"
            raise StageFailed(f"signal container {container_id!r}", error, hint=hint) from error
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove a stopped container; with ``force`` one in any state, or none.

        Raises:
            NotFound: There is none, without ``force``.
            WrongState: It is not stopped, or still being created, without ``force``.
        """
        directory = StateDir(self.root, container_id)
        try:
            record = directory.load()
        except NotFound:
            if not force:
                raise
            directory.remove()
            return
        trace.step("delete container")
        if not record["pid"] and not force:
            hint = "if nobody creates it any more, delete it with force"
            raise WrongState(f"container {container_id!r} is being created", hint=hint)
        alive = bool(record["pid"]) and start_time(record["pid"]) == record["start"]
        # A created container runs nothing yet: it may be deleted, as runc has it.
        if alive and not force and not self._waits(directory):
            raise WrongState(f"container {container_id!r} is running", hint="stop it, or delete it with force")
        group = self._group(record)
        if alive:
            _kill_and_wait(record["pid"], group)
        trace.step("remove cgroup", group.path)
        if group.exists():
            group.kill()
            group.remove()
        if "mount" in record:
            from sampan.runtime import shared_mounts

            shared_mounts.remove(record["mount"], record["rootfs"])
        self._run_hooks(directory, record, "poststop", "stopped")
        trace.step("remove state directory", directory.path)
        directory.remove()

    def checkpoint(self, container_id: str, options: CheckpointOptions) -> None:
        """Write a running container's state into files, through criu; it has stopped then, unless it is to go on.

        Raises:
            WrongState: It is not running.
            Unsupported: There is no criu that works here, or the container has what can't be carried over.
            StageFailed: criu failed, and the container goes on.
        """
        from sampan.runtime import checkpoint

        directory = StateDir(self.root, container_id)
        checkpoint.dump(directory, directory.load(), options)

    def restore(
        self,
        container_id: str,
        bundle: str,
        stdio: Stdio,
        restored: CheckpointOptions,
        *,
        config: dict[str, Any] | None = None,
        options: Options | None = None,
    ) -> Created:
        """Make a container from files that :meth:`checkpoint` wrote; it runs, and its init is a child of the caller.

        Raises:
            AlreadyExists: The name is taken.
            Unsupported: There is no criu that works here.
            StageFailed: criu failed; nothing is left.
        """
        from sampan.runtime import checkpoint

        directory = StateDir(self.root, container_id)
        bundle = os.path.abspath(bundle)
        checked = validate(read_config(f"{bundle}/config.json") if config is None else config)
        if options is None:
            options = Options(systemd_cgroup=self.systemd_cgroup)
        from sampan.runtime.borrow import may_trace
        from sampan.runtime.create import Creation, refuse_occupied

        record = Creation(directory, bundle, checked, stdio, options, self._warn).record
        group = self._group(record)
        refuse_occupied(group)
        directory.make()
        try:
            directory.store(record)
            directory.write("config.json", dumps(checked))
            resources = (checked.get("linux") or {}).get("resources") or {}
            trace.step("make cgroup", group.path)
            group.create()
            group.set(resources)
            group.set_devices(resources.get("devices") or [])
            record["pid"], record["start"] = checkpoint.restore(directory, record, checked, stdio, restored)
            directory.store(record)
        except BaseException as error:
            stage, path = trace.stage, trace.path
            if group.exists():
                group.kill()
                group.remove()
            directory.remove()
            if isinstance(error, OSError):
                raise StageFailed(stage, error, path=path) from error
            raise
        return Created(record["pid"], may_trace=may_trace(checked))

    def pause(self, container_id: str) -> None:
        """Freeze a running or created container."""
        record = self._alive(container_id)
        self._group(record).freeze()

    def resume(self, container_id: str) -> None:
        """Let a paused container go on."""
        record = self._alive(container_id)
        group = self._group(record)
        if not group.frozen():
            raise WrongState(f"container {container_id!r} is not paused")
        group.thaw()

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Change limits; what is absent from ``resources`` stays, and all does if one is refused."""
        record = self._alive(container_id)
        self._group(record).set(validate_resources(resources), undo=True)

    def stats(self, container_id: str) -> dict[str, Any]:
        """Figures of the container's cgroup."""
        return self._group(self._alive(container_id)).stats()

    def pids(self, container_id: str) -> list[int]:
        """Every process of the container, in the caller's PID namespace."""
        return self._group(StateDir(self.root, container_id).load()).pids()

    def state(self, container_id: str) -> dict[str, Any]:
        """The state document; status is creating, created, running, paused or stopped."""
        directory = StateDir(self.root, container_id)
        record = directory.load()
        status = self._status(directory, record)
        return document(record, status)

    def config(self, container_id: str) -> dict[str, Any]:
        """The configuration that the container was made with."""
        return StateDir(self.root, container_id).load("config.json")

    def list(self) -> list[dict[str, Any]]:
        """The state of every container under :attr:`root`; one that is going away meanwhile is left out."""
        try:
            names = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []
        states = []
        for name in names:
            try:
                states.append(self.state(name))
            except (SampanError, NotADirectoryError):
                continue
        return states

    def group(self, container_id: str) -> Group:
        """The container's cgroup."""
        return self._group(StateDir(self.root, container_id).load())

    def _group(self, record: dict[str, Any]) -> Group:
        return open_group(record["cgroup"], systemd=record["systemd"])

    def _alive(self, container_id: str) -> dict[str, Any]:
        record = StateDir(self.root, container_id).load()
        if not record["pid"] or start_time(record["pid"]) != record["start"]:
            raise WrongState(f"container {container_id!r} is not running")
        return record

    def _waits(self, directory: StateDir) -> bool:
        """Whether the init waits to be started: it alone reads the fifo, and lets go of it when it goes on."""
        try:
            os.close(os.open(directory.file("exec.fifo"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _status(self, directory: StateDir, record: dict[str, Any]) -> str:
        if not record["pid"]:
            return "creating"
        if start_time(record["pid"]) != record["start"]:
            return "stopped"
        if self._group(record).frozen():
            return "paused"
        return "created" if self._waits(directory) else "running"

    def _run_hooks(self, directory: StateDir, record: dict[str, Any], kind: str, status: str) -> None:
        """Run poststart or poststop hooks.

        A poststop hook comes too late to undo anything: its failure is the log's. So is a poststart hook's until
        version 1.3 of the specification, which has it stop the container.
        """
        if not _may_have(record, kind):
            return
        from sampan.runtime import hooks

        chosen = (directory.load("config.json").get("hooks") or {}).get(kind) or []
        state = {key: record[key] for key in ("ociVersion", "id", "pid", "bundle", "annotations")}
        state["status"] = status
        if status == "stopped":
            state["pid"] = 0
        if kind != "poststart" or _version(record["ociVersion"]) < (1, 3):
            hooks.run_each(kind, chosen, state, self._warn)
            return
        try:
            for hook in chosen:
                hooks.run(kind, [hook], state)
        except StageFailed:
            try:
                self.kill(directory.container_id, _SIGKILL)
            except SampanError:
                pass  # it has ended by itself; what went wrong first is what counts
            raise


def _warn(message: str) -> None:
    os.write(2, f"sampan-runtime: {message}\n".encode("utf-8", "surrogateescape"))


def _may_have(record: dict[str, Any], kind: str) -> bool:
    """Whether a container has hooks of a kind; its configuration says of one that an older version made."""
    return kind in record.get("hooks", (kind,))


def _version(text: str) -> tuple[int, int]:
    major, minor, _ = text.split(".", 2)
    return int(major), int(minor)


def read_config(path: str) -> object:
    """A configuration file, parsed and not yet validated.

    Raises:
        NotFound: There is none.
        InvalidInput: It is too large, or not JSON.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            most = min(status.st_size, _LARGEST_CONFIG) if stat.S_ISREG(status.st_mode) else _LARGEST_CONFIG
            content = file.read(most + 1)
    except FileNotFoundError:
        raise NotFound(
            f"{path} does not exist", hint="a bundle holds a config.json: see `sampan-runtime spec`"
        ) from None
    except OSError as error:
        raise StageFailed("read configuration", error, path=path) from error
    if len(content) > _LARGEST_CONFIG:
        raise InvalidInput(f"{path} is larger than {_LARGEST_CONFIG >> 20} MiB")
    try:
        return loads(content)
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from None


def _wake(fifo: int, container_id: str) -> None:
    try:
        os.write(fifo, b"\n")
    except BrokenPipeError:
        raise WrongState(f"container {container_id!r} has just ended") from None


def _read_report(fd: int, pid: int, *, patient: bool) -> bytes:
    """What the starting program says before it is another one: nothing, or an errno and a text.

    Args:
        fd: The report fifo; its end comes when the program runs, or when its process has died.
        pid: That process. It is killed if it was stopped: it would never run.
        patient: Wait without bound: hooks with time limits of their own run first.

    Raises:
        StageFailed: Nothing happened for a minute, the container may be frozen; or a signal stopped it.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    message = b""
    looks = 0
    while patient or looks < _START_LOOKS:
        if not poll.poll(_LOOK_MS):
            looks += 1
            if stopped(pid) and not poll.poll(0):  # not by itself, as soon as it ran
                os.kill(pid, _SIGKILL)
                raise stopped_at("wait for the program to run")
            continue
        chunk = os.read(fd, 4096)
        if not chunk:
            return message
        message += chunk
    cause = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    raise StageFailed("wait for the program to run", cause, hint="is the container paused?")


def _report_error(directory: StateDir, message: bytes) -> ProgramFailed:
    import sys

    args = directory.load("config.json")["process"]["args"]
    number = int.from_bytes(message[:4], sys.byteorder)
    text = message[4:].decode("utf-8", "replace") or os.strerror(number)
    return ProgramFailed(f"execute {args[0]!r}", OSError(number, text))


def _kill_and_wait(pid: int, group: Group) -> None:
    """SIGKILL, and wait for the end: of our own child too, which stays for its parent to reap."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        try:
            pidfd_send_signal(pidfd, _SIGKILL)
            _end(group)
        except PermissionError:
            # A security module's verdict on signals; where the kernel kills a whole group it asks none.
            group.kill()
        has_ended(pidfd, 10_000)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _for_created(signal: int, *, is_first: bool) -> int:
    """What is sent to a container's process for ``signal`` while it waits to be started, and handles none itself.

    Args:
        signal: The one asked for.
        is_first: It is process 1 of its namespace, from which the kernel keeps all that would end it but SIGKILL.
    """
    if signal in _ENDS_CREATED:
        return _SIGKILL if is_first else signal
    return signal if signal in _STOP_OR_CONT else 0


def _end(group: Group, *, all: bool = False) -> None:
    """After the init was killed: kill all, if asked; and let them die, which a frozen group of cgroup v1 does not."""
    try:
        if all:
            group.kill()
        if group.frozen():
            group.thaw()
    except (OSError, StageFailed) as error:
        # Who waits for their end may have removed the group already.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise

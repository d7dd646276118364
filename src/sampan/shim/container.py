"""One container of a monitor: its streams, its processes, its end."""

from __future__ import annotations

import os
import time

from sampan.cgroup import open_group
from sampan.errors import SampanError, StageFailed, WrongState
from sampan.runtime.handler import Stdio
from sampan.shim.attach import Attachment
from sampan.shim.execs import Exec, kill_group
from sampan.shim.exits import Exit, write_exit
from sampan.shim.logfile import LogFile
from sampan.shim.pipes import Pipes
from sampan.shim.stdio import Output
from sampan.shim.streams import Sink
from sampan.wire import crilog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroup import Group, OomWatch
    from sampan.runtime.handler import Handler
    from sampan.shim.journal import Journal
    from sampan.shim.loop import Loop
    from sampan.shim.service import Call

#: Seconds that output may still come after a container's end, from a process of it that outlived it.
_LINGER = 1.0
#: Seconds until an end that could not be recorded is tried to be recorded again.
_RECORD_AGAIN = 1.0
#: Ended execs whose exit status is kept for a late question: those that were asked about before, and those that were
#: not yet, as when hundreds of sessions end at once and each has still output to deliver.
_KEPT_EXECS = 32
_KEPT_UNASKED = 2048


class Settings:
    """How a container is to be run, from the ``create`` request."""

    __slots__ = ("bundle", "cgroup", "log_path", "max_line", "stdin", "stdin_once", "systemd", "tty")

    def __init__(self, call: Call, max_line: int) -> None:
        self.bundle = call.text("bundle")
        self.tty = call.flag("tty")
        self.stdin = call.flag("stdin")
        self.stdin_once = call.flag("stdin_once")
        self.log_path = call.text("log_path", "")
        self.cgroup = call.text("cgroup", "")
        self.systemd = call.flag("systemd")
        self.max_line = max_line


class Container:
    """A container from its creation to its deletion. States: created, running, paused, exited.

    Args:
        loop: The event loop.
        journal: Where its events go.
        handler: The OCI runtime that runs it.
        directory: The pod's folder.
        container_id: Its id.
        settings: From the request.
    """

    def __init__(
        self, loop: Loop, journal: Journal, handler: Handler, directory: str, container_id: str, settings: Settings
    ) -> None:
        self._loop = loop
        self._journal = journal
        self._handler = handler
        self._directory = directory
        self.id = container_id
        self.settings = settings
        self.state = "creating"
        self.created_at = time.time_ns()
        self.started_at = 0
        self.pid = 0
        self.ended: Exit | None = None
        self.execs: dict[str, Exec] = {}
        self.waiters: list[Callable[[Exit], None]] = []
        self._exec_count = 0
        self._outputs: dict[str, Output] = {}
        self._stdin: Sink | None = None
        self._console = -1
        self._attachments: list[Attachment] = []
        self._group: Group | None = open_group(settings.cgroup, systemd=settings.systemd) if settings.cgroup else None
        self._log = LogFile(settings.log_path)
        self._watch: OomWatch | None = None
        self._out_of_memory = False
        self._own_pids = False
        #: Why its program could not be run.
        self._refusal = ""
        #: A process of it may trace others that it sees: one of the first program's, or an exec.
        self._may_trace = False
        self._deleted = False

    def create(self) -> None:
        """Make it, with pipes or a pty for its streams.

        Raises:
            SampanError: The runtime refused; nothing is left.
        """
        pipes = Pipes(stdin=self.settings.stdin, outputs=not self.settings.tty)
        try:
            created = self._handler.create(self.id, self.settings.bundle, pipes.container_side())
        except BaseException:
            pipes.close()
            self._log.close()
            raise
        self.pid = created.pid
        self._may_trace = created.may_trace
        self.state = "created"
        pipes.close_container_side()
        if created.console >= 0:
            pipes.close()
            self._take_console(created.console)
        else:
            self._take_pipes(pipes)
        self._own_pids = _is_init(self.pid)
        self._watch_memory()
        self._journal.publish("create", self.id, pid=self.pid)

    def start(self) -> None:
        """Let its program run."""
        if self.state != "created":
            raise WrongState(f"container {self.id} is {self.state}, not created")
        try:
            self._handler.start(self.id)
        except StageFailed as error:
            self._refusal = str(error)
            raise
        self.started_at = time.time_ns()
        self.state = "running"
        self._journal.publish("start", self.id, pid=self.pid)

    def sees(self, other: Container) -> bool:
        """Whether processes of it may trace those of another container, or of itself, while we make them."""
        return self._may_trace and (self is other or not (self._own_pids and other._own_pids))

    def exec(self, call: Call, *, watched: bool) -> tuple[Exec, int]:
        """Run one more process on the descriptors that came with ``call``; returns it and its pty's master or -1.

        ``watched``: a container :meth:`sees` it.
        """
        self._check_running()
        exec_id = call.text("exec_id", "") or self._next_exec_id()
        if exec_id in self.execs and self.execs[exec_id].ended is None:
            raise WrongState(f"container {self.id} has an exec {exec_id} already")
        streams = call.streams()
        try:
            process, stdio = call.document("process"), Stdio(**streams)
            created = self._handler.exec(self.id, process, stdio, watched=watched, bundle=self.settings.bundle)
        finally:
            for fd in streams.values():
                os.close(fd)
        self._may_trace = self._may_trace or created.may_trace
        made = Exec(exec_id, created.pid)
        timeout = call.number("timeout", 0)
        if timeout > 0:
            made.timer = self._loop.later(timeout, made.kill_group)
        self.execs[exec_id] = made
        self._journal.publish("exec-start", self.id, exec_id=exec_id, pid=made.pid)
        return made, created.console

    def attach(self, call: Call) -> None:
        """Connect the descriptors that came with ``call`` to the streams; answers it."""
        if self.state == "exited":
            raise WrongState(f"container {self.id} has exited")
        streams = call.streams()

        def detached(reason: str) -> None:
            self._attachments.remove(attachment)
            call.event({"event": "detached", "reason": reason})

        attachment = Attachment(self._loop, detached)

        def hung_up() -> None:
            if attachment in self._attachments:
                self._attachments.remove(attachment)
                attachment.hang_up()

        call.reply({"tty": self.settings.tty})
        self._attachments.append(attachment)
        call.on_hangup(hung_up)
        for name in ("stdout", "stderr"):
            fd = streams.pop(name, -1)
            if fd < 0:
                continue
            if name in self._outputs:
                attachment.add_output(self._outputs[name], fd, patient=call.flag("patient"))
            else:
                os.close(fd)
        fd = streams.pop("stdin", -1)
        if fd >= 0:
            if self._stdin is not None and self._stdin.fd >= 0:
                attachment.set_input(fd, self._stdin, self._input_ended)
            else:
                os.close(fd)
        if not self._outputs:
            attachment.finish("the container has closed its output")

    def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal."""
        if self._console < 0:
            raise WrongState(f"container {self.id} has no terminal")
        from sampan.linux import pty

        pty.resize(self._console, height, width)

    def close_stdin(self) -> None:
        """Let the container see the end of its input once it has read what was sent."""
        if self._stdin is not None and not self.settings.tty:
            self._stdin.finish()

    def signal(self, signal: int, *, all: bool, exec_id: str) -> None:
        """Signal its init, all of its processes, or an exec (with ``all``, its process group)."""
        if exec_id:
            found = self.find_exec(exec_id)
            if found.ended is not None:
                raise WrongState(f"exec {exec_id} has exited")
            if all:
                kill_group(found.pid, signal)
            else:
                os.kill(found.pid, signal)
            return
        if self.state == "exited" and not all:
            raise WrongState(f"container {self.id} has exited")
        self._handler.kill(self.id, signal, all=all)

    def kill_all(self) -> None:
        """End every process of it, whatever state it is in; never fails."""
        try:
            if self._group is not None:
                self._group.kill(9)
            else:
                self._handler.kill(self.id, 9, all=True)
        except (SampanError, OSError):
            pass
        if self.ended is None and self.pid:
            try:
                os.kill(self.pid, 9)  # our child, and not reaped yet: the pid is its own
            except ProcessLookupError:
                pass

    def find_exec(self, exec_id: str) -> Exec:
        """One of its execs.

        Raises:
            NotFound: It has none of that name, or forgot it.
        """
        from sampan.errors import NotFound

        found = self.execs.get(exec_id)
        if found is None:
            raise NotFound(f"container {self.id} has no exec {exec_id}")
        return found

    def reopen_log(self) -> None:
        """Go on in a new file at the log's path."""
        self._log.reopen()

    def reaped(self, pid: int, status: int) -> bool:
        """A child has ended: whether it was one of this container's, whose end is then recorded and told."""
        now = time.time_ns()
        if pid == self.pid and self.ended is None:
            self._finish(Exit.of_status(status, now))
            return True
        for found in self.execs.values():
            if found.pid == pid and found.ended is None:
                ended = Exit.of_status(status, now)
                found.finish(ended)
                self._journal.publish("exec-exit", self.id, exec_id=found.id, pid=pid, **_outcome(ended))
                self._forget_old_execs()
                return True
        return False

    def delete(self) -> None:
        """Remove what the runtime keeps of it, and end its streams. It has exited."""
        self._handler.delete(self.id, force=True)
        self._deleted = True
        self._close_streams()
        self._unwatch_memory()
        self._log.close()
        self._journal.publish("delete", self.id)

    def describe(self) -> dict[str, Any]:
        """For ``info``."""
        return {
            "id": self.id,
            "pid": self.pid,
            "state": self.state,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "log_path": self._log.path,
            "log_lost": self._log.lost,
            "tty": self.settings.tty,
            "exit": self.ended.as_dict() if self.ended is not None else None,
            "execs": [{"id": e.id, "pid": e.pid} for e in self.execs.values() if e.ended is None],
        }

    def _check_running(self) -> None:
        if self.state not in ("running", "paused"):
            raise WrongState(f"container {self.id} is {self.state}, not running")

    def _finish(self, ended: Exit) -> None:
        ended.started_at, ended.refusal = self.started_at, self._refusal
        if self._group is not None:
            # systemd removes the group of a scope as soon as its last process is dead: what was seen counts too.
            self._look_for_kills(0)
            ended.oom_killed = self._out_of_memory or self._oom_kills() > 0
        if not self._own_pids:
            self.kill_all()  # with a PID namespace of its own the kernel has done so
        for output in tuple(self._outputs.values()):
            output.drain()
        self.ended = ended
        self.state = "exited"
        self._record_end()
        if self._stdin is not None:
            self._stdin.close()
        self._unwatch_memory()
        self._journal.publish("exit", self.id, pid=self.pid, **_outcome(ended))
        waiters, self.waiters = self.waiters, []
        for tell in waiters:
            tell(ended)
        if self._outputs:
            self._loop.later(_LINGER, self._close_streams)

    def _record_end(self) -> bool:
        """Write how it ended; whether that worked.

        A disk that takes nothing ends neither the monitor nor anybody's wait: the end is then told from memory, and
        written as soon as there is room.
        """
        assert self.ended is not None
        try:
            write_exit(self._directory, self.id, self.ended)
        except OSError:
            self._loop.later(_RECORD_AGAIN, self._record_end_late)
            return False
        return True

    def _record_end_late(self) -> None:
        if self.ended is not None and not self._deleted and self._record_end():
            # Told once more: who looked for the record when it was told first has not found it.
            self._journal.publish("exit", self.id, pid=self.pid, **_outcome(self.ended))

    def _oom_kills(self) -> int:
        try:
            return self._group.oom_kills() if self._group is not None else 0
        except (SampanError, OSError):
            return 0

    def _watch_memory(self) -> None:
        """Learn of an OOM kill when it happens. Where it can't be watched, the count at the end is all there is."""
        if self._group is None:
            return
        try:
            self._watch = self._group.oom_watch()
            self._loop.watch(self._watch.fd, self._watch.events, self._look_for_kills)
        except (SampanError, OSError):
            self._unwatch_memory()

    def _unwatch_memory(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._loop.forget(watch.fd)
            watch.close()

    def _look_for_kills(self, _: int) -> None:
        if self._watch is None:
            return
        before = self._watch.seen
        if self._watch.drain() > before:
            self._out_of_memory = True
            self._journal.publish("oom", self.id)

    def _take_console(self, console: int) -> None:
        self._console = console
        self._stdin = Sink(self._loop, os.dup(console), _ignore, patience=0)
        self._add_output("stdout", os.dup(console), tty=True)

    def _take_pipes(self, pipes: Pipes) -> None:
        if pipes.stdin >= 0:
            self._stdin = Sink(self._loop, pipes.stdin, _ignore, patience=0)
        if pipes.stdout >= 0:
            self._add_output("stdout", pipes.stdout)
            self._add_output("stderr", pipes.stderr)

    def _add_output(self, name: str, fd: int, *, tty: bool = False) -> None:
        encoder = crilog.Encoder(name, self.settings.max_line)
        self._outputs[name] = Output(self._loop, fd, encoder, self._log, lambda: self._output_ended(name), tty=tty)

    def _output_ended(self, name: str) -> None:
        del self._outputs[name]
        if not self._outputs:
            for attachment in tuple(self._attachments):
                attachment.finish("the container has closed its output")

    def _input_ended(self) -> None:
        if self.settings.stdin_once:
            self.close_stdin()

    def _close_streams(self) -> None:
        for output in tuple(self._outputs.values()):
            output.close()
        if self._stdin is not None:
            self._stdin.close()
        if self._console >= 0:
            os.close(self._console)
            self._console = -1

    def _next_exec_id(self) -> str:
        self._exec_count += 1
        return f"exec-{self._exec_count}"

    def _forget_old_execs(self) -> None:
        for asked, kept in ((True, _KEPT_EXECS), (False, _KEPT_UNASKED)):
            ended = [e for e in self.execs.values() if e.ended is not None and e.asked is asked]
            for old in ended[:-kept]:
                del self.execs[old.id]


def _is_init(pid: int) -> bool:
    """Whether a process is the first of its PID namespace, so that the others there end with it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    numbers = line.split()[1:]
                    return len(numbers) > 1 and numbers[-1] == b"1"
    except OSError:
        pass
    return False


def _outcome(ended: Exit) -> dict[str, Any]:
    return {
        "exit_code": ended.exit_code,
        "signal": ended.signal,
        "oom_killed": ended.oom_killed,
        "timed_out": ended.timed_out,
        "finished_at": ended.finished_at,
    }


def _ignore(_: str) -> None:
    """A container that closed its input is no event."""

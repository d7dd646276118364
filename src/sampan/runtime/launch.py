"""The runtime's side of making a process: clone it, answer what it asks, and wait until it is the program."""

from __future__ import annotations

import errno
import os

from sampan.errors import StageFailed
from sampan.linux.process import pidfd_getfd, pidfd_open
from sampan.runtime import channel as talk
from sampan.runtime import trace
from sampan.runtime.state import stopped, stopped_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.runtime.channel import Channel


#: Milliseconds without a word after which a process is looked at.
_LOOK = 100


class Launch:
    """One process on its way.

    Attributes:
        pid: Its pid once it is known, or 0.
        console: The master of its terminal, or -1.
        warnings: What was done less well than asked.
        answers: Letter -> what to do when the child asks for it, before it is told to go on.
        silent: It ended without having said why.
    """

    __slots__ = ("answers", "channel", "console", "middle", "pid", "silent", "warnings")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        channel.set_patience(_LOOK)
        self.pid = 0
        self.middle = 0
        self.console = -1
        self.warnings: list[str] = []
        self.answers: dict[str, Callable[[int], None]] = {}
        self.silent = False

    def follow(self) -> None:
        """Serve the child until it is the program.

        Raises:
            StageFailed: It could not become that; it is killed and reaped.
        """
        ready = False
        while True:
            try:
                letter, fields, fd = self.channel.receive()
            except BlockingIOError:
                self._refuse_stopped()
                continue
            if not letter:
                break
            if letter == talk.READY:
                ready = True
            elif letter == talk.FAILED:
                raise talk.error_of(fields)
            else:
                self._serve(letter, fields, fd)
        self._reap_middle()
        if not ready:
            self.silent = True
            raise StageFailed("set up container", OSError(0, "the init ended without a word"))
        trace.step("container is set up")

    def _refuse_stopped(self) -> None:
        """Whoever is in the process's PID namespace may signal it as soon as it is there: it would never go on."""
        # Not by itself, as soon as it was the program.
        if self.pid and stopped(self.pid) and self.channel.silent():
            raise stopped_at(trace.stage)

    def _serve(self, letter: str, fields: tuple[object, ...], fd: int) -> None:
        if letter == talk.BORN:
            self.pid = int(fields[0])  # type: ignore[call-overload]
            self._reap_middle()
            self.answers[talk.BORN](-1)
        elif letter == talk.CONSOLE:
            self.console = fd
        elif letter == talk.WARNING:
            self.warnings.append(str(fields[0]))
        elif letter == talk.TRACE:
            trace.give(fields[0])  # type: ignore[arg-type]
        elif letter == talk.LISTENER and fd < 0:
            self._take_listener(*fields)  # type: ignore[arg-type]
        else:
            try:
                self.answers[letter](fd)
            finally:
                if fd >= 0:
                    os.close(fd)
            self.channel.send(talk.GO)

    def _take_listener(self, number: int, beside: bool) -> None:
        """Take the listener out of the process that loaded the filter, which can't send what the filter itself stops.

        Where we may not, for want of CAP_SYS_PTRACE or by a filter of our own, it is sent after all.
        """
        trace.step("take seccomp listener")
        try:
            fd = self._descriptor(number)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                raise
            if not beside:
                hint = "without CAP_SYS_PTRACE the filter must not notify of sendmsg or recvmsg"
                raise StageFailed(trace.stage, error, hint=hint) from error
            self.channel.send(talk.BESIDE)
            return
        self._serve(talk.LISTENER, (), fd)

    def _descriptor(self, number: int) -> int:
        # Before it is born, the process between is what will be executed, filter and all.
        pidfd = pidfd_open(self.pid or self.middle)
        try:
            return pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)

    def _reap_middle(self) -> None:
        pid, self.middle = self.middle, 0
        if pid:
            os.waitpid(pid, 0)

    def abort(self) -> None:
        """Kill what was made, and reap it."""
        if self.console >= 0:
            os.close(self.console)
            self.console = -1
        pid, self.pid = self.pid, 0
        for one in (self.middle, pid):
            if one:
                try:
                    os.kill(one, 9)
                    os.waitpid(one, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass
        self.middle = 0


def set_oom_score(pid: int | str, adjust: int) -> str:
    """Set how willingly the kernel kills ``pid`` for want of memory; what it refused is returned as text."""
    path = f"/proc/{pid}/oom_score_adj"
    trace.step(f"set oom_score_adj to {adjust}", path)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(adjust).encode())
    except PermissionError:
        return f"oom_score_adj is not lowered to {adjust}: that needs CAP_SYS_RESOURCE"
    finally:
        os.close(fd)
    return ""

"""Waiting for a process in the foreground: signals go to it, its terminal is joined with ours."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations
import os
import select

from sampan.linux import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.runtime_terminal import Relay
    from sampan.runtime.handler import Created

#: Not passed on: what can't be, the C library's own, what is about our children, and about our window.
_OURS = frozenset((_signal.SIGKILL, _signal.SIGSTOP, 32, 33, _signal.SIGCHLD, _signal.SIGWINCH))
_PASSED_ON = frozenset(range(1, 65)) - _OURS


class Foreground:
    """Keeps signals from the moment it is made, and passes them on while it waits.

    Args:
        created: The process, a child of ours; its console, if it has one, is ours to close.
    """

    __slots__ = ("_pid", "_relay", "_signals")

    def __init__(self, created: Created) -> None:
        self._pid = created.pid
        self._relay: Relay | None = None
        if created.console >= 0:
            from sampan.cli.runtime_terminal import Relay

            # Now, and not in wait(): the program is to find its terminal as large as ours.
            self._relay = Relay(created.console)
        # Not by handlers: of a fault of our own, for which one returns, there would be no end.
        self._signals = signals.receive(_PASSED_ON | {_signal.SIGCHLD})

    def wait(self) -> int:
        """Wait for the end; the exit code as a shell has it: 128 and more for a signal."""
        try:
            status = self._wait()
        finally:
            if self._relay is not None:
                self._relay.close()
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _wait(self) -> int:
        status = self._reap()  # it may have ended before its end was told
        while status is None:
            poll = select.poll()
            poll.register(self._signals, select.POLLIN)
            if self._relay is not None:
                self._relay.register(poll)
            ready = dict(poll.poll())
            if self._relay is not None:
                self._relay.carry(ready)
            if self._signals in ready:
                self._pass_on()
                status = self._reap()
        if self._relay is not None:
            self._relay.drain()
        return status

    def _pass_on(self) -> None:
        us = os.getpid()
        for number, sender in signals.take(self._signals):
            # We ourselves get a SIGPIPE where our output has no reader any more.
            if number == _signal.SIGCHLD or sender == us:
                continue
            try:
                os.kill(self._pid, number)  # our unreaped child: the pid is its
            except ProcessLookupError:
                pass

    def _reap(self) -> int | None:
        """Reap children that have ended, orphans that came to us among them; the process's wait status, if it has."""
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == self._pid:
                return status
            if not ended:
                return None


def console_size() -> dict[str, int] | None:
    """The size of our terminal as OCI ``process.consoleSize``; None without one."""
    if not os.isatty(0):
        return None
    columns, lines = os.get_terminal_size(0)
    return {"height": lines, "width": columns}

"""Waiting for a process in the foreground: signals go to it, its terminal is joined with ours."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.runtime_terminal import Relay
    from sampan.runtime.handler import Created

# Not passed on: those that cannot be caught, that are about ourselves, or that a fault of our own would raise.
_OURS = frozenset(
    (
        _signal.SIGKILL,
        _signal.SIGSTOP,
        _signal.SIGCHLD,
        _signal.SIGPIPE,
        _signal.SIGURG,
        _signal.SIGSEGV,
        _signal.SIGBUS,
        _signal.SIGILL,
        _signal.SIGFPE,
        _signal.SIGWINCH,
    )
)
_LAST_SIGNAL = 64


class Foreground:
    """Passes signals on from the moment it is made.

    Args:
        created: The process, a child of ours; its console, if it has one, is ours to close.
    """

    __slots__ = ("_pid", "_relay")

    def __init__(self, created: Created) -> None:
        self._pid = created.pid
        self._relay: Relay | None = None
        if created.console >= 0:
            from sampan.cli.runtime_terminal import Relay

            # Now, and not in wait(): the program is to find its terminal as large as ours.
            self._relay = Relay(created.console)
        for number in range(1, _LAST_SIGNAL + 1):
            if number not in _OURS and number not in (32, 33):  # the C library's own
                _signal.signal(number, self._forward)

    def _forward(self, number: int, _: object) -> None:
        try:
            os.kill(self._pid, number)  # our unreaped child: the pid is its
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Wait for the end; the exit code as a shell has it: 128 and more for a signal."""
        if self._relay is None:
            status = reap_until(self._pid)
        else:
            try:
                status = self._relay.run(self._pid)
            finally:
                self._relay.close()
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def console_size() -> dict[str, int] | None:
    """The size of our terminal as OCI ``process.consoleSize``; None without one."""
    if not os.isatty(0):
        return None
    columns, lines = os.get_terminal_size(0)
    return {"height": lines, "width": columns}


def reap_until(pid: int) -> int:
    """Reap children, orphans that came to us among them, until ``pid`` has ended; its wait status."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return status

"""Joining our terminal with a container's: bytes both ways, the window's size, raw mode while it lasts."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations
import os
import select
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 65536


class Relay:
    """Carries bytes between our standard streams and the master side of a pty, which it closes."""

    __slots__ = ("_input_open", "_master", "_pending", "_saved", "_terminal_open", "_unsaid")

    def __init__(self, master: int) -> None:
        self._master = master
        #: Read from our input, and not yet taken by the container's terminal.
        self._pending = b""
        #: Read from the container's terminal, and not yet shown.
        self._unsaid = b""
        self._input_open = True
        self._terminal_open = True
        self._saved: list[Any] | None = None
        # A program that does not read its input holds up neither its own output nor the news of its end.
        os.set_blocking(master, False)
        if os.isatty(0):
            self._saved = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSADRAIN, _raw(self._saved))
            self._resize()
            _signal.signal(_signal.SIGWINCH, self._resize)

    def _resize(self, *_: object) -> None:
        try:
            termios.tcsetwinsize(self._master, termios.tcgetwinsize(0))
        except OSError:
            pass  # the container's terminal is gone already

    def register(self, poll: select.poll) -> None:
        """Have ``poll`` wait for something to carry; nothing further is read while what was read before has no room."""
        if self._unsaid:
            poll.register(1, select.POLLOUT)
        if self._terminal_open:
            events = (0 if self._unsaid else select.POLLIN) | (select.POLLOUT if self._pending else 0)
            if events:
                poll.register(self._master, events)
        if self._input_open and not self._pending:
            poll.register(0, select.POLLIN)

    def carry(self, ready: dict[int, int]) -> None:
        """Carry what there is, of what poll(2) found ready."""
        events = ready.get(self._master, 0)
        if events & select.POLLOUT:
            self._to_container()
        if 1 in ready:
            self._say()
        elif events & ~select.POLLOUT:
            self._hear()
        if 0 in ready:
            self._take_input()

    def drain(self) -> None:
        """Show what was written before the end; others may hold the terminal open, so its end is not waited for."""
        poll = select.poll()
        poll.register(1, select.POLLOUT)
        while self._unsaid or self._hear():
            poll.poll()
            self._say()

    def _hear(self) -> bool:
        """Take what the container wrote; whether there was something."""
        try:
            self._unsaid = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: no process has the terminal
            pass
        if not self._unsaid:
            self._terminal_open = False
            self._pending = b""
        return bool(self._unsaid)

    def _say(self) -> None:
        """Show some of it: as much as the one who waits for signals meanwhile need not wait for (pipe(7))."""
        try:
            self._unsaid = self._unsaid[os.write(1, self._unsaid[: select.PIPE_BUF]) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsaid = b""  # the reader is gone; the process is not to be stopped by that

    def _take_input(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""
        self._input_open = bool(data)
        if self._terminal_open:
            self._pending = data
            self._to_container()

    def _to_container(self) -> None:
        try:
            self._pending = self._pending[os.write(self._master, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""  # nobody has the terminal: the process is not to be stopped by that

    def close(self) -> None:
        """Close the pty and give our terminal its mode back; a second call does nothing."""
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
            self._saved = None
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def _raw(mode: list[Any]) -> list[Any]:
    """The mode as cfmakeraw(3) changes it: the container's terminal does all processing."""
    raw = [*mode[:6], list(mode[6])]
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    return raw

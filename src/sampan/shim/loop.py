"""The monitor's event loop: descriptors, timers and ended children, one thread, epoll(7)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
#: Reported by the kernel whether asked for or not.
HANGUP = select.EPOLLHUP | select.EPOLLERR
#: Seconds after which what comes next is taken to have nothing to do with what was before.
QUIET = 0.15
#: Seconds that one wait may take: epoll_wait(2) counts milliseconds in 31 bits.
_LONGEST = 86_400.0


class Timer:
    """A call at a later time."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Don't call; no error if it was."""
        self.call = None


class Loop:
    """Calls back what is ready; callbacks must not block.

    Args:
        on_child: Called with the pid and the wait status of each child that has ended, ours or adopted.
        on_quiet: Called when something happened and then, for :data:`QUIET` seconds, nothing.
    """

    def __init__(self, on_child: Callable[[int, int], None], on_quiet: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._on_child = on_child
        self._on_quiet = on_quiet
        self._stirred = False
        self._running = False
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A handler and not a blocked signal: a container's init would inherit the mask, and not the handler.
        _signal.signal(_signal.SIGCHLD, _nothing)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.watch(self._wake, READABLE, self._reap)

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call`` with what is ready, whenever any of ``events`` is (level-triggered).

        Raises:
            PermissionError: The file can't be waited for: it is always ready.
        """
        if fd in self._calls:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """No longer watch ``fd``; to be called before it is closed. No error if it is not watched."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether ``fd`` is watched."""
        return fd in self._calls

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once after ``seconds``."""
        timer = Timer(time.monotonic() + seconds, call)
        self._timers.append(timer)
        return timer

    def run(self) -> None:
        """Until :meth:`stop`. Children that ended before are seen at once."""
        self._running = True
        self._reap(READABLE)
        while self._running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for something, and call back what is ready."""
        ready = self._epoll.poll(self._timeout())
        for fd, events in ready:
            call = self._calls.get(fd)  # an earlier callback of this round may have forgotten it
            if call is not None:
                call(events)
        if self._timers:
            self._fire()
        elif ready:
            self._stirred = True
        elif self._stirred:
            self._stirred = False
            self._on_quiet()

    def close(self) -> None:
        """Let go of the descriptors and the signal; what is watched stays its owner's to close."""
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.close(_signal.set_wakeup_fd(-1))
        os.close(self._wake)
        self._epoll.close()

    def stop(self) -> None:
        """Return from :meth:`run` after the present round."""
        self._running = False

    def _timeout(self) -> float | None:
        if not self._timers:
            return QUIET if self._stirred else None
        return max(0.0, min(_LONGEST, min(timer.at for timer in self._timers) - time.monotonic()))

    def _fire(self) -> None:
        now = time.monotonic()
        due = [timer for timer in self._timers if timer.at <= now or timer.call is None]
        if not due:
            return
        self._timers = [timer for timer in self._timers if timer not in due]
        for timer in due:
            call, timer.call = timer.call, None
            if call is not None:
                call()
        self._stirred = True

    def _reap(self, _: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._on_child(pid, status)


def _nothing(*unused: object) -> None:
    """Let the signal interrupt a wait, and be written to the wake-up descriptor."""

"""Ending a wait from another thread, when nobody wants its result any more."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Cancellation:
    """Whether something was cancelled, and what is to be done then at once. Threads may share one."""

    __slots__ = ("_calls", "_lock", "cancelled")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._calls: list[Callable[[], None]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """Cancel; a second call does nothing."""
        with self._lock:
            self.cancelled = True
            calls, self._calls = self._calls, []
            for call in calls:
                call()

    def during(self, call: Callable[[], None]) -> During:
        """A context in which a cancellation makes ``call``, at once if it came before; it is not called afterwards."""
        return During(self, call)


class During:
    """See :meth:`Cancellation.during`."""

    __slots__ = ("_call", "_cancellation")

    def __init__(self, cancellation: Cancellation, call: Callable[[], None]) -> None:
        self._cancellation = cancellation
        self._call = call

    def __enter__(self) -> None:
        with self._cancellation._lock:
            if self._cancellation.cancelled:
                self._call()
            else:
                self._cancellation._calls.append(self._call)

    def __exit__(self, *unused: object) -> None:
        with self._cancellation._lock:
            if self._call in self._cancellation._calls:
                self._cancellation._calls.remove(self._call)

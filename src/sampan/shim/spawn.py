"""Monitors and workers for a program that has no zygote: a command line, or any Python program.

Each starts from a fresh interpreter, a zygote for one request, so a program with threads may call this, and the
monitor is not the program's child.
"""

from __future__ import annotations

from sampan.shim.zygote import Worker, Zygote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def monitor(pod_id: str, directory: str, options: Mapping[str, Any] | None = None) -> int:
    """Start the monitor of a pod; see :meth:`Zygote.fork_monitor`."""
    with Zygote.start(once=True) as zygote:
        return zygote.fork_monitor(pod_id, directory, options)


class _OwningWorker(Worker):
    """A worker that has a zygote to itself."""

    _zygote: Zygote

    def close(self) -> None:
        super().close()
        self._zygote.close()


def worker(function: str, argument: object, fds: Sequence[int] = ()) -> Worker:
    """Run a function in a process of its own; see :meth:`Zygote.run_worker`."""
    zygote = Zygote.start(once=True)
    try:
        made = zygote.run_worker(function, argument, fds)
        owning = _OwningWorker(made.pid, made.pidfd, made.fileno())
        owning._zygote = zygote
    except BaseException:
        zygote.close()
        raise
    return owning

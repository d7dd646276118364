"""Doing the OCI runtime's work in a process that ends with it.

The runtime is much code for a process that then sits for weeks. Run in the monitor, it would leave there a megabyte of
pages that are no longer shared with the zygote (every object that Python touches is written to: its reference count).
Run in a fork of the monitor, it leaves nothing. What it started becomes the monitor's own: the monitor is the
subreaper. A fork has its price too: each page that either side touches afterwards is copied, some hundreds, at 3 us
and more. So what needs little of the runtime is done in the monitor itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import os

from sampan.errors import Unavailable
from sampan.runtime.handler import Created
from sampan.shim import sockets
from sampan.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.runtime.handler import Handler, Stdio


def run(work: Callable[[], tuple[dict[str, Any], list[int]]]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Call ``work`` in a fork of the caller; its result, and copies of the descriptors that it returned.

    The fork, once it has answered, ends by itself, and is left to the caller's event loop to reap: giving back its
    memory takes a millisecond, which nobody needs to wait for.

    Raises:
        SampanError: The one that ``work`` raised.
    """
    ours, theirs = sockets.pair()
    pid = os.fork()
    if pid == 0:
        _answer(theirs, work)
    theirs.close()
    channel = sockets.Channel(ours, "the runtime")
    try:
        frame = channel.receive()
    except BaseException:
        os.waitpid(pid, 0)
        raise
    finally:
        channel.close()
    if frame.kind == frames.ERROR:
        raise frames.restore_error(frame.body)
    return frame.body, frame.descriptors


def _answer(connection: _socket.socket, work: Callable[[], tuple[dict[str, Any], list[int]]]) -> None:
    try:
        gc.disable()
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        descriptors: list[int] = []
        try:
            body, descriptors = work()
            answer = frames.encode(frames.REPLY, 0, body, len(descriptors))
        except BaseException as error:  # noqa: BLE001
            answer = frames.encode(frames.ERROR, 0, frames.describe_error(error))
        sockets.send(connection, answer, descriptors)
    finally:
        os._exit(0)


class ForkingHandler:
    """A handler whose heavy operations are done in forks; the light ones are done here.

    Args:
        handler: The real one. It is made here and not in each fork, so that its modules are imported but once.
        light: Its ``kill`` and ``delete`` are a few system calls, and no program or service is asked.
    """

    def __init__(self, handler: Handler, *, light: bool) -> None:
        self._handler = handler
        self._light = light

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created:
        """See :class:`~sampan.runtime.handler.Handler`, as for the other methods."""
        try:
            return _created(lambda: self._handler.create(container_id, bundle, stdio))
        except Unavailable:
            # The fork was killed half-way, and could take nothing back.
            self.delete(container_id, force=True)
            raise

    def start(self, container_id: str) -> None:
        """Here: it opens a fifo."""
        self._handler.start(container_id)

    def exec(
        self, container_id: str, process: dict[str, Any], stdio: Stdio, *, watched: bool = False, bundle: str = ""
    ) -> Created:
        """Here: a probe runs every few seconds, and a fork doubles its time."""
        return self._handler.exec(container_id, process, stdio, watched=watched, bundle=bundle)

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """Here, if it is light."""
        self._run_light(lambda: self._handler.kill(container_id, signal, all=all))

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Here, if it is light."""
        self._run_light(lambda: self._handler.delete(container_id, force=force))

    def pause(self, container_id: str) -> None:
        """In a fork."""
        self._run(lambda: self._handler.pause(container_id))

    def resume(self, container_id: str) -> None:
        """In a fork."""
        self._run(lambda: self._handler.resume(container_id))

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """In a fork."""
        self._run(lambda: self._handler.update(container_id, resources))

    def stats(self, container_id: str) -> dict[str, Any]:
        """In a fork."""
        stats: dict[str, Any] = _ask(lambda: self._handler.stats(container_id))
        return stats

    def pids(self, container_id: str) -> list[int]:
        """In a fork."""
        pids: list[int] = _ask(lambda: self._handler.pids(container_id))
        return pids

    def state(self, container_id: str) -> dict[str, Any]:
        """In a fork."""
        state: dict[str, Any] = _ask(lambda: self._handler.state(container_id))
        return state

    def _run_light(self, work: Callable[[], None]) -> None:
        if self._light:
            work()
        else:
            self._run(work)

    @staticmethod
    def _run(work: Callable[[], None]) -> None:
        def task() -> tuple[dict[str, Any], list[int]]:
            work()
            return {}, []

        run(task)


def _ask(work: Callable[[], Any]) -> Any:
    return run(lambda: ({"value": work()}, []))[0]["value"]


def _created(work: Callable[[], Created]) -> Created:
    def task() -> tuple[dict[str, Any], list[int]]:
        made = work()
        return {"pid": made.pid, "may_trace": made.may_trace}, [made.console] if made.console >= 0 else []

    body, descriptors = run(task)
    return Created(int(body["pid"]), descriptors[0] if descriptors else -1, may_trace=bool(body["may_trace"]))

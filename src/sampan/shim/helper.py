"""Doing the OCI runtime's work in a process that ends with it.

The runtime is much code for a process that then sits for weeks. Run in the monitor, it would leave there a megabyte of
pages that are no longer shared with the zygote (every object that Python touches is written to: its reference count).
Run in a fork of the monitor, it leaves nothing. What it started becomes the monitor's own: the monitor is the
subreaper. A fork has its price too: each page that either side touches afterwards is copied, some hundreds, at 3 us
and more. So what needs little of the runtime is done in the monitor itself, and the fork that has made a pod's
namespaces stays for the pod's first container: it has its pages already, and is there before it is asked.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import os

from sampan.errors import Unavailable
from sampan.runtime import program, stage2
from sampan.runtime.handler import Created, Stdio
from sampan.shim import sockets
from sampan.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.runtime.handler import Handler

    Work = Callable[[], tuple[dict[str, Any], list[int]]]

#: Seconds that the fork which made a pod's namespaces stays for the pod's first container.
STANDBY = 3.0


def run(work: Work) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Call ``work`` in a fork of the caller; its result, and copies of the descriptors that it returned.

    The fork, once it has answered, ends by itself, and is left to the caller's event loop to reap: giving back its
    memory takes a millisecond, which nobody needs to wait for.

    Raises:
        SampanError: The one that ``work`` raised.
        Unavailable: The fork was killed half-way.
    """
    channel, result = _fork(work)
    channel.close()
    return result.body, result.descriptors


def _fork(work: Work, then: Callable[[_socket.socket], None] | None = None) -> tuple[sockets.Channel, frames.Frame]:
    """A fork that does ``work``, answers, and does what comes ``then``; the conversation with it, and its result."""
    ours, theirs = sockets.pair()
    pid = os.fork()
    if pid == 0:
        try:
            _settle_in()
            if _answer(theirs, 0, work) and then is not None:
                then(theirs)
        finally:
            os._exit(0)
    theirs.close()
    channel = sockets.Channel(ours, "the runtime")
    try:
        return channel, channel.reply_to(0)
    except BaseException:
        channel.close()
        os.waitpid(pid, 0)
        raise


def _settle_in() -> None:
    gc.disable()
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def _answer(connection: _socket.socket, request: int, work: Work) -> bool:
    """Do it, and send its result or its error; whether it had a result."""
    descriptors: list[int] = []
    done = False
    try:
        body, descriptors = work()
        answer = frames.encode(frames.REPLY, request, body, len(descriptors))
        done = True
    except BaseException as error:  # noqa: BLE001
        answer = frames.encode(frames.ERROR, request, frames.describe_error(error))
    sockets.send(connection, answer, descriptors)
    return done


class Standby:
    """A fork that has done something and waits to be told of a container to make; it ends after that.

    Args:
        channel: The conversation with it. Once that is over, so is the fork.
    """

    def __init__(self, channel: sockets.Channel) -> None:
        self._channel = channel

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created | None:
        """Let it make the container; None if it ended before it began to.

        Raises:
            SampanError: The one that the handler raised.
            Unavailable: It was killed half-way.
        """
        given = stdio.given()
        body = {"id": container_id, "bundle": bundle, "streams": list(given)}
        try:
            try:
                number = self._channel.request(body, list(given.values()))
                self._channel.receive()  # that it has heard
            except Unavailable:
                return None
            frame = self._channel.reply_to(number)
        finally:
            self.dismiss()
        return _read_created(frame.body, frame.descriptors)

    def dismiss(self) -> None:
        """It is of no more use."""
        self._channel.close()


def _stand_by(connection: _socket.socket, handler: Handler, keep: tuple[int, ...], seconds: float) -> None:
    """The fork's side of :class:`Standby`."""
    # Whoever waits for the end of what the monitor has open must not wait for us.
    program.close_others([connection.fileno(), *stage2.made(), *keep])
    # A pause process is our child: of its end the monitor learns by ours.
    _signal.signal(_signal.SIGCHLD, lambda *_: os._exit(0))
    if _has_lost_child():
        return
    channel = sockets.Channel(connection, "the monitor")
    frame = channel.receive(seconds)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    # Whoever asked when we were about to end learns by the silence that nothing has begun.
    sockets.send(connection, frames.encode(frames.EVENT, frame.request, {}))
    body = frame.body
    stdio = Stdio(**dict(zip(body["streams"], frame.descriptors, strict=True)))
    _answer(connection, frame.request, _creation(lambda: handler.create(body["id"], body["bundle"], stdio)))


def _has_lost_child() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


class ForkingHandler:
    """A handler whose heavy operations are done in forks; the light ones are done here.

    Args:
        handler: The real one. It is made here and not in each fork, so that its modules are imported but once.
        light: Its ``kill`` and ``delete`` are a few system calls, and no program or service is asked.
        keep: Descriptors that its work needs.
        standby: Seconds that a fork stays for :meth:`create`.
    """

    def __init__(self, handler: Handler, *, light: bool, keep: tuple[int, ...] = (), standby: float = STANDBY) -> None:
        self._handler = handler
        self._seconds = standby
        self._light = light
        self._keep = keep
        self._standby: Standby | None = None

    def run_and_stay(self, work: Work, leave: Callable[[], None]) -> dict[str, Any]:
        """Call ``work`` in a fork that stays, for some seconds, for the next :meth:`create`; its result.

        Args:
            work: As for :func:`run`; it returns no descriptors.
            leave: Called in the fork afterwards: takes back what a container must not be made in.
        """
        if not self._light:
            return run(work)[0]
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.dismiss()
        stays = False

        def work_and_leave() -> tuple[dict[str, Any], list[int]]:
            nonlocal stays
            body, descriptors = work()
            try:
                leave()
                stays = True
            except OSError:
                pass  # another fork makes the container
            return {**body, "stays": stays}, descriptors

        def stand_by(connection: _socket.socket) -> None:
            if stays:
                _stand_by(connection, self._handler, self._keep, self._seconds)

        channel, result = _fork(work_and_leave, stand_by)
        if result.body.pop("stays"):
            self._standby = Standby(channel)
        else:
            channel.close()
        return result.body

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created:
        """See :class:`~sampan.runtime.handler.Handler`, as for the other methods."""
        standby, self._standby = self._standby, None
        try:
            made = standby.create(container_id, bundle, stdio) if standby is not None else None
            return made or _created(lambda: self._handler.create(container_id, bundle, stdio))
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
    return _read_created(*run(_creation(work)))


def _creation(work: Callable[[], Created]) -> Work:
    def task() -> tuple[dict[str, Any], list[int]]:
        made = work()
        return {"pid": made.pid, "may_trace": made.may_trace}, [made.console] if made.console >= 0 else []

    return task


def _read_created(body: dict[str, Any], descriptors: tuple[int, ...]) -> Created:
    return Created(int(body["pid"]), descriptors[0] if descriptors else -1, may_trace=bool(body["may_trace"]))

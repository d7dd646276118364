"""A client that is attached to a container's streams."""

from __future__ import annotations

from sampan.shim.streams import PATIENCE, Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.shim.loop import Loop
    from sampan.shim.stdio import Output


class Attachment:
    """Copies a container's output to a client, and the client's input to the container.

    Args:
        loop: The event loop.
        on_detached: Called once, with the reason, when all is over and the client's descriptors are closed; not by
            :meth:`close`.
    """

    __slots__ = ("_loop", "_on_detached", "_outputs", "_reason", "_source")

    def __init__(self, loop: Loop, on_detached: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_detached: Callable[[str], None] | None = on_detached
        self._outputs: list[tuple[Output, Sink]] = []
        self._source: Source | None = None
        self._reason = ""

    def add_output(self, output: Output, fd: int, *, patient: bool) -> None:
        """Copy ``output`` to the client's ``fd``, which becomes ours, and wait for it for ever if ``patient``."""
        sink = Sink(self._loop, fd, self._lost, patience=0 if patient else PATIENCE)
        self._outputs.append((output, sink))
        output.add(sink)

    def set_input(self, fd: int, sink: Sink, on_end: Callable[[], None]) -> None:
        """Copy the client's ``fd``, which becomes ours, to the container; ``on_end`` at its end."""
        self._source = Source(self._loop, fd, sink, on_end)

    def finish(self, reason: str) -> None:
        """The container has no more output: give the client what it has not taken yet, then let go of it."""
        self._reason = reason
        if self._source is not None:
            self._source.close()
        for output, sink in self._outputs:
            output.remove(sink)
            sink.when_room(self._settle)
            sink.finish()
        self._settle()

    def hang_up(self) -> None:
        """The client is gone: what it sent goes to the container, and then the end of it."""
        self._on_detached = None
        if self._source is not None:
            self._source.hang_up()
        self._release()

    def close(self) -> None:
        """Let go of the client at once; a second call does nothing."""
        self._on_detached = None
        self._release()

    def _release(self) -> None:
        if self._source is not None:
            self._source.close()
        for output, sink in self._outputs:
            output.remove(sink)
            sink.close()

    def _settle(self) -> None:
        if self._on_detached is None or not self._reason:
            return
        waiting = [sink for _, sink in self._outputs if sink.fd >= 0]
        if waiting:
            # A sink tells of room also when it is closed, but only once: ask again.
            waiting[0].when_room(self._settle)
            return
        call, self._on_detached = self._on_detached, None
        call(self._reason)

    def _lost(self, reason: str) -> None:
        """A stream's reader went away: as with a shell's pipeline, the others may stay."""
        if all(sink.fd < 0 for _, sink in self._outputs):
            self._release()
            if self._on_detached is not None:
                call, self._on_detached = self._on_detached, None
                call(f"the client went away: {reason}")

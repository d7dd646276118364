"""One thread that follows every monitor's events, so that ends are recorded when they happen, not when asked for."""

import logging
import os
import select
import threading
from typing import TYPE_CHECKING, Any

from sampan.engine.recovery import PATIENCE, adopt_containers, end_orphans
from sampan.errors import NotFound, SampanError, TimedOut, Unavailable

if TYPE_CHECKING:
    from sampan.engine.engine import Engine

_LOG = logging.getLogger(__name__)


class Watch:
    """Follows the monitors of the pods it is told of, until each ends.

    Args:
        engine: Whose pods.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._epoll = select.epoll()
        self._streams: dict[int, tuple[str, Any]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, pod_id: str) -> None:
        """Follow one more pod; a monitor that is gone already is no error.

        One that does not answer at once waits for a runtime that hangs: a thread of its own waits for it.
        """
        try:
            self._follow(pod_id, self._engine.monitor(pod_id).events(patience=PATIENCE))
        except Unavailable:
            return
        except TimedOut:
            threading.Thread(target=self._add_at_last, args=(pod_id,), name="adopt", daemon=True).start()

    def _add_at_last(self, pod_id: str) -> None:
        while not self._closed.is_set():
            try:
                stream = self._engine.monitor(pod_id).events()
                adopt_containers(self._engine, pod_id, self._engine.monitor(pod_id).info())
            except TimedOut:
                continue
            except SampanError:
                return
            self._follow(pod_id, stream)
            return

    def _follow(self, pod_id: str, stream: Any) -> None:
        with self._lock:
            self._streams[stream.fileno()] = (pod_id, stream)
        self._epoll.register(stream.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        os.write(self._waker, b"x")
        self._thread.join()
        for _, stream in self._streams.values():
            stream.close()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._waker)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    return
                self._handle(fd)

    def _handle(self, fd: int) -> None:
        pod_id, stream = self._streams[fd]
        try:
            while event := stream.next(0):
                if event["kind"] in ("exit", "oom"):
                    self._settle(event["id"])
                elif event["kind"] == "pause-exit":  # the init of the PID namespace that the pod's containers share
                    self._lose(pod_id)
        except (SampanError, OSError):
            with self._lock:
                del self._streams[fd]
            self._epoll.unregister(fd)
            stream.close()
            self._lost(pod_id)

    def _settle(self, container_id: str) -> None:
        try:
            self._engine.containers.get(container_id)
        except NotFound:
            pass  # removed meanwhile
        except (SampanError, OSError) as error:
            # The store's trouble is none of the monitor's: whoever asks for the container next records its end.
            _LOG.warning("the end of container %s is not recorded yet: %s", container_id[:12], error)

    def _lost(self, pod_id: str) -> None:
        try:
            if self._engine.pod_records.get(pod_id).state == "ready" and self._answers(pod_id):
                self.add(pod_id)
        except NotFound:
            pass  # removed meanwhile
        except (SampanError, OSError) as error:
            _LOG.warning("pod %s is not followed any more: %s", pod_id[:12], error)

    def _answers(self, pod_id: str) -> bool:
        """Whether a ready pod's monitor lives. If it was killed, its containers are ended, and recorded as ended."""
        engine = self._engine
        try:
            engine.monitor(pod_id).info(PATIENCE)
        except TimedOut:
            return True
        except Unavailable:
            end_orphans(engine, pod_id)
            self._lose(pod_id)
            return False
        return True

    def _lose(self, pod_id: str) -> None:
        """Have the pod recorded as not ready, so that a kubelet makes another.

        That waits for a call that stops the pod, whose monitor and pause end too, by a thread of its own.
        """

        def lose() -> None:
            try:
                with self._engine.locks.hold(pod_id):
                    self._engine.pods.lose(pod_id)
            except NotFound:
                pass  # removed meanwhile
            except (SampanError, OSError) as error:
                _LOG.warning("pod %s has ended, which is not recorded: %s", pod_id[:12], error)

        threading.Thread(target=lose, name="lose", daemon=True).start()

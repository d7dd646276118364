"""What happened, in sequence, from the store: nothing is lost over a reconnect or a restart."""

import threading
import time
from typing import Literal

import msgspec

from sampan.engine.model import Event
from sampan.storage import records as stored

Kind = Literal["created", "started", "stopped", "deleted", "oom", "pod-created", "pod-stopped", "pod-deleted"]

#: Seconds between looks at the store for events that another process appended.
_FOREIGN_POLL = 0.5


class _Stored(msgspec.Struct):
    kind: Kind
    container_id: str = ""
    pod_id: str = ""
    exit_code: int = 0


class Subscription:
    """A reader's place in the sequence.

    Args:
        events: Where from.
        sequence: The last event that the reader has already seen.
    """

    def __init__(self, events: "Events", sequence: int) -> None:
        self._events = events
        self.sequence = sequence
        self._closed = False

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when ``timeout`` seconds passed or the subscription was closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closed:
            found = self._events.since(self.sequence, limit=1)
            if found:
                self.sequence = found[0].sequence
                return found[0]
            left = _FOREIGN_POLL if deadline is None else min(_FOREIGN_POLL, deadline - time.monotonic())
            if left <= 0:
                break
            self._events.wait(left)
        return None

    def close(self) -> None:
        """End the subscription; a reader in :meth:`get` returns None."""
        self._closed = True
        self._events.wake()


class Events:
    """The events of one namespace.

    Args:
        table: ``Store.events``.
        namespace: Whose.
    """

    def __init__(self, table: stored.Events, namespace: str) -> None:
        self._table = table
        self._namespace = namespace
        self._appended = threading.Condition()

    def append(self, kind: Kind, *, container_id: str = "", pod_id: str = "", exit_code: int = 0) -> int:
        """Record an event, in the caller's transaction if it has one; its sequence number."""
        event = _Stored(kind, container_id, pod_id, exit_code)
        sequence = self._table.append(self._namespace, msgspec.json.encode(event))
        self.wake()
        return sequence

    def since(self, sequence: int, *, limit: int = 1000) -> list[Event]:
        """Events after ``sequence``, oldest first."""
        events = []
        for row in self._table.since(sequence, limit=limit, namespace=self._namespace):
            found = msgspec.json.decode(row.data, type=_Stored)
            events.append(
                Event(
                    sequence=row.sequence,
                    time=row.time,
                    kind=found.kind,
                    container_id=found.container_id,
                    pod_id=found.pod_id,
                    exit_code=found.exit_code,
                )
            )
        return events

    def subscribe(self, sequence: int | None = None) -> Subscription:
        """A subscription to what comes after ``sequence``, or after now."""
        return Subscription(self, self._table.last() if sequence is None else sequence)

    def wake(self) -> None:
        """Let every waiting reader look again."""
        with self._appended:
            self._appended.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until an event may have been appended, at most ``seconds``."""
        with self._appended:
            self._appended.wait(seconds)

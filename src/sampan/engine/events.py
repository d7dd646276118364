"""What happened, in sequence, from the store: nothing is lost over a reconnect or a restart.

A subscription begins where its reader says. A follower is a reader that can't say: the CRI has no cursor. So the place
of each follower is kept in the store, and who follows next begins where the first of those stopped that left within
the last minutes. It may be told again what was told before; it misses nothing.
"""

import secrets
import threading
import time
from collections import deque
from typing import Literal

import msgspec

from sampan.engine.model import Event, PodRecord
from sampan.errors import NotFound
from sampan.storage import records as stored

Kind = Literal["created", "started", "stopped", "deleted", "oom", "pod-created", "pod-stopped", "pod-deleted"]

#: Seconds between looks at the store for events that another process appended.
_FOREIGN_POLL = 0.5
#: Looks, and seconds between them, after an append whose transaction may not have been committed yet.
_LOOKS, _COMMITTED = 20, 0.005
#: Events that are kept, and appends between two looks at how many there are.
KEPT = 10_000
_TRIM_EVERY = 500
#: Seconds for which the place of a follower that left is kept. A kubelet that was away for longer lists anyway.
_RETURN = 600.0
#: Seconds after which an event that was handed over counts as taken, if its reader is still there: a connection that
#: breaks takes along what was on its way.
_TAKEN = 1.0
#: Seconds between writes of a follower's place.
_NOTE_EVERY = 2.0


class _Stored(msgspec.Struct):
    kind: Kind
    container_id: str = ""
    pod_id: str = ""
    exit_code: int = 0
    #: The pod as it was, in the event that tells of its removal.
    pod: PodRecord | None = None


class _Place(msgspec.Struct):
    """A follower's place: all up to ``sequence`` has been taken. ``left`` (ns): when it went; 0: it is there."""

    sequence: int
    left: int = 0


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
        looks = 0
        while not self._closed:
            found = self._events.since(self.sequence, limit=1)
            if found:
                self.sequence = found[0].sequence
                return found[0]
            # Who appends wakes before the transaction is committed: then one looks a few times at short intervals.
            looks -= 1
            pause = _COMMITTED if looks > 0 else _FOREIGN_POLL
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                break
            if self._events.wait(left):
                looks = _LOOKS
        return None

    def close(self) -> None:
        """End the subscription; a reader in :meth:`get` returns None."""
        self._closed = True
        self._events.wake()


class Follower(Subscription):
    """A subscription whose place is kept in the store.

    Args:
        events: Where from.
        sequence: The last event that needs not be told.
        places: The table of places.
    """

    def __init__(self, events: "Events", sequence: int, places: stored.Records) -> None:
        super().__init__(events, sequence)
        self.id = secrets.token_hex(8)
        self._places = places
        self._taken = sequence
        self._handed: deque[tuple[float, int]] = deque()
        self._noted_at = 0.0
        self._note()

    def handed(self) -> None:
        """The event that :meth:`get` gave last was handed over, and the reader is there."""
        now = time.monotonic()
        self._handed.append((now, self.sequence))
        self.alive()

    def alive(self) -> None:
        """The reader is still there: what it was handed a while ago it has taken."""
        now = time.monotonic()
        before = self._taken
        while self._handed and now - self._handed[0][0] >= _TAKEN:
            self._taken = self._handed.popleft()[1]
        if self._taken != before and now - self._noted_at >= _NOTE_EVERY:
            self._note()

    def leave(self) -> None:
        """The reader has gone."""
        self.close()
        self._note(left=time.time_ns())
        self._events.forget(self)

    def _note(self, left: int = 0) -> None:
        self._noted_at = time.monotonic()
        self._places.put(self.id, msgspec.json.encode(_Place(self._taken, left)))


class Events:
    """The events of one namespace.

    Args:
        table: ``Store.events``.
        namespace: Whose.
        places: Where followers' places are kept.
    """

    def __init__(self, table: stored.Events, namespace: str, places: stored.Records) -> None:
        self._table = table
        self._namespace = namespace
        self._places = places
        self._followers: set[str] = set()
        self._followers_lock = threading.Lock()
        self._appended = threading.Condition()

    def append(
        self, kind: Kind, *, container_id: str = "", pod_id: str = "", exit_code: int = 0, pod: PodRecord | None = None
    ) -> int:
        """Record an event, in the caller's transaction if it has one; its sequence number."""
        event = _Stored(kind, container_id, pod_id, exit_code, pod)
        sequence = self._table.append(self._namespace, msgspec.json.encode(event))
        if sequence % _TRIM_EVERY == 0:
            self._table.trim(KEPT)
        self.wake()
        return sequence

    def follow(self) -> Follower:
        """A follower, at the place of the first of those that left a short while ago, or at now."""
        with self._followers_lock:
            start = min([self._table.last(), *self._places_left()])
            follower = Follower(self, start, self._places)
            self._followers.add(follower.id)
        return follower

    def _places_left(self) -> list[int]:
        """Places of followers that are gone; those that are gone for long are forgotten."""
        now = time.time_ns()
        found = []
        for follower_id, data in self._places.list():
            if follower_id in self._followers:
                continue
            place = msgspec.json.decode(data, type=_Place)
            if not place.left:
                # Its daemon was killed, and this is the first to hear of it.
                place.left = now
                self._places.put(follower_id, msgspec.json.encode(place))
            if now - place.left > _RETURN * 1e9:
                self._drop(follower_id)
            else:
                found.append(place.sequence)
        return found

    def _drop(self, follower_id: str) -> None:
        try:
            self._places.delete(follower_id)
        except NotFound:
            return

    def forget(self, follower: Follower) -> None:
        """A follower has left; its place stays."""
        with self._followers_lock:
            self._followers.discard(follower.id)

    def removed_pod(self, pod_id: str, after: int) -> PodRecord | None:
        """A pod that was removed after event number ``after``, as it was then."""
        while rows := self._table.since(after, namespace=self._namespace):
            for row in rows:
                event = msgspec.json.decode(row.data, type=_Stored)
                if event.kind == "pod-deleted" and event.pod_id == pod_id:
                    return event.pod
            after = rows[-1].sequence
        return None

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

    def wait(self, seconds: float) -> bool:
        """Wait until an event may have been appended, at most ``seconds``; whether one was."""
        with self._appended:
            return self._appended.wait(seconds)

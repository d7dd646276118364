"""What happened in a pod, in sequence, for whoever subscribes."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.shim.service import Call

#: Events that are kept for a subscriber that comes, or comes back, late.
_KEPT = 512


class Journal:
    """Events with numbers from 1 on. Old ones are dropped: exits can still be found on disk and in ``info``."""

    __slots__ = ("_events", "_subscribers", "last")

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._subscribers: list[Call] = []
        self.last = 0

    def publish(self, kind: str, container_id: str = "", **details: object) -> None:
        """Append an event and tell the subscribers."""
        self.last += 1
        event: dict[str, Any] = {"seq": self.last, "time": time.time_ns(), "kind": kind, "id": container_id, **details}
        self._events.append(event)
        if len(self._events) > _KEPT:
            del self._events[0]
        for call in tuple(self._subscribers):
            call.event(event)

    def subscribe(self, call: Call, since: int) -> None:
        """Tell ``call`` of all events after number ``since``, those that are kept and those to come."""
        call.reply({})
        self._subscribers.append(call)
        call.on_hangup(lambda: self._subscribers.remove(call))
        for event in tuple(self._events):
            if event["seq"] > since:
                call.event(event)

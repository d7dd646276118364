"""One-time tokens: a URL that was handed out works once, and not for long."""

import secrets
import threading
import time
from typing import Generic, TypeVar

from sampan.errors import Exhausted

T = TypeVar("T")

#: Seconds that a token waits for its use.
LIFETIME = 60.0
#: Tokens that may wait at once: a bound on what a caller can make us hold.
MOST = 1000


class Tokens(Generic[T]):
    """Requests waiting to be picked up by whoever knows their token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[float, T]] = {}

    def add(self, request: T) -> str:
        """Keep a request; the token that it can be had for, once.

        Raises:
            Exhausted: Too many wait already.
        """
        now = time.monotonic()
        with self._lock:
            self._waiting = {token: entry for token, entry in self._waiting.items() if entry[0] > now}
            if len(self._waiting) >= MOST:
                raise Exhausted(f"{MOST} streaming requests wait to be picked up", hint="try again in a minute")
            token = secrets.token_urlsafe(12)
            self._waiting[token] = (now + LIFETIME, request)
        return token

    def take(self, token: str) -> T | None:
        """The request of this token; None for one that is unknown, used or too old."""
        with self._lock:
            entry = self._waiting.pop(token, None)
        return entry[1] if entry is not None and entry[0] > time.monotonic() else None

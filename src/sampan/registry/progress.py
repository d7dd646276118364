"""What a pull, push or copy tells while it runs: plain events; drawing them is the caller's."""

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

#: Least seconds between two events of bytes of one blob.
_INTERVAL = 0.1

Kind = Literal[
    "resolving",  # asking which digest the name has
    "resolved",  # digest known
    "exists",  # a blob is there already
    "waiting",  # another pull is downloading the blob
    "downloading",  # bytes came
    "downloaded",
    "uploading",  # bytes went
    "uploaded",
    "mounted",  # a blob came from another repository of the same registry
    "retrying",  # a request failed and is tried again; message says why
    "unpacking",
    "unpacked",
    "done",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened."""

    kind: Kind
    #: Image, as the caller named it.
    reference: str
    #: Blob that it is about, or empty.
    digest: str = ""
    #: Bytes so far, and in all.
    offset: int = 0
    total: int = 0
    host: str = ""
    message: str = ""


Callback = Callable[[Event], None]


class Reporter:
    """Gives events of one operation to a callback, one at a time, bytes at most ten times a second for each blob."""

    def __init__(self, reference: str, callback: Callback | None) -> None:
        self._reference = reference
        self._callback = callback
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def tell(
        self, kind: Kind, *, digest: str = "", offset: int = 0, total: int = 0, host: str = "", message: str = ""
    ) -> None:
        """Report one event."""
        if self._callback is None:
            return
        event = Event(
            kind=kind,
            reference=self._reference,
            digest=digest,
            offset=offset,
            total=total,
            host=host,
            message=message,
        )
        with self._lock:
            self._callback(event)

    def bytes(self, kind: Kind, digest: str, offset: int, total: int, host: str) -> None:
        """Report how far a blob is, now and then."""
        if self._callback is None:
            return
        now = time.monotonic()
        if now - self._last.get(digest, 0.0) >= _INTERVAL:
            self._last[digest] = now
            self.tell(kind, digest=digest, offset=offset, total=total, host=host)

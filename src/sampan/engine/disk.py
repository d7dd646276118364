"""How much is in containers' writable layers, measured now and then: a layer of a million files takes seconds.

As containerd does it, what is told may be ten seconds old, so that a list of usages never waits for a walk through the
files of one container. A layer that was never measured is measured at once.
"""

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from sampan.errors import NotFound, SampanError

if TYPE_CHECKING:
    from sampan.storage.snapshots.interface import Snapshotter, Usage

_LOG = logging.getLogger(__name__)

#: Seconds after which a layer is measured again, when it is asked for.
PERIOD = 10.0


class Disk:
    """Usage of layers by their keys. Threads may share one.

    Args:
        snapshots: What measures.
    """

    def __init__(self, snapshots: "Snapshotter") -> None:
        self._snapshots = snapshots
        self._known: dict[str, tuple[float, Usage]] = {}
        self._due: deque[str] = deque()
        self._busy = False
        self._lock = threading.Lock()

    def measure(self, key: str) -> "Usage":
        """What is in a layer now.

        Raises:
            NotFound: There is no such layer.
        """
        usage = self._snapshots.usage(key)
        with self._lock:
            self._known[key] = (time.monotonic(), usage)
        return usage

    def recent(self, key: str) -> "Usage":
        """What was in a layer when it was measured last; a measurement that is old is made anew meanwhile.

        Raises:
            NotFound: There is no such layer.
        """
        with self._lock:
            known = self._known.get(key)
            if known is not None and time.monotonic() - known[0] > PERIOD:
                self._known[key] = (time.monotonic(), known[1])
                self._due.append(key)
                if not self._busy:
                    self._busy = True
                    threading.Thread(target=self._work, name="disk", daemon=True).start()
        return known[1] if known is not None else self.measure(key)

    def forget(self, key: str) -> None:
        """For a layer that is gone."""
        with self._lock:
            self._known.pop(key, None)

    def _work(self) -> None:
        """Measure what is due, then end: a daemon that nobody asks has no thread for it."""
        while True:
            with self._lock:
                if not self._due:
                    self._busy = False
                    return
                key = self._due.popleft()
            try:
                self.measure(key)
            except NotFound:
                self.forget(key)
            except (SampanError, OSError) as error:
                # The next to ask after the period has it tried again; until then the last figure is what there is.
                _LOG.warning("layer %s is not measured: %s", key, error)

"""Measuring layers in the background: what fails once is tried again, and keeps no other from its turn."""

from __future__ import annotations

import errno
import logging
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.engine import disk
from sampan.engine.disk import Disk
from sampan.errors import TimedOut
from sampan.storage.snapshots.interface import Usage
from sampan.storage.store import Store


class Told(logging.Handler):
    """Lets a test wait for a line of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put(record.getMessage())


@pytest.fixture
def told() -> Iterator[queue.Queue[str]]:
    handler = Told()
    logging.getLogger("sampan.engine.disk").addHandler(handler)
    yield handler.lines
    logging.getLogger("sampan.engine.disk").removeHandler(handler)


class Watched:
    """A store's snapshots, whose measurements can be waited for, and fail when they are told to."""

    def __init__(self, store: Store) -> None:
        self.snapshots = store.snapshots
        self.measured: queue.Queue[str] = queue.Queue()
        self.error: Exception | None = None

    def usage(self, key: str) -> Usage:
        if self.error is not None:
            raise self.error
        found = self.snapshots.usage(key)
        self.measured.put(key)
        return found


@pytest.mark.parametrize("error", [TimedOut("the database is busy"), OSError(errno.EIO, "Input/output error")])
def test_a_layer_that_can_not_be_measured_ends_no_measuring(
    tmp_path: Path, told: queue.Queue[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(disk, "PERIOD", 0.0)
    with Store(str(tmp_path / "root"), snapshotter="native") as store:
        files = {}
        for key in ("one", "two"):
            store.snapshots.prepare(key, "")
            files[key] = Path(store.snapshots.stat(key).directory, "fs/a")
            files[key].write_bytes(b"x" * 9000)
        watched = Watched(store)
        layers = Disk(watched)  # type: ignore[arg-type]
        before = layers.measure("one")
        layers.measure("two")
        for _ in range(2):
            watched.measured.get(timeout=20)
        watched.error = error
        assert layers.recent("one") == before
        assert told.get(timeout=20) == f"layer one is not measured: {error}"
        watched.error = None
        files["one"].write_bytes(b"x" * 90_000)
        assert layers.recent("one") == before
        assert watched.measured.get(timeout=20) == "one"
        # One is noted when the turn comes to two.
        layers.recent("two")
        assert watched.measured.get(timeout=20) == "two"
        assert layers.recent("one").bytes > before.bytes
        assert watched.measured.get(timeout=20) == "one"

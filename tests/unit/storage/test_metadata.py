"""Names, records, leases, events: one database, many threads and processes."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.errors import AlreadyExists, NotFound, Unsupported
from sampan.spec.image import Descriptor, digest_of
from sampan.storage.database import Database
from sampan.storage.images import Images
from sampan.storage.records import Events, Leases, Records


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(str(tmp_path / "meta.db"))
    yield database
    database.close()


def test_a_connection_ends_with_its_thread(database: Database) -> None:
    gc.disable()  # which it must not take
    try:
        opened = []
        for _ in range(5):
            thread = threading.Thread(target=lambda: database.rows("SELECT 1"))
            thread.start()
            thread.join()
            opened.append(len(os.listdir("/proc/self/fd")))
        # SQLite keeps one for the next connection: closing it would give up the locks of the others.
        assert set(opened) == {opened[0]}
    finally:
        gc.enable()


def test_the_room_of_the_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    for _ in range(2):
        database = Database(str(path))
        database.reserve()
        assert (tmp_path / "meta.db-wal").stat().st_size > 4_000_000
        assert not (tmp_path / "meta.db-reserve").exists()
        assert database.rows("SELECT name FROM sqlite_master WHERE name = 'reserve'") == []
        database.close()
        assert not (tmp_path / "meta.db-wal").exists()
        assert (tmp_path / "meta.db-reserve").stat().st_size > 4_000_000


def target(text: str) -> Descriptor:
    return Descriptor(media_type="m/t", digest=digest_of(text.encode()), size=len(text))


def test_image_names(database: Database) -> None:
    images = Images(database, "default")
    images.put("a:1", target("x"), {"k": "v"})
    entry = images.put("a:1", target("y"))
    assert (entry.target, entry.labels) == (target("y"), {"k": "v"})
    assert entry.updated_at > entry.created_at
    images.put("a:2", target("y"))
    assert [e.name for e in images.find(target("y").digest)] == ["a:1", "a:2"]
    assert Images(database, "k8s.io").list() == []
    images.delete("a:1")
    with pytest.raises(NotFound, match='image "a:1"'):
        images.get("a:1")
    with pytest.raises(NotFound):
        images.delete("a:1")


def test_records_have_unique_names_of_their_kind(database: Database) -> None:
    pods = Records(database, "default", "pod")
    pods.put("1", b"one", create=True, name="web")
    with pytest.raises(AlreadyExists, match='pod named "web"'):
        pods.put("2", b"two", create=True, name="web")
    with pytest.raises(AlreadyExists):
        pods.put("1", b"again", create=True)
    pods.put("1", b"changed")
    assert pods.find("web") == "1"
    assert pods.list() == [("1", b"changed")]
    Records(database, "default", "container").put("1", b"", name="web")
    pods.delete("1")
    for missing in (lambda: pods.get("1"), lambda: pods.find("web"), lambda: pods.delete("1")):
        with pytest.raises(NotFound):
            missing()


def test_events_are_numbered_for_ever(database: Database) -> None:
    events = Events(database)
    assert events.last() == 0
    for number in range(5):
        events.append("default" if number % 2 else "k8s.io", b"%d" % number)
    assert [e.sequence for e in events.since(2)] == [3, 4, 5]
    assert [e.data for e in events.since(0, namespace="default")] == [b"1", b"3"]
    assert events.trim(0) == 5
    assert events.append("default", b"") == 6


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    records = Records(database, "default", "pod")
    with pytest.raises(AlreadyExists), database.transaction():  # noqa: PT012 - the second is the one
        records.put("1", b"x")
        records.put("1", b"x", create=True)
    assert records.list() == []


def test_leases(database: Database) -> None:
    leases = Leases(database, "default")
    with leases.create("pull") as lease:
        lease.add_content("sha256:1")
        lease.add_content("sha256:1")
        with pytest.raises(AlreadyExists):
            leases.create("pull")
        assert [one.id for one in leases.list()] == ["pull"]
    assert leases.list() == []
    lease.release()
    with pytest.raises(NotFound):
        lease.renew(1)


def _append(path: str, count: int) -> None:
    database = Database(path)
    for _ in range(count):
        Events(database).append("default", b"")
    database.close()


def test_threads_and_processes_write_at_once(database: Database) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(database.path, 50)) for _ in range(2)]
    for process in processes:
        process.start()
    events = Events(database)
    threads = [threading.Thread(target=lambda: [events.append("k8s.io", b"") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    assert [event.sequence for event in events.since(0)] == list(range(1, 301))


def test_a_newer_schema_is_refused(database: Database) -> None:
    database.rows("PRAGMA user_version=99")
    database.close()
    with pytest.raises(Unsupported, match="newer"):
        Database(database.path)


CLOSED_UNDER = """
import sys, threading
from sampan.errors import SampanError
from sampan.storage.database import Database

def use(database, begun):
    number = 0
    try:
        while True:
            with database.transaction(durable=number % 2 == 0) as connection:
                connection.execute("INSERT INTO events (time, namespace, data) VALUES (0, 'n', '')")
            database.rows("SELECT * FROM events")
            begun.set()
            number += 1
    except SampanError as error:
        assert "closed" in str(error), error

for turn in range(40):
    database = Database(f"{sys.argv[1]}/{turn}.db")
    begun = [threading.Event() for _ in range(3)]
    threads = [threading.Thread(target=use, args=(database, each)) for each in begun]
    for thread in threads:
        thread.start()
    for each in begun:
        each.wait()
    database.close()
    for thread in threads:
        thread.join()
print("ended")
"""


def test_a_connection_is_not_closed_under_who_uses_it(tmp_path: Path) -> None:
    """A daemon stops while one of its threads records an end: SQLite crashed."""
    command = [sys.executable, "-c", CLOSED_UNDER, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ended\n", "")

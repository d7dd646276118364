"""Blobs: writing, checking, resuming, following, and two writers of one blob."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.errors import AlreadyExists, Corrupt, Exhausted, NotFound, TimedOut
from sampan.spec.image import Descriptor, digest_of
from sampan.storage.content import Content
from sampan.storage.database import Database

DATA = os.urandom(3 << 20)


@pytest.fixture
def content(tmp_path: Path) -> Iterator[Content]:
    for name in ("blobs", "ingest"):
        (tmp_path / name).mkdir()
    database = Database(str(tmp_path / "meta.db"))
    yield Content(str(tmp_path), database)
    database.close()


def expect(data: bytes = DATA) -> Descriptor:
    return Descriptor(media_type="x/y", digest=digest_of(data), size=len(data))


def ingests(content: Content) -> list[str]:
    return os.listdir(content.ingest_directory)


def test_a_blob_is_visible_after_its_commit_only(content: Content) -> None:
    with content.writer(expect()) as writer:
        writer.write(DATA[:1000])
        writer.write(memoryview(DATA)[1000:])
        assert not content.exists(expect().digest)
        assert writer.commit() == expect()
    assert content.read(expect()) == DATA
    assert content.info(expect().digest).media_type == "x/y"
    assert ingests(content) == []
    with pytest.raises(AlreadyExists):
        content.writer(expect())


def test_another_digest_leaves_nothing(content: Content) -> None:
    with content.writer(expect()) as writer:
        writer.write(b"x" * len(DATA))
        with pytest.raises(Corrupt, match=r"have digest sha256:"):
            writer.commit()
    assert ingests(content) == []
    with pytest.raises(NotFound):
        content.info(expect().digest)


def test_more_than_promised_is_refused_before_it_is_written(content: Content) -> None:
    with content.writer(expect()) as writer, pytest.raises(Corrupt, match="more than"):
        writer.write(DATA + b"x")


def test_a_broken_download_is_resumed(content: Content) -> None:
    with content.writer(expect()) as writer:
        writer.write(DATA[:70_000])
        with pytest.raises(Corrupt, match="70000 of"):
            writer.commit()
    with content.writer(expect()) as writer:
        assert writer.offset == 70_000
        writer.write(DATA[70_000:])
        writer.commit()
    assert content.read(expect()) == DATA


def test_reset_starts_over(content: Content) -> None:
    with content.writer(expect()) as writer:
        writer.write(b"x" * 100)
        writer.reset()
        assert writer.offset == 0
        writer.write(DATA)
        writer.commit()


def test_the_second_writer_waits_and_finds_it_done(content: Content) -> None:
    first = content.writer(expect())
    with pytest.raises(TimedOut):
        content.writer(expect(), timeout=0.02)
    outcome: list[object] = []

    def second() -> None:
        try:
            content.writer(expect())
        except AlreadyExists as error:
            outcome.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    first.write(DATA)
    first.commit()
    thread.join(10)
    assert len(outcome) == 1
    assert ingests(content) == []


def test_a_follower_reads_while_the_blob_is_written(content: Content) -> None:
    with content.writer(expect()) as writer:
        writer.write(DATA[:10])
        data, news = writer.follow()
        assert os.read(data, 100) == DATA[:10]
        writer.write(DATA[10:])
        assert os.read(news, 1) == b"+"
        writer.commit()
        assert os.read(news, 10) == b"."
        assert os.read(news, 10) == b""
    os.close(data)
    os.close(news)


def test_a_follower_learns_that_the_writer_gave_up(content: Content) -> None:
    with content.writer(expect()) as writer:
        data, news = writer.follow()
    assert os.read(news, 10) == b""
    os.close(data)
    os.close(news)


def test_a_damaged_blob_is_never_read_as_whole(content: Content) -> None:
    descriptor = content.put(b"hello")
    path = content.path(descriptor.digest)
    os.chmod(path, 0o600)
    Path(path).write_bytes(b"jello")
    with pytest.raises(Corrupt):
        content.read(descriptor)
    Path(path).write_bytes(b"hello and more")
    with pytest.raises(Corrupt):
        content.read(descriptor)
    os.unlink(path)
    with pytest.raises(Corrupt, match="gone"):
        content.read(descriptor)


def test_small_blobs(content: Content) -> None:
    descriptor = content.put(b"hello", "text/plain")
    assert content.put(b"hello") == Descriptor(media_type="", digest=descriptor.digest, size=5)
    with pytest.raises(Exhausted):
        content.read(descriptor, limit=4)
    assert content.label(descriptor.digest, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert content.label(descriptor.digest, {"a": None}) == {"b": "2"}
    assert [info.digest for info in content.walk()] == [descriptor.digest]
    content.delete(descriptor.digest)
    with pytest.raises(NotFound):
        content.delete(descriptor.digest)
    assert not os.path.exists(content.path(descriptor.digest))


def test_a_blob_of_unknown_digest(content: Content) -> None:
    with content.writer(None) as writer:
        writer.write(b"hello")
        assert writer.commit("text/plain").digest == digest_of(b"hello")
    with content.writer(None) as writer:
        writer.write(b"dropped")
    assert ingests(content) == []


def test_nothing_is_written_anew_that_is_about_to_be_visible(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the move of a blob to its place and its row, its ingest's name is free again."""
    moved, go_on = threading.Event(), threading.Event()

    def pause(_: str) -> None:
        moved.set()
        assert go_on.wait(30)

    def write() -> None:
        with content.writer(expect()) as writer:
            writer.write(DATA)
            writer.commit()

    monkeypatch.setattr("sampan.storage.content._sync_directory", pause)
    first = threading.Thread(target=write)
    first.start()
    assert moved.wait(30)
    threading.Timer(0.2, go_on.set).start()
    with pytest.raises(AlreadyExists):
        content.writer(expect())
    first.join()
    assert ingests(content) == []

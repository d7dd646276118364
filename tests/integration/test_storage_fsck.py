"""Checking and repairing: one damaged blob, one damaged layer, and nothing else touched."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.image import mutate, pack
from sampan.spec.image import Descriptor
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.transfer import put_image
from sampan.storage.unpack import unpack

pytestmark = pytest.mark.root

NAME = "docker.io/library/app:1"


def archive(**files: str) -> bytes:
    parts: list[bytes] = []
    writer = pack.Writer(parts.append)
    for name, text in files.items():
        writer.file(name, text.encode())
    writer.close()
    return b"".join(parts)


IMAGE = mutate.append_layer(mutate.append_layer(mutate.empty(), archive(**{"d/a": "1"})), archive(b="2"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        store.images("default").put(NAME, put_image(store, IMAGE))
        unpack(store, IMAGE.descriptor)
        yield store


def fetch_into(store: Store) -> tuple[list[str], object]:
    fetched: list[str] = []

    def fetch(target: Descriptor, images: list[str]) -> None:
        fetched.extend([target.digest, *images])
        store.content.put(IMAGE.blobs.read(target), target.media_type)

    return fetched, fetch


def damage(path: str) -> None:
    os.chmod(path, 0o600)
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def test_a_sound_store(store: Store) -> None:
    assert store.fsck() == []
    assert [info.kind for info in store.snapshots.walk()] == ["committed", "committed"]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_blob_is_fetched_alone(store: Store, number: int, gone: bool) -> None:
    blobs = [IMAGE.descriptor, IMAGE.manifest.config, *IMAGE.manifest.layers]
    path = store.content.path(blobs[number].digest)
    if gone:
        os.unlink(path)
    else:
        damage(path)
    [problem] = store.fsck()
    assert (problem.kind, problem.name, problem.repaired) == ("content", blobs[number].digest, False)
    assert problem.images == [f"default/{NAME}"] or number < 2
    fetched, fetch = fetch_into(store)
    [problem] = store.fsck(repair=True, fetch=fetch)  # type: ignore[arg-type]
    assert problem.repaired
    assert fetched == [blobs[number].digest, f"default/{NAME}"]
    assert store.fsck() == []


def test_without_a_source_a_damaged_blob_goes(store: Store) -> None:
    layer = IMAGE.manifest.layers[0]
    damage(store.content.path(layer.digest))
    [problem] = store.fsck(repair=True)[:1]
    assert not problem.repaired
    assert not store.content.exists(layer.digest)
    with store.content.writer(layer) as writer:
        writer.write(IMAGE.blobs.read(layer))
        writer.commit()
    assert store.fsck() == []


@pytest.mark.parametrize("fault", ["other content", "is missing", "should not be there", "mode or owner"])
def test_a_damaged_layer_is_replaced(store: Store, fault: str) -> None:
    info = store.snapshots.walk()[0]
    file = Path(info.directory) / "fs/d/a"
    before = file.stat()
    if fault == "other content":
        file.write_text("x")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif fault == "is missing":
        file.unlink()
    elif fault == "mode or owner":
        file.chmod(0o777)
    else:
        file.with_name("z").touch()
    [problem] = store.fsck()
    assert (problem.kind, problem.name) == ("layer", info.key)
    assert fault in problem.what
    [problem] = store.fsck(repair=True)
    assert problem.repaired
    assert store.fsck() == []
    assert len(os.listdir(store.snapshots.root)) == 3


@pytest.mark.parametrize("kind", ["container", "view"])
def test_a_damaged_layer_is_not_taken_from_under_a_container(store: Store, kind: str, tmp_path: Path) -> None:
    bottom, top = store.snapshots.walk()
    make = store.snapshots.prepare if kind == "container" else store.snapshots.view
    root = tmp_path / "mnt"
    root.mkdir()
    attach(make("user", top.key), str(root))
    try:
        Path(bottom.directory, "fs/d/z").touch()
        [problem] = store.fsck(repair=True)
        assert not problem.repaired
        assert problem.what.endswith("not replaced while it is in use: remove user, and repair again")
        assert (root / "d/a").read_text() == "1"
        assert store.snapshots.stat(bottom.key).directory == bottom.directory
        assert [info.key for info in store.snapshots.walk()] == [bottom.key, top.key, "user"]
    finally:
        detach(str(root))
        store.snapshots.remove("user")
    [problem] = store.fsck(repair=True)
    assert problem.repaired
    assert store.fsck() == []


def test_compressed_layers_are_reproducible() -> None:
    assert gzip.decompress(IMAGE.blobs.read(IMAGE.manifest.layers[1])) == archive(b="2")

"""Garbage: what is kept and why, what goes, and what writers and the collector do to each other."""

import gzip
import io
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.errors import AlreadyExists, NotFound
from sampan.spec import image
from sampan.spec.image import Descriptor, ImageConfig, Index, Manifest, RootFs
from sampan.storage.store import Store
from sampan.storage.unpack import unpack

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        yield store


def layer(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(text)
        tar.addfile(info)
    return out.getvalue()


def add_image(store: Store, *layers: bytes) -> Descriptor:
    config = ImageConfig(os="linux", rootfs=RootFs(diff_ids=tuple(map(image.digest_of, layers))))
    manifest = Manifest(
        schema_version=2,
        config=store.content.put(image.encode(config), image.MT_OCI_CONFIG),
        layers=tuple(store.content.put(gzip.compress(one, mtime=0), image.MT_OCI_LAYER_GZIP) for one in layers),
    )
    return store.content.put(image.encode(manifest), image.MT_OCI_MANIFEST)


def test_an_image_keeps_all_of_itself_and_goes_as_a_whole(store: Store) -> None:
    target = add_image(store, layer("a"), layer("b"))
    top = unpack(store, target)
    store.images("default").put("x", target)
    store.images("k8s.io").put("y", target)
    assert store.gc() == store.gc(dry_run=True)
    assert len(store.content.walk()) == 4
    assert len(store.snapshots.walk()) == 2

    [first, second] = store.explain(store.snapshots.stat(top).parent)
    assert 'kept by image "x" in namespace default' in first
    assert first.endswith(f"snapshot {store.snapshots.stat(top).parent}")
    assert f"content {target.digest} -> content" in first
    assert 'image "y" in namespace k8s.io' in second

    store.images("default").delete("x")
    assert store.gc().content == []
    store.images("k8s.io").delete("y")
    assert "kept by nothing" in store.explain(target.digest)[0]
    planned = store.gc(dry_run=True)
    assert len(planned.content) == 4
    assert len(store.content.walk()) == 4
    assert store.gc() == planned
    assert store.content.walk() == []
    assert store.snapshots.walk() == []
    assert os.listdir(store.snapshots.root) == ["lock"]
    assert os.listdir(os.path.join(store.content.root, "blobs/sha256")) == []
    with pytest.raises(NotFound):
        store.explain(target.digest)


def test_layers_shared_with_another_image_stay(store: Store) -> None:
    one, two = add_image(store, layer("a"), layer("b")), add_image(store, layer("a"), layer("c"))
    unpack(store, one)
    unpack(store, two)
    # Of the index's other platform nothing was pulled.
    absent = Descriptor(media_type=two.media_type, digest=image.digest_of(b"not here"), size=8)
    index = store.content.put(image.encode(Index(schema_version=2, manifests=(two, absent))), image.MT_OCI_INDEX)
    store.images("default").put("two", index)
    report = store.gc()
    assert len(report.content) == 3
    assert len(report.snapshots) == 1
    assert store.content.exists(two.digest)


@pytest.mark.parametrize("claim", ["application/octet-stream", image.MT_OCI_CONFIG, image.MT_OCI_LAYER, "", "index"])
def test_no_image_speaks_for_what_another_one_keeps(store: Store, claim: str) -> None:
    """Whatever an image claims of content that another one has too, be it looked at first or last."""
    target = add_image(store, layer("a"), layer("b"))
    top = unpack(store, target)
    manifest = image.decode_manifest(store.content.read(target))
    assert isinstance(manifest, Manifest)
    media_type = image.MT_OCI_INDEX if claim == "index" else claim
    false = tuple(
        Descriptor(media_type=media_type, digest=one.digest, size=one.size)
        for one in (target, manifest.config, *manifest.layers)
    )
    entries = Index(schema_version=2, media_type=image.MT_OCI_INDEX, manifests=false)
    index = store.content.put(image.encode(entries), image.MT_OCI_INDEX)
    store.images("default").put("a", index)
    store.images("default").put("m", target)
    store.images("default").put("z", index)
    assert (store.gc().content, store.gc().snapshots) == ([], [])
    # Below one index, an entry that tells the truth comes after the one that does not.
    both = Index(schema_version=2, media_type=image.MT_OCI_INDEX, manifests=(*false, target))
    store.images("default").put("both", store.content.put(image.encode(both), image.MT_OCI_INDEX))
    store.images("default").delete("m")
    assert (store.gc().content, store.gc().snapshots) == ([], [])
    assert any('kept by image "both"' in line for line in store.explain(top))
    store.images("default").delete("both")
    store.gc()
    assert store.content.exists(manifest.layers[0].digest), "the other two name it"


def test_leases_keep_until_they_expire(store: Store) -> None:
    lease = store.leases("default").create(expires_in=3600)
    blob = store.content.put(b"being pulled", lease=lease)
    with pytest.raises(AlreadyExists):
        store.content.writer(blob, lease=lease)
    assert store.gc().content == []
    assert f'kept by lease "{lease.id}"' in store.explain(blob.digest)[0]
    lease.renew(0.001)
    time.sleep(0.01)
    assert store.gc().content == [blob.digest]
    assert store.leases("default").list() == []


def test_records_keep_what_they_name(store: Store) -> None:
    target = add_image(store, layer("a"))
    top = unpack(store, target)
    store.snapshots.prepare("container-1", top)
    store.records("default", "container").put("1", b"", content=[target.digest], snapshots=["container-1"])
    assert store.gc(grace=0).snapshots == []
    assert [info.key for info in store.snapshots.walk()] == [top, "container-1"]
    store.records("default", "container").delete("1")
    assert store.gc(grace=60).content != []
    assert [info.key for info in store.snapshots.walk()] == [top, "container-1"]
    assert sorted(store.gc(grace=0).snapshots) == sorted([top, "container-1"])


def test_old_downloads_go_and_running_ones_stay(store: Store) -> None:
    descriptor = Descriptor(media_type="", digest=image.digest_of(b"hello"), size=5)
    other = Descriptor(media_type="", digest=image.digest_of(b"other"), size=5)
    with store.content.writer(descriptor) as writer:
        writer.write(b"he")
    running = store.content.writer(other)
    running.write(b"o")
    for name in os.listdir(store.content.ingest_directory):
        os.utime(os.path.join(store.content.ingest_directory, name), (0, 0))
    assert [name.split("-")[1] for name in store.gc().ingests] == [descriptor.digest[7:]]
    running.write(b"ther")
    running.commit()
    assert store.content.exists(other.digest)


def test_a_file_that_lost_its_row_goes(store: Store) -> None:
    """As after a kill between a blob's renaming and its row, or between the deletion of its row and its file."""
    blob = store.content.put(b"stray")
    with store.transaction() as connection:
        connection.execute("DELETE FROM blobs")
    for dry_run in (True, False):
        report = store.gc(dry_run=dry_run)
        assert (report.content, report.bytes) == ([blob.digest], 5)
    assert not os.path.exists(store.content.path(blob.digest))
    assert store.gc().content == []
    assert store.content.put(b"stray") == blob


def test_a_blob_written_while_it_is_collected_is_whole(store: Store) -> None:
    """Whatever the order: where there is a row there is a file."""
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            store.gc()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(60):
            with store.leases("default").create() as lease:
                blob = store.content.put(b"again and again", lease=lease)
                assert store.content.read(blob) == b"again and again"
    finally:
        stop.set()
        thread.join()

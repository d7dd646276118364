"""save, load, and packing changes: round trips with ourselves and with skopeo."""

import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.errors import Corrupt, InvalidInput, NotFound
from sampan.image import mutate, pack, validate
from sampan.image.diff import pack_changes, pack_upper
from sampan.image.model import Image
from sampan.spec import image as spec
from sampan.spec.image import Index
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.transfer import image, load, put_image, save
from sampan.storage.unpack import Unpacker, unpack

pytestmark = pytest.mark.root

NAME = "docker.io/library/app:1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "other"), snapshotter="overlayfs") as store:
        yield store


def archive(**files: str) -> bytes:
    parts: list[bytes] = []
    writer = pack.Writer(parts.append)
    for name, text in files.items():
        writer.file(name, text.encode())
    writer.close()
    return b"".join(parts)


def add(store: Store) -> Image:
    value = mutate.append_layer(mutate.append_layer(mutate.empty(), archive(a="1")), archive(b="2"))
    store.images("default").put(NAME, put_image(store, value))
    return value


def saved(store: Store, path: Path, *names: str) -> Path:
    with path.open("wb") as file:
        save(store, "default", names or (NAME,), file.write)
    return path


@pytest.mark.parametrize(("levels", "width"), [(600, 1), (3, 300)])
def test_an_archive_whose_indexes_have_no_end_is_refused_or_read_at_once(
    store: Store, tmp_path: Path, levels: int, width: int
) -> None:
    """Indexes in indexes without an end; and three of 300 entries each that are all the same, 27 million ways."""
    value = mutate.append_layer(mutate.empty(), archive(a="1"))
    target, documents = value.descriptor, {}
    for _ in range(levels):
        document = spec.encode(Index(schema_version=2, media_type=spec.MT_OCI_INDEX, manifests=(target,) * width))
        target = spec.describe(document, spec.MT_OCI_INDEX)
        documents[target.digest] = document
    parts = [value.raw_manifest, value.raw_config, *(b"".join(layer.compressed()) for layer in value.layers)]
    documents.update((spec.digest_of(data), data) for data in parts)
    with (tmp_path / "deep.tar").open("wb") as file:
        writer = pack.Writer(file.write)
        for digest, data in documents.items():
            writer.file(f"blobs/{digest.replace(':', '/')}", data)
        writer.file("index.json", spec.encode(Index(schema_version=2, manifests=(target,))))
        writer.close()
    with (tmp_path / "deep.tar").open("rb") as file:
        if width > 1:
            assert [one.target.digest for one in load(store, "default", file.read)] == [target.digest]
        else:
            with pytest.raises(Corrupt, match="nested"):
                load(store, "default", file.read)
    assert store.images("default").list() == []


def test_save_and_load(store: Store, other: Store, tmp_path: Path) -> None:
    value = add(store)
    store.images("default").put("quay.io/x/y:2", value.descriptor)
    path = saved(store, tmp_path / "a.tar", NAME, "quay.io/x/y:2")
    packed = gzip.compress(path.read_bytes())
    position = 0

    def drip(_: int) -> bytes:
        nonlocal position
        position += 777
        return packed[position - 777 : position]

    loaded = load(other, "default", drip)
    assert sorted(one.name for one in loaded) == [NAME, "quay.io/x/y:2"]
    assert {one.target.digest for one in loaded} == {value.digest}
    assert other.images("default").get(NAME).target.digest == value.digest
    other.gc()
    found = image(other, loaded[0].target)
    assert isinstance(found, Image)
    assert validate.faults(found) == []
    assert len(other.content.walk()) == 4
    assert other.leases("default").list() == []
    assert unpack(other, loaded[0].target)


def test_skopeo_reads_both_forms_of_what_is_saved(store: Store, tmp_path: Path) -> None:
    value = add(store)
    path = saved(store, tmp_path / "a.tar")
    for source in (f"oci-archive:{path}", f"docker-archive:{path}"):
        target = tmp_path / source.partition("-")[0]
        subprocess.run(["skopeo", "copy", "-q", source, f"oci:{target}:x"], check=True, capture_output=True)
        shown = subprocess.run(["skopeo", "inspect", "--config", f"oci:{target}:x"], check=True, capture_output=True)
        assert spec.decode_config(shown.stdout).rootfs == value.config.rootfs


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_what_skopeo_writes_is_loaded(store: Store, other: Store, tmp_path: Path, form: str) -> None:
    value = add(store)
    path = saved(store, tmp_path / "a.tar")
    out = tmp_path / "b.tar"
    suffix = ":quay.io/z:3" if form == "docker-archive" else ""
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{path}", f"{form}:{out}{suffix}"], check=True)
    with out.open("rb") as file:
        [loaded] = load(other, "default", file.read, names=["quay.io/z:3"])
    assert loaded.name == "quay.io/z:3"
    found = image(other, loaded.target)
    assert isinstance(found, Image)
    assert found.config.rootfs == value.config.rootfs
    assert unpack(other, loaded.target) == unpack(store, value.descriptor)


def test_an_index_travels_with_the_platforms_that_are_there(store: Store, other: Store, tmp_path: Path) -> None:
    value = add(store)
    here = spec.Descriptor(
        media_type=spec.MT_OCI_MANIFEST, digest=value.digest, size=value.descriptor.size, platform=spec.Platform.host()
    )
    away = spec.Descriptor(
        media_type=spec.MT_OCI_MANIFEST,
        digest=spec.digest_of(b"x"),
        size=1,
        platform=spec.Platform.parse("linux/s390x"),
    )
    index = store.content.put(spec.encode(Index(schema_version=2, manifests=(away, here))), spec.MT_OCI_INDEX)
    store.images("default").put(NAME, index)
    with saved(store, tmp_path / "a.tar").open("rb") as file:
        [loaded] = load(other, "default", file.read)
    assert loaded.target.digest == index.digest
    assert unpack(other, loaded.target)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"index.json": "{}"},
        {"index.json": "nonsense"},
        {"index.json": '{"schemaVersion":2,"manifests":[]}'},
        {"manifest.json": '[{"Config":"../../etc/passwd","Layers":[]}]'},
        {"manifest.json": '[{"Config":"c","Layers":["l"]}]', "c": "{}"},
        {"manifest.json": '[{"Config":"c","Layers":["l"]}]', "c": "{}", "l": ""},
        {"manifest.json": '[{"Config":"c","Layers":[],"RepoTags":["UPPER"]}]', "c": "{}"},
        {"index.json": spec.encode(Index(2, (spec.describe(b"not there", spec.MT_OCI_MANIFEST),))).decode()},
    ],
)  # fmt: skip
def test_bad_archives_name_nothing(store: Store, members: dict[str, str]) -> None:
    data = archive(**members)
    pieces = iter([data])
    with pytest.raises((Corrupt, InvalidInput)):
        load(store, "default", lambda _: next(pieces, b""))
    assert store.images("default").list() == []
    store.gc()
    assert store.content.walk() == []


def test_cut_off_archives_name_nothing(store: Store, other: Store, tmp_path: Path) -> None:
    add(store)
    data = saved(store, tmp_path / "a.tar").read_bytes()
    for end in range(0, len(data) - 1024, 1500):
        pieces = iter([data[:end]])
        with pytest.raises((Corrupt, InvalidInput)):
            load(other, "default", lambda _, pieces=pieces: next(pieces, b""))  # type: ignore[misc]
    assert other.images("default").list() == []


def test_saving_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFound):
        save(store, "default", ["docker.io/library/none:1"], len)


def test_changes_are_packed_and_applied_again(store: Store, other: Store, tmp_path: Path) -> None:
    """upper directory -> layer -> the same tree; by overlayfs's own records and by comparing."""
    base = mutate.append_layer(mutate.empty(), archive(**{"etc/a": "1", "etc/b": "1", "opt/x/y": "1", "gone": "1"}))
    put_image(store, base)
    name = unpack(store, base.descriptor)
    root = tmp_path / "mnt"
    root.mkdir()
    attach(store.snapshots.prepare("top", name), str(root))
    try:
        (root / "etc/a").write_text("2")
        (root / "gone").unlink()
        subprocess.run(["rm", "-r", str(root / "opt")], check=True)
        (root / "opt").mkdir()
        (root / "opt/new").write_text("2")
        os.link(root / "opt/new", root / "opt/again")
        os.symlink("/etc/a", root / "link")
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        os.setxattr(root / "opt/new", "user.x", b"y")
        os.utime(root / "opt/new", ns=(0, -1_500_000_000))
        os.chown(root / "link", 5, 6, follow_symlinks=False)
        expected = listing(root)
        [upper_files, lower_files] = [os.path.join(store.snapshots.stat(key).directory, "fs") for key in ("top", name)]
        for packer in ("upper", "changes"):
            parts: list[bytes] = []
            if packer == "upper":
                pack_upper(upper_files, parts.append)
            else:
                pack_changes(lower_files, str(root), parts.append)
            changed = mutate.append_layer(base, b"".join(parts))
            put_image(other, changed)
            with Unpacker(other, changed.config, changed.manifest.layers) as unpacker:
                top = unpacker.finish()
            again = tmp_path / packer
            again.mkdir()
            attach(other.snapshots.view(packer, top), str(again))
            try:
                assert listing(again) == expected
            finally:
                detach(str(again))
    finally:
        detach(str(root))


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        plain = path.is_file() and not path.is_symlink()
        result[str(path.relative_to(root))] = (
            s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns if not path.is_dir() else 0,
            s.st_nlink if plain else 0, path.read_bytes() if plain else os.readlink(path) if path.is_symlink() else b"",
            os.listxattr(path, follow_symlinks=False),
        )  # fmt: skip
    return result

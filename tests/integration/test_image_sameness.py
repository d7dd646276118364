"""An applied image equals what umoci and GNU tar make of it: each byte and each attribute, like mtree(8)."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import test_images

from sampan.image.decompress import inflate
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, ImageConfig, Manifest, RootFs
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.unpack import unpack

pytestmark = pytest.mark.root

needs_umoci = pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
#: Everything that GNU tar can keep of a file.
KEEP = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
MARKS = (b"trusted.overlay.", b"user.overlay.", b"user.rootlesscontainers", b"user.umoci.")


# ------------------------------------------------------------------ what is compared


def listing(root: Path, *, acls: bool = True) -> dict[str, tuple[object, ...]]:
    """Of every file: type, mode, owner, device, size, time, content or target, attributes, and who shares its inode."""
    found: dict[str, tuple[object, ...]] = {}
    shared: dict[int, str] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in sorted([b".", *folders, *files] if folder == os.fsencode(root) else [*folders, *files]):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            inner = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            directory = stat.S_ISDIR(status.st_mode)
            found[inner] = (
                oct(status.st_mode),
                (status.st_uid, status.st_gid),
                status.st_rdev,
                0 if directory else status.st_size,
                status.st_mtime_ns,
                content(path, status),
                attributes(path, acls=acls),
            )
            if not directory and status.st_nlink > 1:
                shared.setdefault(status.st_ino, min(inner, shared.get(status.st_ino, inner)))
    # Named by the first path of each inode, so that the same groups of links read the same.
    groups: dict[int, list[str]] = {}
    for inner in found:
        status = os.lstat(root / inner)
        if status.st_ino in shared and not stat.S_ISDIR(status.st_mode):
            groups.setdefault(status.st_ino, []).append(inner)
    for names in groups.values():
        for inner in names:
            found[inner] = (*found[inner], tuple(sorted(names)))
    return found


def content(path: bytes, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def attributes(path: bytes, *, acls: bool) -> tuple[tuple[str, bytes], ...]:
    names = [
        name
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.encode().startswith(MARKS) and (acls or not name.startswith("system."))
    ]
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))


def differences(ours: dict[str, tuple[object, ...]], theirs: dict[str, tuple[object, ...]]) -> list[str]:
    names = sorted(ours.keys() | theirs.keys())
    return [f"{name}: {ours.get(name)} / {theirs.get(name)}" for name in names if ours.get(name) != theirs.get(name)]


# ------------------------------------------------------------------ the three


def add_image(store: Store, layers: Sequence[Path]) -> Descriptor:
    """An image of layers in files, compressed or not."""
    blobs, diff_ids = [], []
    for path in layers:
        with open(path, "rb") as file:
            kind = spec.MT_OCI_LAYER_GZIP if file.read(2) == b"\x1f\x8b" else spec.MT_OCI_LAYER
            file.seek(0)
            digest = hashlib.sha256()
            for piece in inflate(file.read):
                digest.update(piece)
            diff_ids.append(f"sha256:{digest.hexdigest()}")
            file.seek(0)
            with store.content.writer(None) as writer:
                while data := file.read(1 << 20):
                    writer.write(data)
                blobs.append(writer.commit(kind))
    config = ImageConfig(architecture="amd64", os="linux", rootfs=RootFs(diff_ids=tuple(diff_ids)))
    manifest = Manifest(
        schema_version=2,
        media_type=spec.MT_OCI_MANIFEST,
        config=store.content.put(spec.encode(config), spec.MT_OCI_CONFIG),
        layers=tuple(msgspec.structs.replace(blob, media_type=spec.MT_OCI_LAYER_GZIP) for blob in blobs),
    )
    return store.content.put(spec.encode(manifest), spec.MT_OCI_MANIFEST)


@contextmanager
def ours(store: Store, target: Descriptor, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    attach(store.snapshots.view("look", unpack(store, target)), str(folder))
    try:
        yield folder
    finally:
        detach(str(folder))
        store.snapshots.remove("look")


def by_umoci(store: Store, target: Descriptor, folder: Path) -> Path:
    layout = folder / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    for blob in store.content.walk():
        os.link(store.content.path(blob.digest), layout / "blobs/sha256" / blob.digest[7:])
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    entry = {**msgspec.to_builtins(target), "annotations": {"org.opencontainers.image.ref.name": "x"}}
    (layout / "index.json").write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [entry]}))
    command = ["umoci", "unpack", "--image", f"{layout}:x", str(folder / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "bundle/rootfs"


def by_tar(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["tar", *KEEP, "-p", "--same-owner", "-C", str(folder), "-xf", str(archive)], check=True)
    return folder


# ------------------------------------------------------------------ a tree with everything in it


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as the kernel's attribute has it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (8, 6, 77), (16, 6, NOBODY), (32, 0, NOBODY))


def make_tree(root: Path) -> None:
    """One of each thing that an archive can hold."""
    root.mkdir()
    (root / "plain").write_bytes(b"hello\n" * 1000)
    (root / "empty").touch()
    for mode in (0o4755, 0o2755, 0o1777, 0o000):
        (root / f"mode{mode:o}").write_text("x")
        (root / f"mode{mode:o}").chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3770)
    os.chown(root / "sticky", 12345, 2_000_000_000)
    (root / "deep").mkdir()
    deep = root / "deep"
    for level in range(25):
        deep /= f"level{level:02}-" + "n" * 90
        deep.mkdir()
    (deep / ("f" * 255)).write_text("far down")
    (root / "snow\u2603man \u202e").write_text("unicode")
    with open(os.fsencode(root) + b"/bytes\xff\xfe\n\ttab", "wb") as file:
        file.write(b"no text")
    (root / "first").write_text("three names")
    os.link(root / "first", root / "second")
    os.link(root / "first", root / "sticky/third")
    (root / "link").symlink_to("t" * 1000)
    os.link(root / "link", root / "link2", follow_symlinks=False)
    os.lchown(root / "link", 7, 8)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    os.mkfifo(root / "pipe", 0o600)
    with open(root / "sparse", "wb") as file:
        for offset in (1 << 20, 40 << 20):
            file.seek(offset)
            file.write(b"data" * 2000)
        file.truncate(100 << 20)
    with open(root / "hole", "wb") as file:
        file.truncate(5 << 20)
    (root / "noted").write_text("x")
    os.setxattr(root / "noted", "user.note", b"a=b\n\0binary")
    os.setxattr(root / "noted", "user.empty", b"")
    os.setxattr(root / "sticky", "user.of.a.directory", b"1" * 500)
    os.setxattr(root / "noted", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    (root / "listed").write_text("x")
    os.setxattr(root / "listed", "system.posix_acl_access", ACCESS)
    os.setxattr(root / "sticky", "system.posix_acl_default", ACCESS)
    times = {
        "plain": 1_600_000_000_123_456_789,
        "empty": -86_400_500_000_000,
        "link": 1,
        "null": 981_173_106_000_000_001,
    }
    for name, moment in times.items():
        os.utime(root / name, ns=(moment, moment), follow_symlinks=False)
    os.utime(root / "sticky", ns=(5, 1_234_567_890_987_654_321))


@pytest.mark.parametrize(
    "form",
    [("--format=posix", *KEEP), ("--format=posix", "--sparse", *KEEP), ("--format=gnu", "--sparse"), ("--format=gnu",)],
    ids=" ".join,
)
def test_everything_an_archive_can_hold_is_as_gnu_tar_extracts_it(tmp_path: Path, form: tuple[str, ...]) -> None:
    make_tree(tmp_path / "tree")
    archive = tmp_path / "tree.tar"
    subprocess.run(["tar", "-C", str(tmp_path / "tree"), *form, "-cf", str(archive), "."], check=True)
    theirs = by_tar(archive, tmp_path / "theirs")
    with (
        Store(str(tmp_path / "root"), snapshotter="overlayfs") as store,
        ours(store, add_image(store, [archive]), tmp_path / "ours") as root,
    ):
        found = listing(root)
        assert differences(found, listing(theirs)) == []
        if "--format=posix" in form:
            assert differences(found, listing(tmp_path / "tree")) == []
        if "--sparse" in form:
            assert (root / "sparse").stat().st_blocks <= (theirs / "sparse").stat().st_blocks
            assert (root / "hole").stat().st_blocks == 0
    assert found["sticky/third"][-1] == ("first", "second", "sticky/third")


@needs_umoci
def test_everything_that_umoci_can_unpack_is_as_umoci_unpacks_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    for name in ("sparse", "hole"):  # umoci knows no sparse files, and drops attributes without a value
        (tmp_path / "tree" / name).unlink()
    os.removexattr(tmp_path / "tree/noted", "user.empty")
    archive = tmp_path / "tree.tar.gz"
    command = ["tar", "-C", str(tmp_path / "tree"), "--format=posix", *KEEP, "-czf", str(archive), "."]
    subprocess.run(command, check=True)
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        target = add_image(store, [archive])
        theirs = by_umoci(store, target, tmp_path)
        with ours(store, target, tmp_path / "ours") as root:
            different = differences(listing(root, acls=False), listing(theirs, acls=False))
            # umoci takes no notice of ACLs as tar writes them; GNU tar's test has them.
            assert os.getxattr(root / "listed", "system.posix_acl_access") == ACCESS
    assert [text for text in different if not text.startswith(("listed: ", "sticky: "))] == []


# ------------------------------------------------------------------ images, and a real root


@needs_umoci
@pytest.mark.parametrize("name", ["demo/busybox:1", "demo/web:1"])
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_our_test_images_are_as_umoci_and_tar_unpack_them(tmp_path: Path, name: str, snapshotter: str) -> None:
    layers = []
    for number, data in enumerate(layer.data for layer in test_images.demo_images()[name].layers):
        layers.append(tmp_path / f"layer{number}.tar.gz")
        layers[-1].write_bytes(data)
    with Store(str(tmp_path / "root"), snapshotter=snapshotter) as store:
        target = add_image(store, layers)
        theirs = listing(by_umoci(store, target, tmp_path))
        with ours(store, target, tmp_path / "ours") as root:
            found = listing(root)
    extracted = tmp_path / "theirs"
    extracted.mkdir()
    for path in layers:
        subprocess.run(["tar", *KEEP, "-p", "-C", str(extracted), "-xf", str(path)], check=True)
    assert len(found) > 3
    # What the top layer does not list has no time of its own there: each of the others has the time of its work.
    listed = names_in(layers[-1:])
    unlisted = {".", *(path for path in found if path not in listed)}
    assert len(found) - len(unlisted) > 1
    assert same_but_times(found, theirs, unlisted) == []
    # GNU tar sets a directory's time when it first meets a member outside, and members inside may still follow.
    folders = {path for path, value in found.items() if str(value[0]).startswith("0o40")}
    assert same_but_times(found, listing(extracted), unlisted | folders) == []


def names_in(layers: Sequence[Path]) -> set[str]:
    names: set[str] = set()
    for layer in layers:
        listed = subprocess.run(["tar", "-tf", str(layer)], check=True, capture_output=True, text=True).stdout
        names |= {os.path.normpath(line) for line in listed.splitlines()}
    return names


def same_but_times(
    one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]], unlisted: set[str]
) -> list[str]:
    def without(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
        return {name: value[:4] if name in unlisted else value for name, value in found.items()}

    return differences(without(one), without(other))


@needs_umoci
@pytest.mark.big
@pytest.mark.timeout(3000)
def test_a_large_real_root_is_as_umoci_and_tar_unpack_it(tmp_path: Path) -> None:
    """This machine's /usr and /etc, but for files of more than 8 MB, which test the disk alone."""
    archive = tmp_path / "real.tar.gz"
    pack = (
        "find usr etc -xdev \\( ! -type f -o -size -8192k \\) ! -type s -print0 |"
        f" tar --null --no-recursion -T - --format=posix {' '.join(map(repr, KEEP))} -cf - | gzip -1 > {archive}"
    )
    subprocess.run(["bash", "-eo", "pipefail", "-c", pack], check=True, cwd="/")
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        target = add_image(store, [archive])
        with ours(store, target, tmp_path / "ours") as root:
            found = listing(root)
        tarred = by_tar(archive, tmp_path / "theirs")
        assert same_but_times(found, listing(tarred), {"."}) == []
        shutil.rmtree(tarred)
        assert same_but_times(found, listing(by_umoci(store, target, tmp_path), acls=False), {"."}) == []
    print(f"{len(found)} files the same, {archive.stat().st_size >> 20} MiB compressed")
    assert len(found) > 10_000

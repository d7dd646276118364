"""Layers on the real kernel: what the applier makes, what it refuses, and that nothing is written elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zstandard

from sampan.errors import Corrupt, Exhausted, SampanError, Unsupported
from sampan.spec import image
from sampan.spec.image import Descriptor, ImageConfig, Manifest, RootFs
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.unpack import Unpacker, unpack

pytestmark = pytest.mark.root

REAL_FOLDERS = ("etc", "usr/share/doc", "usr/sbin", "usr/lib/python3", "usr/lib/python3.11")

DIRECTORY, SYMLINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.fixture(params=["overlayfs", "native"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "root"), snapshotter=request.param) as store:
        yield store
    assert not Path("/sampan-escaped").exists()


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mtime = 1_500_000_000
    info.mode = 0o755 if fields.get("type") == DIRECTORY else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    info.size = len(data)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def add_image(store: Store, *layers: bytes, diff_ids: list[str] | None = None) -> Descriptor:
    config = ImageConfig(
        architecture="amd64",
        os="linux",
        rootfs=RootFs(diff_ids=tuple(diff_ids or [image.digest_of(layer) for layer in layers])),
    )
    blobs = [store.content.put(gzip.compress(layer, 1), image.MT_OCI_LAYER_GZIP) for layer in layers]
    manifest = Manifest(
        schema_version=2,
        config=store.content.put(image.encode(config), image.MT_OCI_CONFIG),
        layers=tuple(blobs),
    )
    return store.content.put(image.encode(manifest), image.MT_OCI_MANIFEST)


@contextmanager
def root_of(store: Store, name: str, tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "mnt"
    target.mkdir(exist_ok=True)
    attach(store.snapshots.view("look", name), str(target))
    try:
        yield target
    finally:
        detach(str(target))
        store.snapshots.remove("look")


def listing(root: Path) -> dict[str, str]:
    result = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}.get(stat.S_IFMT(status.st_mode), "?")
        detail = path.read_text() if kind == "f" else os.readlink(path) if kind == "l" else ""
        result[str(path.relative_to(root))] = f"{kind}{status.st_mode & 0o7777:o} {detail}".rstrip()
    return result


def test_kinds_and_attributes(store: Store, tmp_path: Path) -> None:
    target = add_image(
        store,
        archive(
            member("./", type=DIRECTORY, mode=0o751),
            member("bin/", type=DIRECTORY, mode=0o2775, gid=20),
            member("bin/su", b"program", mode=0o4755, uid=5, gid=6),
            member("bin/again", type=HARD_LINK, linkname="bin/su"),
            member("link", type=SYMLINK, linkname="/bin/su", uid=7),
            member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("pipe", type=tarfile.FIFOTYPE, mode=0o6711, uid=5, gid=6),
            member("old", b"", pax_headers={"mtime": "-12.25", "SCHILY.xattr.user.note": "hello"}),
            member("cap", b"", pax_headers={"SCHILY.xattr.security.selinux": "x"}),
        ),
    )
    with root_of(store, unpack(store, target), tmp_path) as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o751
        su = (root / "bin/su").stat()
        assert (stat.S_IMODE(su.st_mode), su.st_uid, su.st_gid, su.st_nlink) == (0o4755, 5, 6, 2)
        assert su.st_mtime == 1_500_000_000
        bin_ = (root / "bin").stat()
        assert (stat.S_IMODE(bin_.st_mode), bin_.st_gid, bin_.st_mtime) == (0o2775, 20, 1_500_000_000)
        assert (root / "link").lstat().st_uid == 7
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
        pipe = (root / "pipe").stat()
        assert (pipe.st_mode, pipe.st_uid, pipe.st_gid) == (stat.S_IFIFO | 0o6711, 5, 6)
        assert pipe.st_mtime == 1_500_000_000
        assert (root / "old").stat().st_mtime_ns == -12_250_000_000
        assert os.getxattr(root / "old", "user.note") == b"hello"
        assert os.listxattr(root / "cap") == []


LOWER = archive(
    member("etc/", type=DIRECTORY),
    member("etc/keep", b"1"),
    member("etc/gone", b"1"),
    member("opt/", type=DIRECTORY, mode=0o700, uid=9),
    member("opt/a", b"1"),
    member("opt/sub/", type=DIRECTORY),
    member("opt/sub/b", b"1"),
    member("usr/", type=DIRECTORY),
    member("usr/lib/", type=DIRECTORY),
    member("lib", type=SYMLINK, linkname="usr/lib"),
    member("absolute", type=SYMLINK, linkname="/usr"),
    member("file", b"1"),
)


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        ([member("etc/.wh.gone")], {"etc/gone": None}),
        ([member("opt/.wh..wh..opq"), member("opt/new", b"2")],
         {"opt/a": None, "opt/sub": None, "opt/sub/b": None, "opt/new": "f644 2"}),
        ([member("opt/new", b"2"), member("opt/.wh..wh..opq")],
         {"opt/a": None, "opt/sub": None, "opt/sub/b": None, "opt/new": "f644 2"}),
        ([member(".wh.opt"), member("opt/", type=DIRECTORY, mode=0o755), member("opt/x", b"2")],
         {"opt": "d755", "opt/a": None, "opt/sub": None, "opt/sub/b": None, "opt/x": "f644 2"}),
        ([member("opt/sub/c", b"2"), member("opt/sub/.wh.b")], {"opt/sub/c": "f644 2", "opt/sub/b": None}),
        ([member("lib/so", b"2")], {"usr/lib/so": "f644 2"}),
        ([member("absolute/lib/so", b"2")], {"usr/lib/so": "f644 2"}),
        # What goes through a symlink stays where that led, whatever takes its place later.
        ([member("lib/so", b"2"), member("lib", b"3")], {"usr/lib/so": "f644 2", "lib": "f644 3"}),
        ([member("lib/so", b"2"), member("lib/", type=DIRECTORY)], {"usr/lib/so": "f644 2", "lib": "d755"}),
        ([member("lib/d/", type=DIRECTORY), member("lib", type=SYMLINK, linkname="lib")],
         {"usr/lib/d": "d755", "lib": "l777 lib"}),
        ([member(".wh.file"), member(".wh.lib"), member("lib", type=SYMLINK, linkname="file"), member("lib/so", b"2")],
         {"lib": "l777 file", "file": "d755", "file/so": "f644 2"}),
        # A directory's attributes go with it: neither a namesake behind a symlink nor a later one gets them.
        ([member("n/sub/", type=DIRECTORY, mode=0o700), member("n", type=SYMLINK, linkname="opt")], {"n": "l777 opt"}),
        ([member("n/sub/", type=DIRECTORY, mode=0o700), member("n", b"2"), member("n/", type=DIRECTORY),
          member("n/sub/x", b"2")],
         {"n": "d755", "n/sub": "d755", "n/sub/x": "f644 2"}),
        ([member("opt/link", type=HARD_LINK, linkname="etc/keep")], {"opt/link": "f644 1"}),
        ([member("file/", type=DIRECTORY)], {"file": "d755"}),
        ([member("opt", b"2")], {"opt": "f644 2", "opt/a": None, "opt/sub": None, "opt/sub/b": None}),
        ([member("etc/keep", b"2"), member("etc/keep", b"3")], {"etc/keep": "f644 3"}),
        ([member("etc/keep", b"2"), member("etc/.wh.keep")], {"etc/keep": "f644 2"}),
        ([member("etc/.wh.keep"), member("etc/keep", b"2")], {"etc/keep": "f644 2"}),
        ([member("etc/.wh..wh.aufs", b"")], {}),
        ([member(".wh.nothing"), member("nowhere/.wh.x")], {"nowhere": "d755"}),
        ([member("a/../b/./c//d", b"2")], {"b": "d755", "b/c": "d755", "b/c/d": "f644 2"}),
    ],
)  # fmt: skip
def test_layers_on_layers(
    store: Store, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], changes: dict[str, str | None]
) -> None:
    with root_of(store, unpack(store, add_image(store, LOWER)), tmp_path) as root:
        expected = listing(root)
    for name, value in changes.items():
        if value is None:
            del expected[name]
        else:
            expected[name] = value
    with root_of(store, unpack(store, add_image(store, LOWER, archive(*members))), tmp_path) as root:
        assert listing(root) == expected
        if "opt" not in changes:
            # A directory that the upper layer never listed is as the lower one made it.
            opt = (root / "opt").stat()
            assert (opt.st_uid, stat.S_IMODE(opt.st_mode)) == (9, 0o700)


@pytest.mark.parametrize(
    "members",
    [
        [member("../sampan-escaped", b"x")],
        [member("/../../sampan-escaped", b"x")],
        [member("a/../../sampan-escaped", b"x")],
        [member("x", type=HARD_LINK, linkname="../../../../etc/passwd")],
        [member("x", type=HARD_LINK, linkname="/etc/passwd")],
        [member("up", type=SYMLINK, linkname="/etc"), member("x", type=HARD_LINK, linkname="up/passwd")],
        [member(".wh...")],
        [member("a/.wh..")],
        [member("d", b"x"), member("d/e", b"x")],
        [member("loop", type=SYMLINK, linkname="loop"), member("loop/x", b"")],
        [member("n" * 256, b"")],
        [member("x", b"", uid=1 << 33)],
        [member("x", b"", mtime=1 << 70)],
        [member("a/" * 300 + "x", b"")],
        [member("d/", type=DIRECTORY), member("x", type=HARD_LINK, linkname="d")],
        [member("x", type=HARD_LINK, linkname="x")],
        [member("x", b"", pax_headers={f"SCHILY.xattr.user.{name}": "x" * 60_000 for name in "abcdef"})],
        [member("x", b"", pax_headers={"SCHILY.xattr.user.a\0b": "x"})],
        [member("x", b"0\n".ljust(512, b"\0"), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                                            "GNU.sparse.realsize": str(1 << 60)})],
        [member("", b"x")],
    ],
)  # fmt: skip
def test_attacks_are_refused_and_leave_nothing(
    store: Store, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    before = Path("/etc/passwd").stat()
    target = add_image(store, archive(*members))
    with pytest.raises((Corrupt, Exhausted)):
        unpack(store, target)
    assert Path("/etc/passwd").stat().st_nlink == before.st_nlink
    assert store.snapshots.walk() == []
    assert os.listdir(store.snapshots.root) == ["lock"]


def test_links_out_of_the_layer_lead_inside_it(store: Store, tmp_path: Path) -> None:
    target = add_image(
        store,
        archive(
            member("up", type=SYMLINK, linkname="../../../../../.."),
            member("root", type=SYMLINK, linkname="/"),
            member("up/sampan-escaped", b"x"),
            member("root/etc/sampan-escaped", b"x"),
            member("etc/evil", type=SYMLINK, linkname="/etc/passwd"),
            member("etc/evil", b"a file now"),
        ),
    )
    passwd = Path("/etc/passwd").read_bytes()
    with root_of(store, unpack(store, target), tmp_path) as root:
        found = listing(root)
    assert found["sampan-escaped"] == "f644 x"
    assert found["etc/sampan-escaped"] == "f644 x"
    assert found["etc/evil"] == "f644 a file now"
    assert Path("/etc/passwd").read_bytes() == passwd


def test_a_wrong_diff_id_leaves_nothing(store: Store) -> None:
    target = add_image(store, archive(member("a", b"x")), diff_ids=[image.digest_of(b"other")])
    with pytest.raises(Corrupt, match="the config says"):
        unpack(store, target)
    assert store.snapshots.walk() == []


@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_damaged_compression(store: Store, damage: str) -> None:
    layer = archive(member("a", os.urandom(100_000)))
    data = gzip.compress(layer)
    data = {"cut": data[:-5000], "flip": data[:5000] + b"\xff" * 50 + data[5050:], "tail": data + b"garbage"}[damage]
    blob = store.content.put(data, image.MT_OCI_LAYER_GZIP)
    config = ImageConfig(rootfs=RootFs(diff_ids=(image.digest_of(layer),)))
    with Unpacker(store, config, [blob]) as unpacker, pytest.raises(Corrupt):
        unpacker.finish()
    assert store.snapshots.walk() == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (zstandard.compress(archive(member("a", b"x"))), image.MT_OCI_LAYER_ZSTD),
        (archive(member("a", b"x")), image.MT_OCI_LAYER),
        (zstandard.compress(archive(member("a", b"x"))), image.MT_OCI_LAYER_GZIP),
        (gzip.compress(archive(member("a", b"x"))[:700]) + gzip.compress(archive(member("a", b"x"))[700:]) + bytes(20),
         image.MT_OCI_LAYER),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(archive(member("a", b"x"))), image.MT_OCI_LAYER_ZSTD),
    ],
)  # fmt: skip
def test_compressions(store: Store, tmp_path: Path, data: bytes, kind: str) -> None:
    blob = store.content.put(data, kind)
    config = ImageConfig(rootfs=RootFs(diff_ids=(image.digest_of(archive(member("a", b"x"))),)))
    with Unpacker(store, config, [blob]) as unpacker, root_of(store, unpacker.finish(), tmp_path) as root:
        assert listing(root) == {"a": "f644 x"}


def test_foreign_and_unknown_layers_are_refused_by_name(store: Store) -> None:
    config = ImageConfig(rootfs=RootFs(diff_ids=(image.digest_of(b""),)))
    for kind in (image.MT_DOCKER_LAYER_FOREIGN, "application/x-odd"):
        with pytest.raises(Unsupported, match=kind.rpartition("/")[2][:20]):
            Unpacker(store, config, [Descriptor(media_type=kind, digest=image.digest_of(b""), size=0)])


def test_bombs_are_stopped(store: Store) -> None:
    # A terabyte of zeros in zstd is some 30 kB.
    compressor = zstandard.ZstdCompressor().compressobj()
    info = tarfile.TarInfo("bomb")
    info.size = 1 << 40
    zeros = bytes(1 << 20)
    data = compressor.compress(info.tobuf(tarfile.GNU_FORMAT)) + b"".join(
        compressor.compress(zeros) for _ in range(1100)
    )
    blob = store.content.put(data + compressor.flush(), image.MT_OCI_LAYER_ZSTD)
    config = ImageConfig(rootfs=RootFs(diff_ids=(image.digest_of(b""),)))
    with Unpacker(store, config, [blob]) as unpacker, pytest.raises(Exhausted, match="expands to more"):
        unpacker.finish()
    assert os.listdir(store.snapshots.root) == ["lock"]


def test_a_layer_is_applied_while_it_arrives(tmp_path: Path) -> None:
    layers = [archive(*(member(f"l{n}/f{i}", os.urandom(5000)) for i in range(200))) for n in range(3)]
    data = [gzip.compress(layer, 1) for layer in layers]
    config = ImageConfig(rootfs=RootFs(diff_ids=tuple(image.digest_of(layer) for layer in layers)))
    descriptors = [image.describe(blob, image.MT_OCI_LAYER_GZIP) for blob in data]
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        with Unpacker(store, config, descriptors) as unpacker:
            for descriptor, blob in zip(descriptors, data, strict=True):
                with store.content.writer(descriptor) as writer:
                    unpacker.follow(descriptor, writer)
                    if descriptor is descriptors[1]:  # a server that won't resume
                        writer.write(blob[:1000])
                        writer.reset()
                    for at in range(0, len(blob), 100_000):
                        writer.write(blob[at : at + 100_000])
                    writer.commit()
            name = unpacker.finish()
        with root_of(store, name, tmp_path) as root:
            assert len(list(root.glob("*/*"))) == 600
        with Unpacker(store, config, descriptors) as unpacker:
            assert unpacker.finish() == name


def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    layer = archive(member("a", os.urandom(100_000)))
    descriptor = image.describe(gzip.compress(layer), image.MT_OCI_LAYER_GZIP)
    config = ImageConfig(rootfs=RootFs(diff_ids=(image.digest_of(layer),)))
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        with Unpacker(store, config, [descriptor]) as unpacker, store.content.writer(descriptor) as writer:
            unpacker.follow(descriptor, writer)
            writer.write(gzip.compress(layer)[:50_000])
        assert store.snapshots.walk() == []
        assert os.listdir(store.snapshots.root) == ["lock"]


CONFINED = """\
import ctypes, os, struct, sys
from sampan.image.worker import confine
from sampan.linux import capabilities
libc = ctypes.CDLL(None, use_errno=True)
handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.c_int()
libc.name_to_handle_at(-100, os.fsencode(sys.argv[2]), handle, ctypes.byref(mount), 0)
root = os.open(sys.argv[1], os.O_RDONLY)
confine(root)
print(sorted(os.listdir("/")), os.path.exists("/proc/self"))
libc.open_by_handle_at(root, handle, os.O_RDONLY)
print(os.strerror(ctypes.get_errno()))
for act in (lambda: os.chroot("/a"), lambda: __import__("planted")):
    try:
        act()
    except (OSError, ImportError) as error:
        print(type(error).__name__)
kept = capabilities.get()[1]
print([name for name in ("CAP_CHOWN", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE") if kept & capabilities.mask([name])])
"""


def test_the_worker_is_confined(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/planted.py").write_text("")
    (tmp_path / "outside").write_text("secret")
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, str(tmp_path / "root"), str(tmp_path / "outside")],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(("/", *sys.path))},
    )
    assert done.stdout.splitlines() == [
        "['a', 'planted.py'] False",
        "Operation not permitted",
        "PermissionError",
        "ModuleNotFoundError",
        "['CAP_CHOWN']",
    ], done.stderr


def test_a_real_root_is_as_umoci_unpacks_it(tmp_path: Path) -> None:
    """Two layers of real directories, the second of changes, unpacked by both; compared attribute for attribute."""
    layout = tmp_path / "layout"
    first = subprocess.run(
        ["tar", "--xattrs", "-C", "/", "-cf", "-", *REAL_FOLDERS],
        capture_output=True, check=False,
    ).stdout  # fmt: skip
    second = archive(
        member("etc/.wh.hostname"), member("etc/new", b"x"), member("usr/share/.wh.doc"), member("usr/sbin/x/y", b"2")
    )
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        target = add_image(store, first, second)
        (layout / "blobs/sha256").mkdir(parents=True)
        for blob in store.content.walk():
            (layout / "blobs/sha256" / blob.digest[7:]).write_bytes(store.content.read(blob.digest, 1 << 30))
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = {**msgspec.to_builtins(target), "annotations": {"org.opencontainers.image.ref.name": "x"}}
        (layout / "index.json").write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [entry]}))
        subprocess.run(
            ["umoci", "unpack", "--image", f"{layout}:x", str(tmp_path / "bundle")], check=True, capture_output=True
        )
        with root_of(store, unpack(store, target), tmp_path) as root:
            ours, theirs = full_listing(root), full_listing(tmp_path / "bundle/rootfs")
    assert len(ours) > 1000
    assert ours.keys() == theirs.keys()
    different = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
    # Times of directories that a layer changes but does not list: umoci says now, we what the lower layer said.
    assert set(different) <= {"usr/sbin", "usr/sbin/x", "usr", "usr/share", "usr/lib", "."}


def full_listing(root: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        s = path.lstat()
        attributes = tuple(
            sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False))
        )
        size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
        links = s.st_nlink if stat.S_ISREG(s.st_mode) else 0
        detail = (
            os.readlink(path)
            if path.is_symlink()
            else image.digest_of(path.read_bytes())
            if stat.S_ISREG(s.st_mode)
            else ""
        )
        result[str(path.relative_to(root))] = (
            s.st_mode,
            s.st_uid,
            s.st_gid,
            s.st_rdev,
            size,
            links,
            s.st_mtime_ns,
            detail,
            attributes,
        )
    return result


def test_errors_are_one_line(store: Store) -> None:
    target = add_image(store, archive(member("../\n\x1b[31mname", b"")))
    with pytest.raises(SampanError) as caught:
        unpack(store, target)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)

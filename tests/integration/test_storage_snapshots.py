"""Snapshots on the real kernel: one contract for every snapshotter, and what only overlayfs does."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sampan.errors import AlreadyExists, InvalidInput, NotFound, WrongState
from sampan.linux import mount as kernel
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

pytestmark = pytest.mark.root


@pytest.fixture(params=["overlayfs", "older overlayfs", "native"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param.startswith("older"):
        before_linux_6_5(monkeypatch)
    with Store(str(tmp_path / "root"), snapshotter=request.param.removeprefix("older ")) as store:
        yield store


def before_linux_6_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has overlayfs refuse layers one by one, as older kernels do."""
    string = kernel.fsconfig_string

    def fsconfig_string(fd: int, key: str, value: str) -> None:
        if key == "lowerdir+":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), value)
        string(fd, key, value)

    monkeypatch.setattr(kernel, "fsconfig_string", fsconfig_string)


@pytest.fixture
def overlay_store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "root"), snapshotter="overlayfs") as store:
        yield store


@contextmanager
def mounted(mounts: list[Mount], tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "mnt"
    target.mkdir(exist_ok=True)
    attach(mounts, str(target))
    try:
        yield target
    finally:
        detach(str(target))


def layer(store: Store, tmp_path: Path, name: str, parent: str, *files: str) -> None:
    with mounted(store.snapshots.prepare("work-" + name, parent), tmp_path) as root:
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(name)
    store.snapshots.commit(name, "work-" + name)


def test_a_child_sees_its_parents_and_changes_none(store: Store, tmp_path: Path) -> None:
    layer(store, tmp_path, "one", "", "a", "d/b")
    layer(store, tmp_path, "two", "one", "d/c", "a")
    with mounted(store.snapshots.prepare("top", "two"), tmp_path) as root:
        assert [(root / f).read_text() for f in ("a", "d/b", "d/c")] == ["two", "one", "two"]
        (root / "a").unlink()
        (root / "d/b").write_text("changed")
    with mounted(store.snapshots.view("look", "two"), tmp_path) as root:
        assert (root / "a").read_text() == "two"
        assert (root / "d/b").read_text() == "one"
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").touch()
    with mounted(store.snapshots.mounts("top"), tmp_path) as root:
        assert not (root / "a").exists()
        assert (root / "d/b").read_text() == "changed"


def test_holes_stay_holes_and_links_stay_links(store: Store, tmp_path: Path) -> None:
    with mounted(store.snapshots.prepare("work"), tmp_path) as root:
        (root / "d").mkdir()
        with (root / "d/holes").open("wb") as file:
            for offset in (0, 3 << 20, 1 << 40):
                file.seek(offset)
                file.write(b"data")
            file.truncate((1 << 40) + (1 << 20))
        os.link(root / "d/holes", root / "again")
        os.setxattr(root / "d/holes", "user.note", b"x")
        os.utime(root / "d/holes", ns=(1, 1_234_567_891))
    store.snapshots.commit("one", "work")
    with mounted(store.snapshots.prepare("top", "one"), tmp_path) as root:
        status = (root / "d/holes").stat()
        assert (status.st_size, status.st_mtime_ns, status.st_nlink) == ((1 << 40) + (1 << 20), 1_234_567_891, 2)
        assert status.st_blocks * 512 < 1 << 20
        assert os.path.samefile(root / "d/holes", root / "again")
        assert os.getxattr(root / "again", "user.note") == b"x"
        with (root / "again").open("rb") as file:
            for offset, length in ((0, 4), (3 << 20, 4), (1 << 40, 4), (100, 4)):
                file.seek(offset)
                assert file.read(length) == (b"data" if offset != 100 else bytes(4))


def test_what_a_container_nests_too_deep_is_measured_and_removed(store: Store, tmp_path: Path) -> None:
    with mounted(store.snapshots.prepare("top"), tmp_path) as root:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(1200):  # more than the interpreter's stack holds
            os.mkdir("deep", dir_fd=fd)
            below = os.open("deep", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    assert store.snapshots.usage("top").inodes == 1201
    store.snapshots.remove("top")
    assert os.listdir(store.snapshots.root) == ["lock"]


def test_kinds_and_order(store: Store, tmp_path: Path) -> None:
    layer(store, tmp_path, "one", "", "a")
    store.snapshots.prepare("top", "one", labels={"k": "v"})
    assert [(i.key, i.kind, i.parent) for i in store.snapshots.walk()] == [
        ("one", "committed", ""),
        ("top", "active", "one"),
    ]
    assert store.snapshots.stat("top").labels == {"k": "v"}
    assert store.snapshots.usage("one").inodes >= 2
    with pytest.raises(WrongState, match='parent of "top"'):
        store.snapshots.remove("one")
    with pytest.raises(WrongState, match="only a committed one"):
        store.snapshots.prepare("x", "top")
    with pytest.raises(WrongState):
        store.snapshots.mounts("one")
    with pytest.raises(AlreadyExists):
        store.snapshots.prepare("top", "one")
    with pytest.raises(NotFound):
        store.snapshots.prepare("x", "none")
    store.snapshots.remove("top")
    store.snapshots.remove("one")
    with pytest.raises(NotFound):
        store.snapshots.remove("one")
    assert os.listdir(store.snapshots.root) == ["lock"]


def test_what_dead_processes_left_is_swept(store: Store, tmp_path: Path) -> None:
    (Path(store.snapshots.root) / "0123456789" / "fs").mkdir(parents=True)
    living, dead = store.snapshots.stage(), store.snapshots.stage()
    dead.close()
    store.snapshots.sweep()
    assert store.snapshots.exists(living.key)
    assert not store.snapshots.exists(dead.key)
    assert sorted(os.listdir(store.snapshots.root)) == sorted(["lock", os.path.basename(living.directory)])
    living.close()


def test_other_users_cannot_reach_setuid_programs_in_layers(store: Store, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700
    for path in (store.content.root, store.snapshots.root):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


@pytest.mark.skipif(
    [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]] < [6, 5],
    reason="before Linux 6.5 the layers of an overlay must fit into one page",
)
def test_hundreds_of_layers(overlay_store: Store, tmp_path: Path) -> None:
    parent = ""
    for number in range(200):
        stage = overlay_store.snapshots.stage()
        (Path(stage.files) / f"f{number}").write_text(str(number))
        overlay_store.snapshots.commit_all([(f"l{number}", stage.key, parent)])
        stage.close()
        parent = f"l{number}"
    with mounted(overlay_store.snapshots.prepare("top", parent), tmp_path) as root:
        assert len(list(root.iterdir())) == 200


def test_a_throw_away_overlay_on_the_machines_own_root(overlay_store: Store, tmp_path: Path) -> None:
    mounts = overlay_store.snapshots.overlay_on("top", "/")
    with mounted(mounts, tmp_path) as root:
        assert (root / "etc/passwd").read_text() == Path("/etc/passwd").read_text()
        (root / "sampan-was-here").touch()
    assert not Path("/sampan-was-here").exists()
    with pytest.raises(WrongState):
        overlay_store.snapshots.commit("layer", "top")
    overlay_store.snapshots.remove("top")
    with pytest.raises(InvalidInput, match="not a directory"):
        overlay_store.snapshots.overlay_on("top", "/nowhere")


def test_a_volatile_snapshot_is_mounted_again_and_again(overlay_store: Store, tmp_path: Path) -> None:
    layer(overlay_store, tmp_path, "one", "", "a")
    mounts = overlay_store.snapshots.prepare("top", "one", volatile=True)
    assert "volatile" in mounts[0]["options"]
    for number in range(3):
        with mounted(overlay_store.snapshots.mounts("top"), tmp_path) as root:
            assert len(list(root.iterdir())) == 1 + number
            (root / f"f{number}").touch()
    overlay_store.snapshots.remove("top")


def test_an_older_overlayfs_leaves_no_mount_and_no_folder(
    overlay_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer(overlay_store, tmp_path, "one", "", "a")
    before_linux_6_5(monkeypatch)
    mounts = overlay_store.snapshots.prepare("work", "one")
    with mounted(mounts, tmp_path) as root:
        assert (root / "a").read_text() == "one"
        (root / "a").unlink()
    upper = next(option for option in mounts[0]["options"] if option.startswith("upperdir=")).removeprefix("upperdir=")
    assert stat.S_ISCHR(os.lstat(f"{upper}/a").st_mode)
    assert sorted(os.listdir(os.path.dirname(upper))) == ["fs", "work"]
    assert str(tmp_path / "root") not in Path("/proc/self/mountinfo").read_text()


def test_a_lower_directory_with_odd_letters(overlay_store: Store, tmp_path: Path) -> None:
    odd = tmp_path / "a:b,c\\d"
    odd.mkdir()
    (odd / "file").touch()
    with mounted(overlay_store.snapshots.overlay_on("top", str(odd)), tmp_path) as root:
        assert (root / "file").exists()


def test_the_choice_of_snapshotter_stays(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    Store(root, snapshotter="native").close()
    with Store(root) as store:
        assert store.snapshots.name == "native"
    with pytest.raises(InvalidInput, match="made with native"):
        Store(root, snapshotter="overlayfs")

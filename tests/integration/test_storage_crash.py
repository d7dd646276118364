"""A pull that is killed, at each of its steps: what is visible is whole, what is not goes, and the next pull works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import FaultRegistry, Image, make_image
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store

pytestmark = pytest.mark.root

#: Pulls an image, and kills itself before one of the calls that it tells the interpreter's auditors of: the opening,
#: locking, making, renaming and removing of files, connecting to the database, starting a process. With 0 it counts.
_PULL = """
import os, signal, sys
from sampan.registry import Resolver, pull
from sampan.storage import unpack
from sampan.storage.store import Store

STEPS = {"open", "fcntl.flock", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod",
         "os.posix_spawn", "os.setxattr", "os.listdir", "os.scandir", "sqlite3.connect", "socket.connect"}
taken, last = 0, int(sys.argv[4])

def audit(event, _):
    global taken
    if event in STEPS:
        taken += 1
        if taken == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(audit)
with Store(sys.argv[1], snapshotter=sys.argv[2]) as store:
    pull(store, "default", sys.argv[3], Resolver((), ()))
print(taken)
"""
FILES = [{f"l{layer}/d{number % 7}/f{number}": b"%d\n" % number * 50 for number in range(150)} for layer in range(3)]


@pytest.fixture(scope="module")
def image() -> Image:
    return make_image(FILES)


@pytest.fixture
def registry(tmp_path: Path, image: Image) -> Iterator[str]:
    with FaultRegistry(str(tmp_path / "registry")) as registry:
        image.put_into(registry.tree, "app", "1")
        yield f"{registry.address.removeprefix('http://')}/app:1"


def pull(root: Path, snapshotter: str, name: str, last: int = 0) -> tuple[int, int]:
    """Pull in a process of its own, until all that it started have ended: exit code, and how many steps it took."""
    reader, writer = os.pipe()
    command = [sys.executable, "-c", _PULL, str(root), snapshotter, name, str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[writer]) as child:
        os.close(writer)
        out, _ = child.communicate()
    assert os.read(reader, 1) == b""
    os.close(reader)
    return child.returncode, int(out or 0)


def check(store: Store, image: Image) -> None:
    """Everything that is visible is whole, and nothing lies about but what the dead pull's lease holds."""
    assert store.fsck() == []
    store.gc(grace=0)
    assert store.fsck() == []
    for blob in store.content.walk():
        assert len(store.content.read(blob.digest)) == blob.size
    known = {os.path.basename(info.directory) for info in store.snapshots.walk()}
    for info in store.snapshots.walk():
        assert info.kind == "committed" or [line for line in store.explain(info.key) if "is kept by lease" in line]
    assert set(os.listdir(store.snapshots.root)) == known | {"lock"}
    for entry in store.images("default").list():
        assert entry.target.digest == image.target.digest
        assert len(store.content.walk()) == len(image.blobs)


def check_files(store: Store, folder: Path) -> None:
    """The topmost snapshot has every file."""
    folder.mkdir(exist_ok=True)
    top = {info.key for info in store.snapshots.walk()} - {info.parent for info in store.snapshots.walk()}
    attach(store.snapshots.view("look", top.pop()), str(folder))
    try:
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    finally:
        detach(str(folder))
        store.snapshots.remove("look")
    assert found == {name: data for layer in FILES for name, data in layer.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("snapshotter", "points"), [("overlayfs", 12), ("native", 4)])
def test_a_pull_may_be_killed_at_any_step(
    tmp_path: Path, image: Image, registry: str, snapshotter: str, points: int
) -> None:
    code, steps = pull(tmp_path / "counted", snapshotter, registry)
    assert code == 0
    assert steps > points
    visible = 0
    for number in range(points):
        root = tmp_path / f"root{number}"
        # The last third is where names and rows are written: looked at more closely.
        last = 1 + (number * steps // points if number % 2 else steps - steps * number // points // 3)
        code, _ = pull(root, snapshotter, registry, last)
        assert code in (-9, 0)
        with Store(str(root), snapshotter=snapshotter) as store:
            check(store, image)
            visible += bool(store.images("default").list())
        assert pull(root, snapshotter, registry)[0] == 0
        with Store(str(root), snapshotter=snapshotter) as store:
            for lease in store.leases("default").list():  # as a day would
                store.leases("default").delete(lease.id)
            store.gc(grace=0)
            assert {info.kind for info in store.snapshots.walk()} == {"committed"}
            assert len(store.images("default").list()) == 1
            check_files(store, tmp_path / "mnt")
    assert visible < points

"""Snapshots in a user namespace, where overlayfs keeps its marks in `user.` attributes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import readable_checkout

pytestmark = pytest.mark.root

_OUTSIDE = 300_000
_SCRIPT = """
import io, os, sys, tarfile
from sampan.linux.namespaces import CLONE_NEWNS, CLONE_NEWUSER, unshare
unshare(CLONE_NEWUSER | CLONE_NEWNS)
print("ready", flush=True)
sys.stdin.readline()
os.setgroups([])
os.setgid(0)
os.setuid(0)
from sampan.image import mutate
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.transfer import put_image
from sampan.storage.unpack import unpack

def archive(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, owner in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.uid = info.gid = owner
            tar.addfile(info)
    return out.getvalue()

image = mutate.empty()
image = mutate.append_layer(image, archive(("a/", 0), ("a/gone", 0), ("b/", 7), ("b/hidden", 7), ("keep", 1000)))
image = mutate.append_layer(image, archive(("a/.wh.gone", 0), ("b/", 7), ("b/.wh..wh..opq", 0), ("b/new", 8)))
root = sys.argv[1]
with Store(root + "/store", snapshotter="overlayfs") as store:
    name = unpack(store, put_image(store, image))
    mounts = store.snapshots.prepare("top", name)
    print("userxattr" in mounts[0]["options"])
    os.mkdir(root + "/mnt")
    attach(mounts, root + "/mnt")
    try:
        os.unlink(root + "/mnt/keep")
        for folder, folders, files in os.walk(root + "/mnt"):
            for entry in sorted([*folders, *files]):
                status = os.lstat(os.path.join(folder, entry))
                print(os.path.relpath(os.path.join(folder, entry), root + "/mnt"), status.st_uid)
    finally:
        detach(root + "/mnt")
    top = store.snapshots.stat(name)
    print(os.getxattr(top.directory + "/fs/b", "user.overlay.opaque"))
"""

#: Files small and large, plain and of a long name (which has a header of its own), by each way of applying them.
_MODES_SCRIPT = """
import io, os, sys, tarfile
from sampan.linux.namespaces import CLONE_NEWUSER, unshare
unshare(CLONE_NEWUSER)
print("ready", flush=True)
sys.stdin.readline()
os.setgroups([])
os.setgid(0)
os.setuid(0)
from sampan.image.apply import Applier
from sampan.image.tar import Reader

out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for mode in (0o4755, 0o2711, 0o6755):
        for owner in (0, 7):
            for size in (0, 10, 3 << 20):
                for name in ("x", "x" * 120):
                    info = tarfile.TarInfo(f"{mode:o}-{owner}-{size}-{name}")
                    info.mode, info.uid, info.gid, info.size = mode, owner, owner, size
                    tar.addfile(info, io.BytesIO(bytes(size)))
for merged in (False, True):
    folder = os.path.join(sys.argv[1], str(merged))
    os.mkdir(folder)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    out.seek(0)
    Applier(root, merged=merged).apply(Reader(lambda: out.read(65536)))
    names = os.listdir(folder)
    print(len(names), [n for n in names if os.lstat(n, dir_fd=root).st_mode & 0o7777 != int(n.partition("-")[0], 8)])
"""


def test_overlays_in_a_user_namespace(tmp_path: Path) -> None:
    folder = writable_from_outside(tmp_path)
    assert in_user_namespace(_SCRIPT, folder) == ["True", "a 0", "b 7", "b/new 8", "b'y'"]
    # What the namespace made is owned by whom it is mapped to.
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {
        _OUTSIDE,
        _OUTSIDE + 7,
        _OUTSIDE + 8,
        _OUTSIDE + 1000,
    }


def test_programs_keep_their_setuid_bits_in_a_user_namespace(tmp_path: Path) -> None:
    folder = writable_from_outside(tmp_path)
    assert in_user_namespace(_MODES_SCRIPT, folder) == ["36 []"] * 2


def writable_from_outside(tmp_path: Path) -> Path:
    """A folder of the user who is a namespace's root."""
    folder = tmp_path / "rootless"
    folder.mkdir()
    os.chown(folder, _OUTSIDE, _OUTSIDE)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o111)
    return folder


def in_user_namespace(script: str, folder: Path) -> list[str]:
    """The lines that a program prints; it makes a user namespace, says so, and is told when it has its users."""
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=readable_checkout.enter,  # noqa: PLW1509  no threads run here
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{kind}").write_text(f"0 {_OUTSIDE} 65536\n")
        told, complaint = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, complaint
    return told.splitlines()

"""The checkout for programs of other users, also where it lies in a directory that only root may search (/root)."""

from __future__ import annotations

from pathlib import Path

from sampan.linux import mount as m
from sampan.linux.namespaces import CLONE_NEWNS, unshare

ROOT = Path(__file__).resolve().parents[1]


def enter() -> None:
    """For ``preexec_fn``: in a mount namespace of its own the child sees the checkout at its path, open to all."""
    closed = next((parent for parent in reversed(ROOT.parents) if not parent.stat().st_mode & 0o001), None)
    if closed is None:
        return
    unshare(CLONE_NEWNS)
    m.mount(None, "/", None, m.MS_PRIVATE | m.MS_REC)
    checkout = m.open_tree(m.AT_FDCWD, str(ROOT), m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC)
    m.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
    ROOT.mkdir(parents=True)
    m.move_mount(checkout, "", m.AT_FDCWD, str(ROOT), m.MOVE_MOUNT_F_EMPTY_PATH)

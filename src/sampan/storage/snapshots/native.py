"""Snapshots by copying, for file systems on which overlayfs can't work. Every snapshot is a whole tree.

The copy shares blocks where the file system can (FICLONE on XFS and btrfs). Slow and large elsewhere: it is there so
that everything works, and `sampan doctor` says when it is in use.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sampan.errors import StageFailed, Unsupported
from sampan.storage.content import Holder
from sampan.storage.snapshots.base import DirectorySnapshotter
from sampan.storage.snapshots.interface import Kind, SnapshotInfo

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

_FICLONE = 0x40049409


class NativeSnapshotter(DirectorySnapshotter):
    """See the module."""

    name = "native"

    def _fill(self, directory: str, kind: Kind, parents: Sequence[str]) -> None:
        files = os.path.join(directory, "fs")
        os.mkdir(files, 0o755)
        os.chmod(files, 0o755)
        # A view needs no copy: its mount is read-only.
        if parents and kind != "view":
            try:
                copy_tree(parents[0], files)
            except OSError as error:
                raise StageFailed("copy snapshot", error) from error

    def _mounts(self, info: SnapshotInfo, parents: Sequence[str]) -> list[Mount]:
        if info.kind == "view" and parents:
            return [{"type": "bind", "source": parents[0], "options": ["bind", "ro"]}]
        mode = "ro" if info.kind == "view" else "rw"
        return [{"type": "bind", "source": os.path.join(info.directory, "fs"), "options": ["bind", mode]}]

    def overlay_on(self, key: str, lowerdir: str, *, lease: Holder | None = None) -> list[Mount]:  # noqa: ARG002
        """Refused: copying a machine's root for a throw-away container is no service.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f'running over "{lowerdir}" needs overlayfs', hint="use a root on ext4, XFS, btrfs or tmpfs")


def copy_tree(source: str, target: str) -> None:
    """Copy a tree into an existing directory: owners, modes, times, attributes, devices, links among its files."""
    links: dict[tuple[int, int], str] = {}
    _copy_directory(source, target, links)


def _copy_directory(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            new = os.path.join(target, entry.name)
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(new)
                _copy_directory(entry.path, new, links)
                continue
            first = links.setdefault((status.st_dev, status.st_ino), new) if status.st_nlink > 1 else new
            if first != new:
                os.link(first, new, follow_symlinks=False)
                continue
            _copy_other(entry.path, new, status)
            _copy_attributes(entry.path, new, status)
    _copy_attributes(source, target, os.lstat(source))


def _copy_other(source: str, target: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif not stat.S_ISREG(status.st_mode):
        os.mknod(target, status.st_mode, status.st_rdev)
    else:
        _copy_file(source, target, status.st_size)


def _copy_file(source: str, target: str, size: int) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.ioctl(writer, _FICLONE, reader)
        except OSError:
            left = size
            while left and (done := os.copy_file_range(reader, writer, left)):
                left -= done
    finally:
        os.close(reader)
        os.close(writer)


def _copy_attributes(source: str, target: str, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

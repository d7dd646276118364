"""Snapshots by copying, for file systems on which overlayfs can't work. Every snapshot is a whole tree.

The copy shares blocks where the file system can (FICLONE on XFS and btrfs). Slow and large elsewhere: it is there so
that everything works, and `sampan doctor` says when it is in use.
"""

from __future__ import annotations

import errno
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
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: More than a layer may have.
_LEVELS = 512


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
    """Copy a tree into an existing directory: owners, modes, times, attributes, devices, holes, links among its files.

    Raises:
        OSError: Something can't be copied.
    """
    old, new = (os.open(path, _DIRECTORY) for path in (source, target))
    try:
        _Copy(new).directory(old, new, "", 0)
    finally:
        os.close(old)
        os.close(new)


class _Copy:
    """One copy of a tree. Names are looked up in open directories, since a whole path may be longer than can be said.

    Args:
        top: Of the new tree.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        #: Inode -> where its first name is in the new tree.
        self._links: dict[tuple[int, int], str] = {}

    def directory(self, old: int, new: int, inner: str, level: int) -> None:
        """Copy what is in a directory, then what is said of it."""
        if level > _LEVELS:
            raise OSError(errno.ELOOP, "directories are nested too deep to be copied", inner[:200])
        with os.scandir(old) as entries:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, status in found:
            path = f"{inner}/{name}" if inner else name
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(name, dir_fd=new)
                below_old, below_new = (os.open(name, _DIRECTORY, dir_fd=fd) for fd in (old, new))
                try:
                    self.directory(below_old, below_new, path, level + 1)
                finally:
                    os.close(below_old)
                    os.close(below_new)
                continue
            first = self._links.setdefault((status.st_dev, status.st_ino), path) if status.st_nlink > 1 else path
            if first != path:
                os.link(first, name, src_dir_fd=self._top, dst_dir_fd=new, follow_symlinks=False)
            else:
                here, there = f"/proc/self/fd/{old}/{name}", f"/proc/self/fd/{new}/{name}"
                _copy_other(here, there, status)
                _copy_attributes(here, there, status)
        _copy_attributes(f"/proc/self/fd/{old}/.", f"/proc/self/fd/{new}/.", os.fstat(old))


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
            _copy_data(reader, writer, size)
    finally:
        os.close(reader)
        os.close(writer)


def _copy_data(reader: int, writer: int, size: int) -> None:
    """Copy a file's bytes and leave out its holes, of which an image may have terabytes."""
    os.ftruncate(writer, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # holes to the end
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        while start < end and (done := os.copy_file_range(reader, writer, end - start, start, start)):
            start += done


def _copy_attributes(source: str, target: str, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

"""Snapshots on overlayfs: a layer is a directory, and the kernel merges them.

https://docs.kernel.org/filesystems/overlayfs.html. A deleted file is a character device 0/0 in ``fs``, an opaque
directory bears ``trusted.overlay.opaque=y`` (``user.overlay.opaque`` with ``userxattr``, where rootless).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sampan.storage.database import Database
from sampan.storage.mount import escape
from sampan.storage.snapshots.base import DirectorySnapshotter, check_supported, remove_tree
from sampan.storage.snapshots.interface import Kind, SnapshotInfo

if TYPE_CHECKING:
    from sampan.storage.mount import Mount


class OverlaySnapshotter(DirectorySnapshotter):
    """See the module.

    Args:
        root: Directory of the snapshots.
        database: The store's.
        userxattr: Keep overlayfs's own attributes in ``user.``, for mounting in a user namespace.
    """

    name = "overlayfs"

    def __init__(self, root: str, database: Database, *, userxattr: bool = False) -> None:
        super().__init__(root, database)
        self.userxattr = userxattr

    def _fill(self, directory: str, kind: Kind, parents: Sequence[str]) -> None:
        files = os.path.join(directory, "fs")
        os.mkdir(files, 0o755)
        os.chmod(files, 0o755)
        if parents:
            # The merged root shows the top layer's owner and mode.
            status = os.stat(parents[0])
            os.chown(files, status.st_uid, status.st_gid)
            os.chmod(files, status.st_mode & 0o7777)
        if kind != "view":
            os.mkdir(os.path.join(directory, "work"), 0o711)

    def _mounts(self, info: SnapshotInfo, parents: Sequence[str]) -> list[Mount]:
        files = os.path.join(info.directory, "fs")
        readonly = info.kind == "view"
        if not parents:
            return [{"type": "bind", "source": files, "options": ["bind", "ro" if readonly else "rw"]}]
        if readonly and len(parents) == 1:
            return [{"type": "bind", "source": parents[0], "options": ["bind", "ro"]}]
        options = [f"lowerdir={':'.join(map(escape, parents))}"]
        if readonly:
            options.append("ro")
        else:
            options += [f"upperdir={escape(files)}", f"workdir={escape(os.path.join(info.directory, 'work'))}"]
            if self.is_volatile(info):
                self._forget_mount(info.directory)
                options.append("volatile")
        if self.userxattr:
            options.append("userxattr")
        return [{"type": "overlay", "source": "overlay", "options": options}]

    @staticmethod
    def _forget_mount(directory: str) -> None:
        """Allow another mount: overlayfs leaves a mark where a volatile mount was, lest one trusts it after a crash."""
        mark = os.path.join(directory, "work/work/incompat")
        if os.path.isdir(mark):
            remove_tree(mark)

    def check(self) -> None:
        """Try an overlay mount in a directory of its own.

        Raises:
            Unsupported: This kernel, or the file system below, can't.
        """
        directory = os.path.join(self.root, "check-" + secrets.token_hex(5))
        paths = {name: os.path.join(directory, name) for name in ("lower", "upper", "work")}
        try:
            for path in paths.values():
                os.makedirs(path)
            options = [f"lowerdir={paths['lower']}", f"upperdir={paths['upper']}", f"workdir={paths['work']}"]
            check_supported([{"type": "overlay", "source": "overlay", "options": options}], self.root)
        finally:
            remove_tree(directory)

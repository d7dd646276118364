"""The folders of a tree, by the names that an archive has for them: clean names, descriptors, names without symlinks.

On the import diet.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from sampan.errors import Corrupt, Exhausted
from sampan.image.tar import show
from sampan.linux.resolve import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

#: Names that are remembered at a time, here and by whoever remembers some of these.
KNOWN = 4096
_OPEN = 512


class Folders:
    """Folders of a tree that nobody else changes; symlinks on the way to one lead inside the tree.

    Args:
        root: Descriptor of the tree's directory.

    Attributes:
        opened: Clean name -> descriptor, the least lately used first.
    """

    __slots__ = ("_real", "_root", "opened")

    def __init__(self, root: int) -> None:
        self._root = root
        self._real: dict[bytes, bytes] = {}
        self.opened: OrderedDict[bytes, int] = OrderedDict()

    def open(self, folder: bytes) -> int:
        """A descriptor (O_PATH), good until 512 others have been asked for.

        Raises:
            OSError: It is not there, or no directory.
        """
        opened = self.opened
        if folder in opened:
            opened.move_to_end(folder)
            return opened[folder]
        fd = openat2(
            self._root,
            os.fsdecode(folder) or ".",
            os.O_PATH | os.O_DIRECTORY,
            resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )
        opened[folder] = fd
        if len(opened) > _OPEN:
            os.close(opened.popitem(last=False)[1])
        return fd

    def path(self, folder: bytes, base: bytes) -> bytes:
        """The path without symlinks of what is, or will be, ``base`` in a folder that is there."""
        if folder not in self._real:
            if len(self._real) >= KNOWN:
                self._real.clear()
            self._real[folder] = self._without_symlinks(folder)
        return join(self._real[folder], base)

    def _without_symlinks(self, folder: bytes) -> bytes:
        """Where the descriptor of a folder leads; there may be no /proc to ask."""
        done: list[bytes] = []
        left = folder.split(b"/")[::-1]
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del done[-1:]
                continue
            try:
                target = os.readlink(b"/".join([*done, part]), dir_fd=self._root)
            except OSError:  # nearly always: it is no symlink
                done.append(part)
                continue
            if target.startswith(b"/"):
                done.clear()
            left += target.split(b"/")[::-1]
        return b"/".join(done)

    def forget(self) -> None:
        """Close all: a folder or a symlink is gone, and paths through it may mean something else from now on."""
        self._real.clear()
        while self.opened:
            os.close(self.opened.popitem()[1])


def find_again(root: int, directory: bytes) -> int:
    """A directory of a tree, by its path without symlinks, or -1 if it has been replaced since it was told."""
    try:
        return openat2(
            root,
            os.fsdecode(directory) or ".",
            os.O_RDONLY | os.O_DIRECTORY,
            resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
        )
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        if error.errno == errno.ELOOP:
            return -1
        raise


def join(folder: bytes, base: bytes) -> bytes:
    """The path of ``base`` in a folder; either may be empty."""
    return folder + b"/" + base if folder and base else folder or base


def clean(name: bytes, depth: int) -> bytes:
    """An entry's name as a path from the root, without a leading slash.

    Raises:
        Corrupt: It leaves the root.
        Exhausted: It is too deep.
    """
    if name.startswith(b"./"):
        name = name[2:]
    name = name.rstrip(b"/")
    if name.count(b"/") >= depth or len(name) > 4095:
        raise Exhausted(f'layer: the path "{show(name)}" is too deep')
    # Nearly all names are clean; the rest are taken apart.
    if not (b"//" in name or b"/." in name or name.startswith((b".", b"/"))):
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise Corrupt(f'layer: the path "{show(name)}" leaves the root')
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)

"""Whole trees, whoever made them: a process in a container can nest directories deeper than any path can say and any
stack can follow. By descriptors only, never through a symlink.
"""

from __future__ import annotations

import errno
import os
import stat

from sampan.linux.resolve import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Levels that are open at a time; what lies deeper is moved up first.
_LEVELS = 64
#: Bytes of a path at which the directory that it leads to becomes the start of those below.
_LONG = 256


def remove(path: str) -> None:
    """Remove a directory with all that is in it.

    Raises:
        OSError: With the name of what can't be removed; what was removed before is gone.
    """
    folder, name = os.path.split(path.rstrip("/"))
    parent = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_at(parent, name)
    finally:
        os.close(parent)


def remove_at(parent: int, name: str | bytes) -> None:
    """:func:`remove` for the directory ``name`` in an open one."""
    top = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        while _empty(top, top, 1):
            pass  # what lay too deep is in reach now
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(directory: int, top: int, level: int) -> bool:
    """Remove what is in a directory; but what lies too deep is moved into ``top``: returns whether something was."""
    moved = False
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in names:
        try:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif level < _LEVELS:
                child = os.open(name, _DIRECTORY, dir_fd=directory)
                try:
                    moved |= _empty(child, top, level + 1)
                finally:
                    os.close(child)
                os.rmdir(name, dir_fd=directory)
            else:
                os.rename(name, os.urandom(16).hex(), src_dir_fd=directory, dst_dir_fd=top)
                moved = True
        except FileNotFoundError:  # somebody was quicker
            continue
    return moved


class _Start:
    """A directory that paths begin at; closed when none does any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def statuses(path: str) -> Iterator[os.stat_result]:
    """The status of a directory and of everything in it; what goes meanwhile is passed over.

    Raises:
        OSError: The directory itself is not there, or one in it can't be read.
    """
    start = _Start(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    yield os.fstat(start.fd)
    pending = [(start, ".")]
    while pending:
        start, inner = pending.pop()
        try:
            fd = openat2(start.fd, inner, _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        if len(inner) > _LONG:
            start, inner = _Start(os.dup(fd)), "."
        try:
            for name, status in _children(fd):
                yield status
                if stat.S_ISDIR(status.st_mode):
                    pending.append((start, f"{inner}/{name}"))
        finally:
            os.close(fd)


def _children(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue

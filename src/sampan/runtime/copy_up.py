"""``tmpcopyup``: a tmpfs that begins with what the image has at its place."""

from __future__ import annotations

import errno
import os
import stat

# Of the image, which nobody has vouched for.
_MOST_ENTRIES = 100_000
_DEEPEST = 64
_CHUNK = 1 << 20


def copy_tree(source: int, target: int, *, top: bool = True) -> None:
    """Copy what is in the directory ``source`` (O_PATH) into the new, empty directory ``target``.

    Files, directories, symlinks and fifos with their owners and modes; devices are left out. By descriptor and name
    alone, no link is followed.

    Args:
        source: What the image has.
        target: Where it goes.
        top: ``target`` itself has the owner and mode of ``source`` then.
    """
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    place = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
    try:
        if top:
            _take_over(os.fstat(readable), place)
        _Copy().directory(readable, place, 0)
    finally:
        os.close(readable)
        os.close(place)


class _Copy:
    def __init__(self) -> None:
        self._left = _MOST_ENTRIES

    def directory(self, source: int, target: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise OSError(errno.ELOOP, "directories are nested too deep to be copied")
        for name in os.listdir(source):
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.ENOSPC, f"more than {_MOST_ENTRIES} files to be copied")
            self._entry(source, target, name, depth)

    def _entry(self, source: int, target: int, name: str, depth: int) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=source)
            try:
                place = os.open(name, flags, dir_fd=target)
                try:
                    _take_over(os.fstat(below), place)
                    self.directory(below, place, depth + 1)
                finally:
                    os.close(place)
            finally:
                os.close(below)
        elif stat.S_ISREG(status.st_mode):
            _file(source, target, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, stat.S_IMODE(status.st_mode), dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)


def _file(source: int, target: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            status = os.fstat(reader)
            offset = 0
            while sent := os.sendfile(writer, reader, offset, _CHUNK):
                offset += sent
            _take_over(status, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _take_over(status: os.stat_result, fd: int) -> None:
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))

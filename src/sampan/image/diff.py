"""From a directory to a layer's archive: the inverse of applying (layer.md, "Representing Changes").

Two ways: what overlayfs keeps in an upper directory is the change set already (:func:`pack_upper`); of two whole trees
the difference is found by comparing (:func:`pack_changes`). Sockets are left out, as everywhere.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sampan.errors import StageFailed, Unsupported
from sampan.image import tar
from sampan.image.pack import Writer
from sampan.image.tar import Entry, show

_CHUNK = 1 << 20
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFIFO: tar.FIFO,
}
_PRIVATE = ("trusted.overlay.", "user.overlay.", "security.selinux")


@dataclass(slots=True)
class _Walk:
    writer: Writer
    #: First name of a file that has several.
    links: dict[tuple[int, int], bytes] = field(default_factory=dict)


def pack_upper(directory: str, write: Callable[[bytes], object]) -> None:
    """Write an overlayfs upper directory (or a layer in its form) as an archive.

    Args:
        directory: The ``fs`` of a snapshot.
        write: Takes the archive's bytes.

    Raises:
        Unsupported: overlayfs was mounted with features whose state a layer can't express.
    """
    walk = _Walk(Writer(write))
    try:
        _pack_directory(walk, os.fsencode(directory), b"")
    except OSError as error:
        raise StageFailed("read changes", error) from error
    except ValueError as error:
        raise StageFailed("read changes", OSError(errno.EAGAIN, f"a file changed meanwhile: {error}")) from error
    walk.writer.close()


def pack_changes(lower: str, upper: str, write: Callable[[bytes], object]) -> None:
    """Write what was changed from the tree ``lower`` to the tree ``upper`` as an archive."""
    walk = _Walk(Writer(write))
    try:
        _pack_changes(walk, os.fsencode(lower), os.fsencode(upper), b"")
    except OSError as error:
        raise StageFailed("compare trees", error) from error
    walk.writer.close()


def _names(directory: bytes) -> list[bytes]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _pack_directory(walk: _Walk, root: bytes, inner: bytes) -> None:
    directory = os.path.join(root, inner)
    attributes = {name.partition(".overlay.")[2]: name for name in os.listxattr(directory, follow_symlinks=False)}
    for unsupported in ("redirect", "metacopy"):
        if unsupported in attributes:
            raise Unsupported(f'"{show(inner)}": an overlay with {unsupported} can\'t be packed')
    if "opaque" in attributes and os.getxattr(directory, attributes["opaque"]) == b"y":
        _mark(walk, os.path.join(inner, _OPAQUE))
    for name in _names(directory):
        path = os.path.join(inner, name)
        status = os.lstat(os.path.join(root, path))
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            _mark(walk, os.path.join(inner, _WHITEOUT + name))
            continue
        _pack_one(walk, root, path, status)
        if stat.S_ISDIR(status.st_mode):
            _pack_directory(walk, root, path)


def _pack_changes(walk: _Walk, lower: bytes | None, upper: bytes, inner: bytes) -> None:
    before = [] if lower is None else _names(os.path.join(lower, inner))
    after = _names(os.path.join(upper, inner))
    for name in sorted({*before, *after}):
        path = os.path.join(inner, name)
        if name not in after:
            _mark(walk, os.path.join(inner, _WHITEOUT + name))
            continue
        status = os.lstat(os.path.join(upper, path))
        old = os.lstat(os.path.join(lower, path)) if lower is not None and name in before else None
        if lower is None or old is None or not _same(lower, upper, path, old, status):
            if old is not None and stat.S_ISDIR(old.st_mode) and not stat.S_ISDIR(status.st_mode):
                _mark(walk, os.path.join(inner, _WHITEOUT + name))
            _pack_one(walk, upper, path, status)
        if stat.S_ISDIR(status.st_mode):
            _pack_changes(walk, lower if old is not None and stat.S_ISDIR(old.st_mode) else None, upper, path)


def _same(lower: bytes, upper: bytes, path: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    fields = ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns")
    if any(getattr(old, name) != getattr(new, name) for name in fields):
        return False
    before, after = os.path.join(lower, path), os.path.join(upper, path)
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(before) == os.readlink(after)
    if stat.S_ISREG(new.st_mode) and old.st_size != new.st_size:
        return False
    return _xattrs(before) == _xattrs(after)


def _mark(walk: _Walk, path: bytes) -> None:
    entry = Entry()
    entry.name = path
    walk.writer.member(entry)


def _pack_one(walk: _Walk, root: bytes, path: bytes, status: os.stat_result) -> None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return
    full = os.path.join(root, path)
    entry = Entry()
    entry.name, entry.type = path, kind
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid, entry.mtime = status.st_uid, status.st_gid, status.st_mtime_ns
    identity = (status.st_dev, status.st_ino)
    if status.st_nlink > 1 and kind != tar.DIRECTORY:
        first = walk.links.setdefault(identity, path)
        if first != path:
            entry.type, entry.linkname = tar.HARD_LINK, first
            walk.writer.member(entry)
            return
    entry.xattrs = _xattrs(full)
    if kind == tar.SYMLINK:
        entry.linkname = os.readlink(full)
    elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
        entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif kind == tar.REGULAR:
        entry.size = status.st_size
        walk.writer.member(entry, _content(full))
        return
    walk.writer.member(entry)


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(_PRIVATE)]
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def _content(path: bytes) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while piece := os.read(fd, _CHUNK):
            yield piece
    finally:
        os.close(fd)

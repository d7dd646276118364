"""Paths inside a root, resolved by the kernel: openat2(2)."""

import errno
import os
import stat
import struct

from sampan.linux.syscall import syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_SYS_OPENAT2 = 437
_MAX_LINKS = 40


#: ``struct open_how``: flags, mode, resolve.
_HOW = struct.Struct("QQQ")


def openat2(dirfd: int, path: str, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open ``path`` under ``dirfd`` with the kernel holding the resolution to ``resolve``'s rules.

    Retries EAGAIN, which the kernel gives when a rename races with ``..``.

    Raises:
        OSError: With ``path``.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for attempt in range(128):
        try:
            return syscall(_SYS_OPENAT2, dirfd, name, how, _HOW.size, path=path)
        except BlockingIOError:
            if attempt == 127:
                raise
    raise AssertionError("unreachable")


def open_in_root(root: int, path: str, flags: int = os.O_PATH, *, resolve: int = 0) -> int:
    """Open what ``path`` is inside the directory ``root``: symlinks and ``..`` stay in it."""
    return openat2(root, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve)


def make_dirs(root: int, path: str, mode: int = 0o755) -> int:
    """The directory ``path`` inside ``root``, made with its parents where missing: an O_PATH descriptor.

    Symlinks are followed inside ``root``, dangling ones too: their targets are made.
    """
    try:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return _make(root, path, mode, None)


def make_file(root: int, path: str, mode: int = 0o644) -> int:
    """The file ``path`` inside ``root``, made empty with its parents where missing: an O_PATH descriptor."""
    try:
        return open_in_root(root, path)
    except FileNotFoundError:
        return _make(root, path, 0o755, mode)


def _make(root: int, path: str, dir_mode: int, file_mode: int | None) -> int:
    """Walk ``path`` one name at a time, making what is missing.

    Every name is opened below a descriptor that was opened before it, never through a symlink and never as
    ``..``: a link's target is spliced into the names to come and ``..`` goes back along the descriptors. So
    nothing is made outside ``root``, whatever is renamed meanwhile (CVE-2024-45310).
    """
    names = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    trail = [os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)]
    links = 0
    try:
        while names:
            name = names.pop()
            if name == "..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            fd, target = _enter(trail[-1], name, file_mode if not names else None, dir_mode)
            if fd >= 0:
                trail.append(fd)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                while len(trail) > 1:
                    os.close(trail.pop())
            names.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        return trail.pop()
    finally:
        for fd in trail:
            os.close(fd)


def _enter(parent: int, name: str, file_mode: int | None, dir_mode: int) -> tuple[int, str]:
    """Open ``name``, making it where it is missing; or of a symlink, -1 and its target."""
    for _ in range(8):
        try:
            fd = openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH)
        except FileNotFoundError:
            try:
                if file_mode is None:
                    os.mkdir(name, dir_mode, dir_fd=parent)
                else:
                    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(name, flags, file_mode, dir_fd=parent))
            except FileExistsError:  # somebody was quicker
                pass
            continue
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                return fd, ""
            target = os.readlink("", dir_fd=fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return -1, target
    raise OSError(errno.EAGAIN, "the directory keeps changing", name)

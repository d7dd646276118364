"""Mounts: mount(2), umount2(2), and the mount API by descriptor of Linux 5.2 and later."""

import ctypes
import errno
import os
import struct

from sampan.linux.syscall import fail, libc, syscall

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_SUPER_MAGIC = 0x1CD1
CGROUP2_SUPER_MAGIC = 0x63677270

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000

MOVE_MOUNT_F_SYMLINKS = 0x01
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_FSPICK_CLOEXEC = 1
_FSPICK_EMPTY_PATH = 8

# These numbers are the same on every architecture: they were added after the tables were unified.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433
_SYS_MOUNT_SETATTR = 442


#: ``struct mount_attr`` of mount_setattr(2): what to set, what to clear, propagation, a user namespace's descriptor.
_ATTRIBUTES = struct.Struct("QQQQ")


def _c(text: str | bytes | None) -> bytes | None:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2).

    Raises:
        OSError: With ``target`` as its path.
    """
    if libc.mount(_c(source), _c(target), _c(fstype), ctypes.c_ulong(flags), _c(data)) != 0:
        raise fail(target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2); ``flags`` of ``MNT_*`` and ``UMOUNT_NOFOLLOW``."""
    if libc.umount2(_c(target), flags) != 0:
        raise fail(target)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): a descriptor of the mount at ``path``, or of a detached copy with ``OPEN_TREE_CLONE``."""
    return syscall(_SYS_OPEN_TREE, dirfd, _c(path), flags, path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """move_mount(2): attach a detached mount, or move one."""
    syscall(_SYS_MOVE_MOUNT, from_fd, _c(from_path), to_fd, _c(to_path), flags, path=to_path or None)


def fsopen(fstype: str) -> int:
    """fsopen(2): a context in which to configure a new file system of ``fstype``."""
    return syscall(_SYS_FSOPEN, _c(fstype), FSOPEN_CLOEXEC, path=fstype)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """Set an option that takes a value."""
    syscall(_SYS_FSCONFIG, fd, _FSCONFIG_SET_STRING, _c(key), _c(value), 0, path=f"{key}={value}")


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """Set an option that takes a descriptor."""
    syscall(_SYS_FSCONFIG, fd, _FSCONFIG_SET_FD, _c(key), None, value, path=key)


def fsconfig_flag(fd: int, key: str) -> None:
    """Set an option that takes no value."""
    syscall(_SYS_FSCONFIG, fd, _FSCONFIG_SET_FLAG, _c(key), None, 0, path=key)


def fsconfig_create(fd: int) -> None:
    """Make the superblock from what was configured."""
    syscall(_SYS_FSCONFIG, fd, _FSCONFIG_CMD_CREATE, None, None, 0)


def fspick(fd: int) -> int:
    """fspick(2): a context in which to configure the file system mounted at ``fd`` anew."""
    return syscall(_SYS_FSPICK, fd, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)


def fsconfig_reconfigure(fd: int) -> None:
    """Change the superblock as was configured."""
    syscall(_SYS_FSCONFIG, fd, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of the configured file system."""
    return syscall(_SYS_FSMOUNT, fd, FSMOUNT_CLOEXEC, attributes)


def fscontext_log(fd: int) -> str:
    """What the kernel said about a failed fsconfig(2) or fsmount(2), one line; empty where it said nothing."""
    lines = []
    for _ in range(8):
        try:
            line = os.read(fd, 512)
        except OSError:  # ENODATA: no more messages
            break
        # Each is "e ", "w " or "i " and the text.
        lines.append(line.decode("utf-8", "replace").strip()[2:])
    return "; ".join(lines)


def attach(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount on the very file or directory that ``target_fd`` is."""
    move_mount(mount_fd, "", target_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def set_attributes(
    fd: int,
    *,
    set: int = 0,  # noqa: A002 -- the word of mount_setattr(2)
    clear: int = 0,
    propagation: int = 0,
    userns: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2): change the mount that ``fd`` is the root of, or all that is mounted below it too, at once."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, _ATTRIBUTES.pack(set, clear, propagation, userns), _ATTRIBUTES.size)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    if libc.pivot_root(_c(new), _c(old)) != 0:
        raise fail(new)


def filesystem_type(fd: int) -> int:
    """Magic number of the file system that ``fd`` is on (``f_type`` of fstatfs(2))."""
    buffer = (ctypes.c_long * 32)()
    if libc.fstatfs(fd, ctypes.byref(buffer)) != 0:
        raise fail(f"/proc/self/fd/{fd}")
    return int(buffer[0]) & 0xFFFFFFFF


def mount_id(fd: int) -> int:
    """The id of the mount that ``fd`` is on (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line[7:])
    raise OSError(errno.EINVAL, "has no mount id", f"/proc/self/fdinfo/{fd}")

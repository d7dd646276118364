"""Namespaces: unshare(2), setns(2), and pinning one as a file."""

import errno
import os

from sampan.linux.mount import MNT_DETACH, MS_BIND, MS_PRIVATE, mount, umount
from sampan.linux.syscall import fail, libc

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

#: OCI name of a namespace type -> (clone flag, name of its file in /proc/PID/ns).
KINDS = {
    "user": (CLONE_NEWUSER, "user"),
    "cgroup": (CLONE_NEWCGROUP, "cgroup"),
    "ipc": (CLONE_NEWIPC, "ipc"),
    "uts": (CLONE_NEWUTS, "uts"),
    "network": (CLONE_NEWNET, "net"),
    "pid": (CLONE_NEWPID, "pid"),
    "mount": (CLONE_NEWNS, "mnt"),
    "time": (CLONE_NEWTIME, "time"),
}


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` (``CLONE_NEW*``) for new ones; affects the calling thread."""
    if libc.unshare(flags) != 0:
        raise fail()


def setns(fd: int, kind: int = 0) -> None:
    """Enter the namespace (or, of a pidfd, the namespaces ``kind``) that ``fd`` refers to; the calling thread only."""
    if libc.setns(fd, kind) != 0:
        raise fail(f"/proc/self/fd/{fd}")


def pin(source: str, target: str) -> None:
    """Keep a namespace alive as the file ``target`` by binding ``source`` (``/proc/PID/ns/KIND``) onto it."""
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    mount(source, target, None, MS_BIND)
    # A pin must not travel: a container's copy of the mount table would keep the namespace alive and be
    # the classic cause of "device or resource busy" at removal.
    mount(None, target, None, MS_PRIVATE)


def unpin(target: str) -> None:
    """Let go of a pinned namespace and remove its file; a file that is no longer there is no error.

    Somebody may have the file open, to read what is inside: the namespace goes with the last of them.
    """
    try:
        umount(target, MNT_DETACH)
    except FileNotFoundError:
        return
    except OSError as error:
        # EINVAL: no mount is here; its maker died between the file and the mount, or the machine was started anew.
        if error.errno != errno.EINVAL:
            raise
    try:
        os.unlink(target)
    except FileNotFoundError:
        pass

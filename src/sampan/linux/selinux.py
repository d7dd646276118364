"""SELinux: whether this kernel runs it, and whether its policy has a label.

Labels are taken on at an execve(2) through /proc/PID/attr, given to files as an extended attribute, and to all of a new
file system by an option of its mount.
"""

from __future__ import annotations

import errno
import os

#: Where selinuxfs is mounted.
FOLDER = "/sys/fs/selinux"
#: The label of a file.
ATTRIBUTE = "security.selinux"
#: Of files that every container may read and execute, and none may write (container-selinux).
SHARED = "system_u:object_r:container_ro_file_t:s0"


def enabled() -> bool:
    """Whether the kernel runs SELinux."""
    return os.path.isdir(f"{FOLDER}/booleans")


def share(directory: str) -> None:
    """Let every container read what will be made in a directory, where the policy knows containers.

    A user whom it does not let do this has a store all the same.
    """
    if not enabled() or lacks(SHARED):
        return
    try:
        os.setxattr(directory, ATTRIBUTE, SHARED.encode() + b"\0")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            raise


def lacks(label: str) -> bool:
    """Whether the loaded policy has no such label; false where the caller may not ask."""
    try:
        fd = os.open(f"{FOLDER}/context", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, label.encode() + b"\0")
    except OSError as error:
        return error.errno == errno.EINVAL
    finally:
        os.close(fd)
    return False

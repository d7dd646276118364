"""The mounts of a container without a mount namespace: they are the runtime's own, and are taken away with it.

Such a container is confined by chroot(2) alone. Its root is bound over its own directory, its mounts lie on that, and
all of it goes with the one mount. That is known by its id, so that no other mount at that place is taken for it.
"""

from __future__ import annotations

import errno
import os

from sampan.linux import mount as m
from sampan.runtime import trace


def identify(fd: int) -> int:
    """The id of the mount that ``fd`` is on (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line[7:])
    raise OSError(errno.EINVAL, "has no mount id", f"/proc/self/fdinfo/{fd}")


def remove(mount_id: int, path: str) -> None:
    """Unmount the root at ``path`` with all that is mounted in it, if it is still mount ``mount_id``."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # gone, and its mounts with it
        return
    try:
        ours = identify(fd) == mount_id
    finally:
        os.close(fd)
    if ours:
        trace.step("unmount root", path)
        # Lazily: whoever is still in it keeps it until then.
        m.umount(path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)

"""The mounts of a container without a mount namespace: they are the runtime's own, and are taken away with it.

Such a container is confined by chroot(2) alone. Its root is bound over its own directory, its mounts lie on that, and
all of it goes with the one mount. That is known by its id, so that no other mount at that place is taken for it.
"""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.runtime import trace


def remove(mount_id: int, path: str) -> None:
    """Unmount the root at ``path`` with all that is mounted in it, if it is still mount ``mount_id``."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # gone, and its mounts with it
        return
    try:
        ours = m.mount_id(fd) == mount_id
    finally:
        os.close(fd)
    if ours:
        trace.step("unmount root", path)
        # Lazily: whoever is still in it keeps it until then.
        m.umount(path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)

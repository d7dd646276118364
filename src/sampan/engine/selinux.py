"""SELinux labels of a container. Where the machine runs no SELinux they have no effect, as in other runtimes.

Parts of a label that a request leaves out are those of the container policy (container-selinux): a kubelet sends what
the author of the pod wrote, most often a level alone. A pod without a level gets two categories of its own, so that one
pod's files are not another's.
"""

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sampan.engine.model import SelinuxLabel
from sampan.errors import InvalidInput, StageFailed

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

_FOLDER = "/sys/fs/selinux/booleans"
_ATTRIBUTE = "security.selinux"
#: Categories that a policy has (c0 to c1023).
_CATEGORIES = 1024
#: Folders of the machine that never get a container's label: a volume may be in them, not one of them.
_SYSTEM = frozenset(
    "/ /bin /boot /dev /etc /etc/passwd /etc/pki /etc/shadow /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin "
    "/srv /sys /tmp /usr /var /var/lib /var/log /var/tmp".split()
)


def enabled() -> bool:
    """Whether this machine runs SELinux."""
    return os.path.isdir(_FOLDER)


def labels(wanted: SelinuxLabel | None, *, privileged: bool, pod_id: str) -> tuple[str, str]:
    """Label of the container's process, and of its mounts; empty for a privileged one that asks for none."""
    if wanted is None or not (wanted.user or wanted.role or wanted.type or wanted.level):
        if privileged:
            return "", ""
        wanted = SelinuxLabel()
    user, level = wanted.user or "system_u", wanted.level or level_of(pod_id)
    process = f"{user}:{wanted.role or 'system_r'}:{wanted.type or 'container_t'}:{level}"
    return process, f"{user}:object_r:container_file_t:{level}"


def level_of(pod_id: str) -> str:
    """Two categories that a pod has by its id, one of 523,776 pairs: all its containers have the same."""
    first, second = divmod(int(pod_id[:12], 16) % (_CATEGORIES * (_CATEGORIES - 1)), _CATEGORIES - 1)
    second += second >= first
    return f"s0:c{min(first, second)},c{max(first, second)}"


def labelled(mounts: "Iterable[Mount]", label: str) -> "list[Mount]":
    """A root file system's mounts, whose files all have the label (mount(8), ``context``)."""
    return [
        {**mount, "options": [*mount["options"], f"context={label}"]} if label and mount["type"] == "overlay" else mount
        for mount in mounts
    ]


def relabel(path: str, label: str, field: str = "") -> None:
    """Give a volume's files a container's label. No link is followed, and a file system without labels is left alone.

    Raises:
        InvalidInput: It is one of the machine's own folders.
    """
    if path.rstrip("/") in _SYSTEM or path == "/":
        raise InvalidInput(f"{path} is the machine's and keeps its label", field=field, hint="mount a folder in it")
    value = label.encode() + b"\0"
    try:
        _set(path, value)
        if os.path.isdir(path):
            for _, folders, files, fd in os.fwalk(path):
                for name in (*folders, *files):
                    # By the folder's descriptor: its own path may lead elsewhere by now.
                    _set(f"/proc/self/fd/{fd}/{name}", value)
    except OSError as error:
        raise StageFailed("label the volume", error, path=path) from error


def _set(path: str, value: bytes) -> None:
    try:
        # Writing costs a write to the disk, and most files have the label from the container's last start.
        if os.getxattr(path, _ATTRIBUTE, follow_symlinks=False) == value:
            return
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
    try:
        os.setxattr(path, _ATTRIBUTE, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOENT):
            raise

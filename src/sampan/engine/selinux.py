"""SELinux labels of a container. Where the machine runs no SELinux they have no effect, as in other runtimes.

Parts of a label that a request leaves out are those of the container policy (container-selinux): a kubelet sends what
the author of the pod wrote, most often a level alone. A pod without a level gets two categories of its own, so that one
pod's files are not another's.
"""

import errno
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sampan.engine.model import SelinuxLabel
from sampan.engine.records import new_id
from sampan.errors import InvalidInput, StageFailed
from sampan.linux.selinux import ATTRIBUTE, enabled, lacks
from sampan.storage.mount import escape

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

__all__ = ["enabled", "labelled", "labels", "level_of", "merged", "new_pod_id", "relabel"]

#: What a request calls it.
_FIELD = "config.linux.security_context.selinux_options"
#: Categories that a policy has (c0 to c1023).
_CATEGORIES = 1024
#: Folders of the machine that never get a container's label: a volume may be in them, not one of them.
_SYSTEM = frozenset(
    "/ /bin /boot /dev /etc /etc/passwd /etc/pki /etc/shadow /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin "
    "/srv /sys /tmp /usr /var /var/lib /var/log /var/tmp".split()
)


def merged(own: SelinuxLabel | None, pods: SelinuxLabel | None) -> SelinuxLabel:
    """A container's wishes, with those of its pod where it has none."""
    own, pods = own or SelinuxLabel(), pods or SelinuxLabel()
    return SelinuxLabel(*(getattr(own, part) or getattr(pods, part) for part in SelinuxLabel.__struct_fields__))


def labels(wanted: SelinuxLabel, *, privileged: bool, pod_id: str) -> tuple[str, str]:
    """Label of the container's process, and of its mounts.

    They are empty where none is asked for, for a privileged container and under a policy that knows no containers.

    Raises:
        InvalidInput: The machine's policy lacks what is asked for.
    """
    asked = wanted != SelinuxLabel()
    if privileged and not asked:
        return "", ""
    user, level = wanted.user or "system_u", wanted.level or level_of(pod_id)
    process = f"{user}:{wanted.role or 'system_r'}:{wanted.type or 'container_t'}:{level}"
    files = f"{user}:object_r:container_file_t:{level}"
    for label in (process, files):
        if lacks(label):
            if not asked:
                return "", ""
            raise InvalidInput(f"this machine's policy has no label {label!r}", field=_FIELD)
    return process, files


def new_pod_id(others: Iterable[str], make: Callable[[], str] = new_id) -> str:
    """An id whose categories none of the other pods has."""
    taken = {level_of(other) for other in others}
    while level_of(found := make()) in taken:
        pass
    return found


def level_of(pod_id: str) -> str:
    """Two categories that a pod has by its id, one of 523,776 pairs: all its containers have the same."""
    first, second = divmod(int(pod_id[:12], 16) % (_CATEGORIES * (_CATEGORIES - 1)), _CATEGORIES - 1)
    second += second >= first
    return f"s0:c{min(first, second)},c{max(first, second)}"


def labelled(mounts: "Iterable[Mount]", label: str, empty: str) -> "list[Mount]":
    """A snapshot's mounts, whose files all have the label (mount(8), ``context``).

    A bind mount can't have it: a container's own files are labelled themselves; of a layer that others see too, an
    overlay is made, which wants two layers.

    Args:
        mounts: As the snapshotter gave them.
        label: Or an empty string.
        empty: Path of a directory to be made where the other layer is wanted.
    """
    if not label:
        return list(mounts)
    return [_labelled(mount, label, empty) for mount in mounts]


def _labelled(mount: "Mount", label: str, empty: str) -> "Mount":
    options = mount["options"]
    if mount["type"] != "overlay":
        if "ro" not in options:
            relabel(mount["source"], label)
            return mount
        os.makedirs(empty, 0o755, exist_ok=True)
        options = [f"lowerdir={escape(mount['source'])}:{escape(empty)}", "ro"]
    return {"type": "overlay", "source": "overlay", "options": [*options, f"context={label}"]}


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
        raise StageFailed("set SELinux labels", error, path=path) from error


def _set(path: str, value: bytes) -> None:
    try:
        # Writing costs a write to the disk, and most files have the label from the container's last start.
        if os.getxattr(path, ATTRIBUTE, follow_symlinks=False) == value:
            return
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
    try:
        os.setxattr(path, ATTRIBUTE, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOENT):
            raise

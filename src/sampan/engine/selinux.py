"""SELinux labels of a container. Where the machine runs no SELinux they have no effect, as in other runtimes.

Parts of a label that a request leaves out are those of the container policy (container-selinux): a kubelet sends what
the author of the pod wrote, most often a level alone.
"""

import os

from sampan.engine.model import SelinuxLabel

_FOLDER = "/sys/fs/selinux/booleans"


def enabled() -> bool:
    """Whether this machine runs SELinux."""
    return os.path.isdir(_FOLDER)


def labels(wanted: SelinuxLabel | None, *, privileged: bool) -> tuple[str, str]:
    """Label of the container's process, and of its mounts; empty for a privileged one that asks for none."""
    if wanted is None or not (wanted.user or wanted.role or wanted.type or wanted.level):
        if privileged:
            return "", ""
        wanted = SelinuxLabel()
    user, level = wanted.user or "system_u", wanted.level or "s0"
    process = f"{user}:{wanted.role or 'system_r'}:{wanted.type or 'container_t'}:{level}"
    return process, f"{user}:object_r:container_file_t:{level}"

"""Failures at the runtime's steps, and what they could leave behind."""

import os

from runtime_bundle import Box

from sampan.cgroup import open_group


class FailAt:
    """A trace hook that fails at one step, whichever process comes to it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, name: str) -> None:
        if name == self._name:
            raise OSError(5, "injected")


def children() -> set[int]:
    """The children of this process, ended and not reaped ones among them."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}


def everything(box: Box, *, systemd: bool = False) -> dict[str, object]:
    """What a container of a box, made by this process, could leave."""
    with open("/proc/self/mountinfo") as file:
        # Other tests may run beside this one.
        mounts = [line for line in file if str(box.directory) in line]
    state = box.handler.root
    group = open_group(box.linux.get("cgroupsPath") or f"/sampan/{box.container_id}", systemd=systemd)
    return {
        "mounts": mounts,
        "children": children(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "state": os.listdir(state) if os.path.isdir(state) else [],
        "cgroup": [directory for directory in group.paths().values() if os.path.exists(directory)],
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid_for_children")},
        "groups": os.getgroups(),
        "umask": os.umask(0o022),
    }

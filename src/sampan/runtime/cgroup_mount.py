"""The container's view of the control groups: what a mount of type cgroup means on this machine.

Under the unified hierarchy it is one mount. Under the first version it is a tmpfs with a directory for each hierarchy
of the host and a link for each controller that shares one, as the host itself has it. What is mounted is the
container's own group out of the host's mounts, opened by the runtime: with a cgroup namespace that looks the same as
a mount made inside, and it costs no superblock; without one it shows no more than the container's own either.
"""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.linux.resolve import make_dirs
from sampan.runtime import labels, trace
from sampan.runtime.mounts import Prepared, set_attributes
from sampan.runtime.rootfs import make_filesystem, propagate, refuse_proc
from sampan.runtime.users import mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import RuntimeConfig


def open_groups(paths: dict[str, str]) -> list[tuple[str, int]]:
    """Detached mounts of a group's directories.

    Args:
        paths: Controller -> directory (:meth:`sampan.cgroup.Group.paths`); an empty name is the unified hierarchy.

    Returns:
        Names joined by commas, as the directory is to be called, and descriptors to be closed.
    """
    directories: dict[str, list[str]] = {}
    for controller, directory in paths.items():
        directories.setdefault(directory, []).append(controller.removeprefix("name="))
    trees: list[tuple[str, int]] = []
    try:
        for directory, names in directories.items():
            name = ",".join(names)
            # A hybrid machine's unified hierarchy has no controllers; runc leaves it out too.
            if name or len(directories) == 1:
                trees.append((name, _open(directory)))
    except BaseException:
        for _, fd in trees:
            os.close(fd)
        raise
    return trees


def owner(config: RuntimeConfig) -> int:
    """The machine's id of the user who is to own the container's group, or -1 where nobody else is.

    The runtime specification ("Cgroup ownership"): the user of the container's process, where the container has user
    and cgroup namespaces of its own and its cgroup mount may be written to.
    """
    linux = config.get("linux") or {}
    new = {one["type"] for one in linux.get("namespaces") or () if not one.get("path")}
    mounted = [one for one in config.get("mounts") or () if one.get("type") == "cgroup"]
    if not {"user", "cgroup"} <= new or not mounted or "ro" in (mounted[-1].get("options") or ()):
        return -1
    return mapped((config["process"].get("user") or {}).get("uid") or 0, linux.get("uidMappings") or ())


def _open(directory: str) -> int:
    trace.step("open cgroup to mount", directory)
    return m.open_tree(m.AT_FDCWD, directory, m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC)


def mount_cgroup(root: int, one: Prepared, trees: list[tuple[str, int]]) -> None:
    """Mount the control groups at ``one``'s destination.

    Args:
        root: The container's root, a descriptor.
        one: The mount.
        trees: What :func:`open_groups` gave. A tree can be attached once: a second cgroup mount is refused.
    """
    target = make_dirs(root, one.destination)
    try:
        refuse_proc(root, target, one)
        if len(trees) == 1 and not trees[0][0]:
            _set_attributes(trees[0][1], one)
            m.attach(trees[0][1], target)
            propagate(trees[0][1], one)
            return
        top = make_filesystem("tmpfs", "tmpfs", ["mode=755", *labels.mount_option("tmpfs", [], one.label)])
        try:
            m.attach(top, target)
            for name, tree in trees:
                _mount_one(top, name, tree, one)
            set_attributes(top, one.options)
            propagate(top, one)
        finally:
            os.close(top)
    finally:
        os.close(target)


def _mount_one(top: int, name: str, tree: int, one: Prepared) -> None:
    os.mkdir(name, 0o755, dir_fd=top)
    _set_attributes(tree, one)
    # By name, once: it was made a moment ago in a file system that nobody else has seen.
    m.move_mount(tree, "", top, name, m.MOVE_MOUNT_F_EMPTY_PATH)
    if "," in name:
        for each in name.split(","):
            os.symlink(name, each, dir_fd=top)


def _set_attributes(tree: int, one: Prepared) -> None:
    """Take a group's mount out of its peers, and give it what the options name."""
    options = one.options
    m.set_attributes(tree, set=options.set, clear=options.clear, propagation=m.MS_PRIVATE)
    if options.recursive_set or options.recursive_clear:
        m.set_attributes(tree, set=options.recursive_set, clear=options.recursive_clear, recursive=True)

"""The container's view of the control groups: what a mount of type cgroup means on this machine.

Under the unified hierarchy it is one cgroup2 mount. Under the first version it is a tmpfs with a directory for each
hierarchy of the host and a link for each controller that shares one, as the host itself has it.
"""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.linux.resolve import make_dirs
from sampan.runtime import trace
from sampan.runtime.mounts import Prepared, set_attributes
from sampan.runtime.rootfs import make_filesystem, propagate, refuse_proc


def mount_cgroup(root: int, one: Prepared, *, own_namespace: bool) -> None:
    """Mount the control groups at ``one``'s destination; the caller is in its cgroup, and in its cgroup namespace.

    Args:
        root: The container's root, a descriptor.
        one: The mount.
        own_namespace: Whether a fresh mount shows the container's groups only. If not, they are bound one by one.
    """
    hierarchies = _hierarchies()
    target = make_dirs(root, one.destination)
    try:
        refuse_proc(target, one)
        if "" in hierarchies and len(hierarchies) == 1:
            tree = _one_hierarchy("", hierarchies[""], own_namespace=own_namespace)
            try:
                set_attributes(tree, one.options)
                m.attach(tree, target)
                propagate(tree, one)
            finally:
                os.close(tree)
            return
        _mount_v1(target, one, hierarchies, own_namespace=own_namespace)
    finally:
        os.close(target)


def _mount_v1(target: int, one: Prepared, hierarchies: dict[str, str], *, own_namespace: bool) -> None:
    top = make_filesystem("tmpfs", "tmpfs", ["mode=755"])
    try:
        m.attach(top, target)
        for controllers, group in hierarchies.items():
            if not controllers:
                # A hybrid machine's unified hierarchy has no controllers; runc leaves it out too.
                continue
            name = controllers.removeprefix("name=")
            trace.step(f'mount "cgroup" {name}', one.destination)
            os.mkdir(name, 0o755, dir_fd=top)
            tree = _one_hierarchy(controllers, group, own_namespace=own_namespace)
            try:
                set_attributes(tree, one.options)
                place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                try:
                    m.attach(tree, place)
                finally:
                    os.close(place)
            finally:
                os.close(tree)
            if "," in name:
                for each in name.split(","):
                    os.symlink(name, each, dir_fd=top)
        set_attributes(top, one.options)
        propagate(top, one)
    finally:
        os.close(top)


def _one_hierarchy(controllers: str, group: str, *, own_namespace: bool) -> int:
    """A mount of one hierarchy that shows the container's groups alone."""
    fstype = "cgroup" if controllers else "cgroup2"
    if own_namespace:
        options = [controllers.replace("name=", "none,name=")] if controllers else []
        return make_filesystem(fstype, "cgroup", options)
    where = _mount_points()[controllers]
    flags = m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC
    return m.open_tree(m.AT_FDCWD, f"{where}{group}", flags)


def _hierarchies() -> dict[str, str]:
    """The caller's group in each hierarchy: its controllers joined by commas, or an empty name, -> path."""
    result = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            result[controllers] = path
    return result


def _mount_points() -> dict[str, str]:
    """Where the host has each hierarchy, by the same names."""
    own = _hierarchies()
    result = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            fstype, _, options = right.split(" ", 2)
            point = left.split(" ")[4]
            if fstype == "cgroup2":
                result[""] = point
            elif fstype == "cgroup":
                have = set(options.strip().split(","))
                for controllers in own:
                    if controllers and set(controllers.split(",")) <= have:
                        result[controllers] = point
    return result

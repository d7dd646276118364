"""The container's mounts, first half: what the runtime opens before the container exists.

Sources of bind mounts are the host's. Of a container with a user namespace they are opened, copied as detached trees
and given their attributes here, in the runtime's own namespaces and with its own rights: so a source whose parents the
container's root may not search needs nothing special. Otherwise the init does the same when their turn comes
(:meth:`Prepared.open`): mount tables list by age since Linux 6.8, and their order should be the configuration's. It
attaches them by descriptor (:mod:`sampan.runtime.rootfs`).
"""

from __future__ import annotations

import errno
import os
import stat

from sampan.linux import mount as m
from sampan.runtime import labels, trace
from sampan.spec import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.spec.mount_options import MountOptions
    from sampan.spec.runtime_types import IDMapping, Linux, Mount, RuntimeConfig

#: Type of rootfsPropagation by default: what the host mounts later is seen inside, nothing inside is seen outside.
DEFAULT_PROPAGATION = (m.MS_SLAVE, True)


class Prepared:
    """One mount to be made.

    Attributes:
        bind: Whether it is a bind mount; its source is an absolute path.
        tree: The detached copy of a bind mount's source; -1 of another mount, or until it is opened.
        directory: Whether a directory is mounted, so that a missing destination is made as one.
        label: The SELinux label of a new file system (``linux.mountLabel``), or an empty string.
    """

    __slots__ = ("_propagation", "bind", "destination", "directory", "fstype", "label", "options", "source", "tree")

    def __init__(self, mount: Mount, options: MountOptions, bundle: str, propagation: tuple[int, bool]) -> None:
        self.destination = mount["destination"]
        self.source = mount.get("source") or ""
        self.fstype = mount.get("type") or ""
        self.options = options
        self.bind = options.bind or self.fstype == "bind"
        self.tree = -1
        self.directory = True
        self.label = ""
        self._propagation = propagation
        if self.bind:
            self.source = os.path.join(bundle, self.source)

    @property
    def shared(self) -> bool:
        """Whether a bind mount stays a peer of its source: what is mounted below one is seen below the other."""
        named = [kind for kind, _ in self.options.propagation]
        return self._propagation[0] == m.MS_SHARED and (not named or named[-1] == m.MS_SHARED)

    def open(self) -> None:
        """Copy a bind mount's source as a detached tree, with the attributes that its options name."""
        self.copy()
        set_attributes(self.tree, self.options)

    def close(self) -> None:
        """Let go of the copy; a second call does nothing."""
        if self.tree >= 0:
            os.close(self.tree)
            self.tree = -1

    def copy(self) -> None:
        """Copy the source, and take the copy out of its peers."""
        trace.step("open mount source", self.source)
        flags = m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | (m.AT_RECURSIVE if self.options.recursive else 0)
        self.tree = m.open_tree(m.AT_FDCWD, self.source, flags)
        self.directory = stat.S_ISDIR(os.fstat(self.tree).st_mode)
        _isolate(self.tree, self._propagation)


class PreparedMounts:
    """The root and every mount, with the descriptors they hold."""

    __slots__ = ("cgroups", "label", "mounts", "named", "propagation", "root", "root_path", "warnings")

    def __init__(self, root_path: str, propagation: tuple[int, bool], *, named: bool) -> None:
        self.root_path = root_path
        #: ``linux.mountLabel``.
        self.label = ""
        self.propagation = propagation
        #: The propagation is the configuration's and no default.
        self.named = named
        self.root = -1
        self.mounts: list[Prepared] = []
        #: The container's own groups, for a mount of type cgroup: (name of the directory, detached mount).
        self.cgroups: list[tuple[str, int]] = []
        #: What was asked for and has no effect.
        self.warnings: list[str] = []

    @property
    def follows(self) -> bool:
        """What the host mounts later below its path of the root is seen inside, as the configuration asks."""
        return self.named and self.propagation[0] == m.MS_SLAVE

    def open_root(self, *, late: bool = False) -> None:
        """Copy the root as a detached tree, if that can be done already.

        Args:
            late: In the container's mount namespace, with the propagation that it is to have.
        """
        trace.step("open root file system", self.root_path)
        flags = m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_RECURSIVE
        try:
            root = m.open_tree(m.AT_FDCWD, self.root_path, flags)
        except OSError as error:
            if error.errno != errno.EINVAL or late:
                raise
            return  # it is on an unbindable mount, which is none any more in the container's own table
        try:
            if not stat.S_ISDIR(os.fstat(root).st_mode):
                raise NotADirectoryError(20, os.strerror(20), self.root_path)
            if not self.follows:
                # A shared one is so again once it is pivoted to, in a peer group of its own.
                m.set_attributes(root, propagation=m.MS_PRIVATE)
            _isolate(root, self.propagation)
        except BaseException:
            os.close(root)
            raise
        self.root = root

    def close(self) -> None:
        """Close every descriptor; a second call does nothing."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
        while self.cgroups:
            os.close(self.cgroups.pop()[1])
        for prepared in self.mounts:
            prepared.close()


def prepare(
    config: RuntimeConfig, bundle: str, idmap: Callable[[list[IDMapping], list[IDMapping]], int]
) -> PreparedMounts:
    """Open the root and every bind source.

    Args:
        config: The container's configuration.
        bundle: Absolute path of the bundle; relative paths start there.
        idmap: Gives a user namespace of these uid and gid mappings, as a descriptor to be closed.
    """
    linux = config.get("linux") or {}
    name = linux.get("rootfsPropagation") or ""
    propagation = mount_options.PROPAGATION[name] if name else DEFAULT_PROPAGATION
    root_path = os.path.join(bundle, config["root"]["path"])
    prepared = PreparedMounts(root_path, propagation, named=bool(name))
    prepared.label = linux.get("mountLabel") or ""
    users = any(one["type"] == "user" for one in linux.get("namespaces") or [])
    if users and os.geteuid() != 0:
        # Who is nobody's root here is one in the container's user namespace: all of it is opened there.
        users = False
    else:
        prepared.open_root()
    try:
        for number, mount in enumerate(config.get("mounts") or []):
            one = Prepared(mount, mount_options.parse(mount.get("options") or []), bundle, propagation)
            prepared.mounts.append(one)
            if one.bind and one.options.data:
                # They are the file system's, and it has them already: mount(2) ignores them too.
                ignored = ", ".join(one.options.data)[:200]
                prepared.warnings.append(f"mounts[{number}].options: a bind mount has no {ignored}")
            if one.options.remount:
                continue
            if not one.bind:
                one.label = prepared.label
                one.options.data += labels.mount_option(one.fstype, one.options.data, one.label)
            elif one.options.idmap or mount.get("uidMappings"):
                _open_mapped(one, mount, linux, idmap)
            elif users:
                one.open()
    except BaseException:
        prepared.close()
        raise
    return prepared


def _isolate(tree: int, propagation: tuple[int, bool]) -> None:
    """Take the tree out of its source's peer group, unless the container shares mounts with the host on purpose."""
    kind, _ = propagation
    if kind == m.MS_SHARED:
        return
    m.set_attributes(tree, propagation=m.MS_PRIVATE if kind == m.MS_UNBINDABLE else kind, recursive=True)


def _open_mapped(
    one: Prepared, mount: Mount, linux: Linux, idmap: Callable[[list[IDMapping], list[IDMapping]], int]
) -> None:
    """Open a bind mount's source and map the ids of its files, which takes the runtime's own rights."""
    options = one.options
    one.copy()
    trace.step("map ids of mount", one.source)
    uids = mount.get("uidMappings") or []
    gids = mount.get("gidMappings") or []
    if not uids and not gids:
        uids = linux.get("uidMappings") or []
        gids = linux.get("gidMappings") or []
    users = idmap(uids, gids)
    try:
        # Without a recursive copy only the top can be mapped; of a tree, each mount must support it.
        recursive = options.recursive and options.idmap != "idmap"
        m.set_attributes(one.tree, set=m.MOUNT_ATTR_IDMAP, userns=users, recursive=recursive)
    finally:
        os.close(users)
    set_attributes(one.tree, options)


def set_attributes(tree: int, options: MountOptions, *, but: int = 0) -> None:
    """Give a mount the attributes that its options name; what they don't name stays as a bind mount's source has it.

    Args:
        tree: The mount.
        options: Its options.
        but: Attributes that are not to be set yet.
    """
    if options.set or options.clear:
        m.set_attributes(tree, set=options.set & ~but, clear=options.clear)
    if options.recursive_set or options.recursive_clear:
        m.set_attributes(tree, set=options.recursive_set & ~but, clear=options.recursive_clear, recursive=True)

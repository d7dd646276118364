"""The container's file system, second half: made by the container's init in its own mount namespace.

Nothing is mounted by name. A destination is opened inside the root with openat2(RESOLVE_IN_ROOT), what is mounted
is a descriptor too, and move_mount(2) joins the two: a symlink or a rename between a check and its use has no use
to change (CVE-2021-30465, CVE-2019-16884). What must be procfs or sysfs is checked to be it, on the descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from sampan.linux import mount as m
from sampan.linux.resolve import RESOLVE_NO_SYMLINKS, make_dirs, make_file, open_in_root
from sampan.runtime import labels, trace
from sampan.runtime.mounts import Prepared, PreparedMounts, set_attributes

# What may be bound over a file of procfs, as lxcfs does; anything else there could fool the runtime or the program
# about its own processes (runc's list).
_PROC_TARGETS = frozenset(
    (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
        "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip

# What fsconfig(2) takes by name and mount(2) as a bit.
_SUPERBLOCK_FLAGS = {
    "ro": m.MS_RDONLY,
    "sync": m.MS_SYNCHRONOUS,
    "dirsync": m.MS_DIRSYNC,
    "lazytime": m.MS_LAZYTIME,
    "mand": m.MS_MANDLOCK,
}


class Rootfs:
    """The root as the init sees it.

    Args:
        prepared: What the runtime opened.
        no_pivot: Move the root over the old one instead of pivoting: for an initramfs, which can't be pivoted.
        shared: There is no mount namespace but the runtime's: mount there, and change the root alone.
    """

    __slots__ = ("_dev_null", "_late", "_no_pivot", "_prepared", "_shared", "_tmpfs", "fd")

    def __init__(self, prepared: PreparedMounts, *, no_pivot: bool, shared: bool = False) -> None:
        self._prepared = prepared
        self._no_pivot = no_pivot
        self._shared = shared
        self._dev_null = -1
        self._tmpfs = -1
        #: Mounts that become read-only when all is in them that belongs there: (descriptor, destination).
        self._late: list[tuple[int, str]] = []
        #: The container's root, as a descriptor.
        self.fd = prepared.root

    def attach(self) -> None:
        """Put the root where it can be pivoted to: over its own directory, or else over "/"."""
        kind, recursive = self._prepared.propagation
        trace.step("set mount propagation", "/")
        if self._shared:
            pass  # the table is the machine's, and stays as it is
        elif kind == m.MS_SHARED:
            # The container shares mounts with the host, but its root must not appear there.
            make_parent_private(self._prepared.root_path)
        else:
            kind = m.MS_PRIVATE if kind == m.MS_UNBINDABLE else kind
            recursive = recursive or kind == m.MS_SLAVE
            m.mount(None, "/", None, kind | (m.MS_REC if recursive else 0))
            if not recursive:
                make_parent_private(self._prepared.root_path)  # or pivot_root(2) refuses
        if self.fd < 0:
            self._open()
            self.fd = self._prepared.root
        trace.step("attach root file system", self._prepared.root_path)
        try:
            m.move_mount(self.fd, "", m.AT_FDCWD, self._prepared.root_path, m.MOVE_MOUNT_F_EMPTY_PATH)
        except PermissionError:
            # A user namespace may not search the way to it; hooks then can't reach it by that path.
            m.move_mount(self.fd, "", m.AT_FDCWD, "/", m.MOVE_MOUNT_F_EMPTY_PATH)

    def _open(self) -> None:
        try:
            self._prepared.open_root(late=True)
        except OSError as error:
            if error.errno != errno.EINVAL or self._shared:
                raise
            # On older kernels an unbindable mount stays so as a slave.
            make_parent_private(self._prepared.root_path)
            self._prepared.open_root(late=True)

    def mount_all(self) -> None:
        """Make the mounts in the order of the configuration."""
        for one in self._prepared.mounts:
            what = f'mount "{one.fstype or "bind"}"'
            trace.step(what, one.destination)
            if one.options.remount:
                self._change(one)
            elif one.bind:
                self._bind(one)
            elif one.fstype == "cgroup":
                from sampan.runtime.cgroup_mount import mount_cgroup

                mount_cgroup(self.fd, one, self._prepared.cgroups)
            else:
                self._filesystem(one)

    def _bind(self, one: Prepared) -> None:
        late = one.tree < 0
        if late:
            one.open()
            trace.step(f'mount "{one.fstype or "bind"}"', one.destination)
        try:
            target = make_dirs(self.fd, one.destination) if one.directory else make_file(self.fd, one.destination)
            try:
                self._refuse_root(target, one)
                refuse_proc(self.fd, target, one)
                if not one.directory and stat.S_ISDIR(os.fstat(target).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, f"{one.source} is not a directory, and this is one")
                m.attach(one.tree, target)
            finally:
                os.close(target)
            propagate(one.tree, one)
        finally:
            if late:
                one.close()

    def _refuse_root(self, target: int, one: Prepared) -> None:
        """Refuse a mount over the root, which the pivot would leave behind: a symlink of the image may lead there."""
        if os.path.samestat(os.fstat(target), os.fstat(self.fd)) and _place(target) == _place(self.fd):
            raise OSError(errno.EINVAL, "a mount over the root is refused", one.destination)

    def _change(self, one: Prepared) -> None:
        """Change what is mounted at the destination; the kernel refuses where nothing is."""
        target = open_in_root(self.fd, one.destination)
        try:
            if one.options.data and not one.bind:
                change_filesystem(target, one.options.data)
            set_attributes(target, one.options)
            propagate(target, one)
        finally:
            os.close(target)

    def _filesystem(self, one: Prepared) -> None:
        if one.fstype in ("proc", "sysfs"):
            # On a real directory only: a symlink or a volume at /proc would let an image choose what the
            # runtime later writes labels and sysctls to (CVE-2023-27561, CVE-2019-19921).
            target, covers = make_plain_dir(self.fd, one.destination), False
        else:
            target, covers = self._directory(one.destination)
        try:
            self._refuse_root(target, one)
            refuse_proc(self.fd, target, one)
            data = one.options.data
            named = {entry.partition("=")[0] for entry in data}
            if one.fstype == "tmpfs" and covers and "mode" not in named:
                # A tmpfs takes over the mode of what it covers, as runc has it.
                data = [*data, f"mode={stat.S_IMODE(os.fstat(target).st_mode):o}"]
            late = becomes_readonly(one)
            if not late and is_readonly(one) and is_device(one.source):
                # The mount's attribute alone would have the journal replayed, and refuse a write-protected device.
                data = ["ro", *data]
            source = one.source or one.fstype
            if fits(source, data):
                filesystem = make_filesystem(one.fstype, source, data)
            else:
                filesystem = mount_filesystem(target, one.fstype, source, data)
            try:
                if one.options.copy_up:
                    from sampan.runtime.copy_up import copy_tree

                    copy_tree(target, filesystem, top=covers and not named & {"mode", "uid", "gid"})
                labels.label_root(filesystem, one.fstype, one.label)
                set_attributes(filesystem, one.options, but=m.MOUNT_ATTR_RDONLY if late else 0)
                m.attach(filesystem, target)
                propagate(filesystem, one)
                if late:
                    self._late.append((os.dup(filesystem), one.destination))
            finally:
                os.close(filesystem)
        finally:
            os.close(target)

    def _directory(self, path: str) -> tuple[int, bool]:
        """A directory, made where it is missing, and whether it was there."""
        try:
            return open_in_root(self.fd, path, os.O_PATH | os.O_DIRECTORY), True
        except FileNotFoundError:
            return make_dirs(self.fd, path), False

    def mask(self, paths: list[str]) -> None:
        """Hide ``paths``: an empty read-only directory over a directory, /dev/null over anything else."""
        for path in paths:
            trace.step("mask path", path)
            try:
                target = open_in_root(self.fd, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if stat.S_ISDIR(os.fstat(target).st_mode):
                    self._cover(target)
                else:
                    self._cover_with_null(target)
            finally:
                os.close(target)

    def _cover(self, target: int) -> None:
        if self._tmpfs < 0:
            data = ["size=0k", "nr_inodes=2", "mode=755", *labels.mount_option("tmpfs", [], self._prepared.label)]
            self._tmpfs = make_filesystem("tmpfs", "tmpfs", data)
            m.set_attributes(self._tmpfs, set=m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV)
            m.attach(self._tmpfs, target)
            return
        copy = m.open_tree(self._tmpfs, "", m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_EMPTY_PATH)
        try:
            m.attach(copy, target)
        finally:
            os.close(copy)

    def _cover_with_null(self, target: int) -> None:
        if self._dev_null < 0:
            # The host's, checked to be the real one: an image's /dev/null may be a symlink to what
            # the mask is there to hide (CVE-2025-31133).
            self._dev_null = open_host_null()
        copy = m.open_tree(self._dev_null, "", m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_EMPTY_PATH)
        try:
            m.attach(copy, target)
        finally:
            os.close(copy)

    def make_readonly(self, paths: list[str]) -> None:
        """Bind each of ``paths`` onto itself, read-only."""
        for path in paths:
            trace.step("make path read-only", path)
            try:
                target = open_in_root(self.fd, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                flags = m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_EMPTY_PATH | m.AT_RECURSIVE
                copy = m.open_tree(target, "", flags)
                try:
                    m.set_attributes(copy, set=m.MOUNT_ATTR_RDONLY)
                    m.attach(copy, target)
                finally:
                    os.close(copy)
            finally:
                os.close(target)

    def make_cwd(self, path: str) -> None:
        """Make the process's directory where it is missing, before the root is read-only; what refuses, stays.

        Whether the process can enter it is found out when it does.
        """
        trace.step("make working directory", path)
        try:
            os.close(make_dirs(self.fd, path))
        except OSError:
            pass

    def finish_mounts(self) -> None:
        """Make read-only what was held back: devices, other mounts and the files of hooks are in it now."""
        while self._late:
            mount, destination = self._late.pop()
            try:
                trace.step("make mount read-only", destination)
                m.set_attributes(mount, set=m.MOUNT_ATTR_RDONLY)
            finally:
                os.close(mount)

    def make_root_readonly(self) -> None:
        """Make the root itself read-only; mounts in it are as they say."""
        trace.step("make root read-only", "/")
        m.set_attributes(self.fd, set=m.MOUNT_ATTR_RDONLY)

    def pivot(self) -> None:
        """Make the root the process's root, and let go of the host's."""
        trace.step("pivot root", self._prepared.root_path)
        os.fchdir(self.fd)
        if self._shared:
            os.chroot(".")
            os.chdir("/")
            return
        if self._no_pivot:
            m.move_mount(self.fd, "", m.AT_FDCWD, "/", m.MOVE_MOUNT_F_EMPTY_PATH)
            os.chroot(".")
        else:
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # pivot_root(".", ".") stacks the old root over the new one; pivot_root(2) documents the idiom.
            m.pivot_root(".", ".")
            os.fchdir(old)
            os.close(old)
            # Its going away must not travel back to the host.
            m.mount(None, ".", None, m.MS_SLAVE | m.MS_REC)
            m.umount(".", m.MNT_DETACH)
        os.chdir("/")
        kind, recursive = self._prepared.propagation
        # Private is what all here is already, and otherwise only what a mount's own options made so.
        if self._prepared.named and kind != m.MS_PRIVATE:
            trace.step("set root propagation", "/")
            m.mount(None, "/", None, kind | (m.MS_REC if recursive else 0))


def _place(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def make_filesystem(fstype: str, source: str, data: list[str]) -> int:
    """A new file system as a detached mount."""
    context = m.fsopen(fstype)
    try:
        m.fsconfig_string(context, "source", source)
        _configure(context, data)
        m.fsconfig_create(context)
        return m.fsmount(context)
    except OSError as error:
        raise _explained(context, error) from None
    finally:
        os.close(context)


def fits(source: str, data: list[str]) -> bool:
    """Whether fsconfig(2) takes these: a value of more than 255 bytes it does not."""
    values = (key.partition("=")[2] for option in data for key in labels.parted(option))
    return all(len(os.fsencode(value)) < 256 for value in (source, *values))


def mount_filesystem(target: int, fstype: str, source: str, data: list[str]) -> int:
    """What :func:`make_filesystem` makes, by mount(2), which takes a page of options: the layers of an overlay.

    It wants a path, and of what is mounted there a descriptor is to be had that is that mount's for sure. So it is
    mounted where nobody else can rename anything, for a moment: in a tmpfs over ``target``.
    """
    flags = 0
    for option in data:
        flags |= _SUPERBLOCK_FLAGS.get(option, 0)
    text = ",".join(option for option in data if option not in _SUPERBLOCK_FLAGS)
    cover = make_filesystem("tmpfs", "tmpfs", ["mode=700"])
    try:
        m.attach(cover, target)
        try:
            os.mkdir("mount", dir_fd=cover)
            point = open_in_root(cover, "mount")
            try:
                m.mount(source, f"/proc/self/fd/{point}", fstype, flags, text)
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0)) from None  # the path says nothing
            finally:
                os.close(point)
            # By name, and so what is mounted there now.
            return m.open_tree(cover, "mount", m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC)
        finally:
            m.umount(f"/proc/self/fd/{cover}", m.MNT_DETACH)
    finally:
        os.close(cover)


def change_filesystem(mount: int, data: list[str]) -> None:
    """Give the file system of a mount other options."""
    context = m.fspick(mount)
    try:
        _configure(context, data)
        m.fsconfig_reconfigure(context)
    except OSError as error:
        raise _explained(context, error) from None
    finally:
        os.close(context)


def _configure(context: int, data: list[str]) -> None:
    for option in data:
        for key in labels.parted(option):
            name, equals, value = key.partition("=")
            if equals:
                m.fsconfig_string(context, name, value)
            elif name:
                m.fsconfig_flag(context, name)


def _explained(context: int, error: OSError) -> OSError:
    """The error, with what the kernel has to say about it."""
    said = m.fscontext_log(context)
    return OSError(error.errno, f"{error.strerror}: {said}", error.filename) if said else error


def make_plain_dir(root: int, path: str) -> int:
    """The directory ``path`` inside ``root``, made where missing; refused if a symlink is on the way."""
    try:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        os.close(make_dirs(root, path))
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY, resolve=RESOLVE_NO_SYMLINKS)


def becomes_readonly(one: Prepared) -> bool:
    """Whether a new file system is to be read-only, but only when the runtime has put into it what goes there.

    A tmpfs begins empty: destinations of other mounts and devices have yet to be made in it.
    """
    return is_readonly(one) and (one.fstype == "tmpfs" or os.path.normpath(one.destination) == "/dev")


def is_readonly(one: Prepared) -> bool:
    """Whether a mount's options ask for a read-only one."""
    return bool((one.options.set | one.options.recursive_set) & m.MOUNT_ATTR_RDONLY)


def is_device(source: str) -> bool:
    """Whether a file system's source is a disk.

    Of the kernel's own file systems, other namespaces' mounts may have the superblock too: sysfs is the network's.
    """
    try:
        return source.startswith("/") and stat.S_ISBLK(os.stat(source).st_mode)
    except OSError:
        return False


def propagate(fd: int, one: Prepared) -> None:
    """Set the propagation that a mount's options ask for."""
    for kind, recursive in one.options.propagation:
        m.set_attributes(fd, propagation=kind, recursive=recursive)


def refuse_proc(root: int, target: int, one: Prepared) -> None:
    """Refuse a mount inside the container's procfs, save of a new one over all of it or of the files lxcfs provides.

    A procfs that a volume brings elsewhere, as agents have the machine's at /host/proc, is not the container's, by
    whatever links its destination was reached: the runtime and libraries write to what is at /proc.

    Args:
        root: The container's root, a descriptor.
        target: What the mount is to cover, a descriptor.
        one: The mount.
    """
    if m.filesystem_type(target) != m.PROC_SUPER_MAGIC or not _is_mounted_at_proc(root, target):
        return
    where = os.readlink(f"/proc/self/fd/{target}")
    inside = os.path.normpath(one.destination)
    if one.fstype == "proc" and os.fstat(target).st_ino == 1:
        return
    if inside.startswith("/proc/") and inside[6:] in _PROC_TARGETS and where.endswith(inside[5:]):
        return
    raise OSError(errno.EPERM, "a mount inside /proc is refused", one.destination)


def _is_mounted_at_proc(root: int, target: int) -> bool:
    """Whether what ``target`` is on is the mount that the container finds at /proc."""
    try:
        proc = open_in_root(root, "/proc")
    except FileNotFoundError:
        return False
    try:
        return m.mount_id(proc) == m.mount_id(target)
    finally:
        os.close(proc)


def open_host_null() -> int:
    """The host's /dev/null, checked on the descriptor; only before the pivot."""
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise OSError(errno.EINVAL, "not the null device", "/dev/null")
    return fd


def make_parent_private(path: str) -> None:
    """Make the mount that ``path`` is on private, so that what is mounted at ``path`` does not travel."""
    best = "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            point = line.split(" ", 5)[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
                best = point
    m.mount(None, best, None, m.MS_PRIVATE)

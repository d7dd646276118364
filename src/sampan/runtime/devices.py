"""Device nodes and the symlinks beside them in the container's /dev."""

from __future__ import annotations

import errno
import os
import stat

from sampan.linux import mount as m
from sampan.linux.resolve import RESOLVE_NO_SYMLINKS, make_dirs, make_file, open_in_root
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Device

# The devices that the runtime specification promises in every container ("Default Devices").
_DEFAULT: tuple[tuple[str, int, int], ...] = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
# And the links ("Dev symbolic links").
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def populate(root: int, devices: list[Device], *, user_namespace: bool) -> None:
    """Make the default devices, those of the configuration, and the links.

    Args:
        root: The container's root, a descriptor.
        devices: ``linux.devices``.
        user_namespace: Device nodes can't be made there: the host's are bound instead.
    """
    trace.step("make default devices", "/dev")
    asked = {os.path.normpath(device["path"]) for device in devices}
    dev = make_dirs(root, "/dev")
    try:
        for name, major, minor in _DEFAULT:
            if f"/dev/{name}" in asked:
                continue
            if user_namespace:
                _bind_host(root, f"/dev/{name}", stat.S_IFCHR, os.makedev(major, minor))
            else:
                _make_node(dev, name, stat.S_IFCHR | 0o666, os.makedev(major, minor), 0, 0)
        for device in devices:
            # A link below leads to the container's own; the machine's could not be taken away again for it.
            if not (user_namespace and os.path.normpath(device["path"]) == "/dev/ptmx"):
                _make(root, device, user_namespace=user_namespace)
        trace.step("make device links", "/dev")
        _link(dev)
    finally:
        os.close(dev)


def _make(root: int, device: Device, *, user_namespace: bool) -> None:
    path = os.path.normpath(device["path"])
    trace.step("make device", path)
    kind = _KINDS[device["type"]]
    mode = device.get("fileMode")
    number = os.makedev(device.get("major") or 0, device.get("minor") or 0) if kind != stat.S_IFIFO else 0
    if user_namespace and kind != stat.S_IFIFO:
        _bind_host(root, path, kind, number)
        return
    parent = make_dirs(root, os.path.dirname(path))
    try:
        permissions = 0o666 if mode is None else stat.S_IMODE(mode)
        _make_node(parent, os.path.basename(path), kind | permissions, number, device.get("uid") or 0,
                   device.get("gid") or 0)  # fmt: skip
    finally:
        os.close(parent)


def _make_node(parent: int, name: str, mode: int, number: int, uid: int, gid: int) -> None:
    try:
        os.mknod(name, mode, number, dir_fd=parent)
    except FileExistsError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode) or status.st_rdev != number:
            raise
        # The runtime specification: a device that is there already and is the one asked for, is kept.
        if status.st_uid == uid and status.st_gid == gid:
            return
    if uid or gid:
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


def _bind_host(root: int, path: str, kind: int, number: int) -> None:
    source = m.open_tree(m.AT_FDCWD, path, m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_SYMLINK_NOFOLLOW)
    try:
        status = os.fstat(source)
        if stat.S_IFMT(status.st_mode) != kind or status.st_rdev != number:
            raise OSError(errno.EINVAL, "the machine has something else there than the device that is asked for", path)
        target = make_file(root, path)
        try:
            m.attach(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _link(dev: int) -> None:
    for name, target in _LINKS:
        _symlink(dev, name, target)
    try:
        os.stat("/proc/kcore")
    except OSError:
        pass
    else:
        _symlink(dev, "core", "/proc/kcore")
    # Not where the image or a volume has a real node of that name: only a devpts of our own has one.
    try:
        status = os.stat("ptmx", dir_fd=dev, follow_symlinks=False)
    except FileNotFoundError:
        _symlink(dev, "ptmx", "pts/ptmx")
    else:
        if not stat.S_ISLNK(status.st_mode):
            os.unlink("ptmx", dir_fd=dev)
            _symlink(dev, "ptmx", "pts/ptmx")


def _symlink(parent: int, name: str, target: str) -> None:
    try:
        os.symlink(target, name, dir_fd=parent)
    except FileExistsError:
        if os.readlink(name, dir_fd=parent) != target:
            raise


def bind_console(root: int, slave: int) -> None:
    """Bind the terminal ``slave`` over the container's /dev/console, made where missing."""
    trace.step("bind console", "/dev/console")
    source = m.open_tree(slave, "", m.OPEN_TREE_CLONE | m.OPEN_TREE_CLOEXEC | m.AT_EMPTY_PATH)
    try:
        target = _console(root)
        try:
            m.attach(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _console(root: int) -> int:
    """Where the console goes: not through a link of the image's, which could lead into procfs (CVE-2025-52565)."""
    try:
        target = open_in_root(root, "/dev/console", resolve=RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        target = make_file(root, "/dev/console", 0o600)
    if m.filesystem_type(target) == m.PROC_SUPER_MAGIC:
        os.close(target)
        raise OSError(errno.EPERM, "the console is inside procfs", "/dev/console")
    return target


def open_multiplexer(root: int) -> int:
    """The container's pty multiplexer, opened and checked: a new terminal's master."""
    # A devtmpfs, which is at /dev where that is the machine's, has a node for the multiplexer of the devpts beside it.
    for path in ("/dev/ptmx", "/dev/pts/ptmx"):
        master = _multiplexer(root, path)
        if master >= 0:
            return master
    raise OSError(errno.EINVAL, "not on a devpts file system", path)


def _multiplexer(root: int, path: str) -> int:
    """-1 for a node outside a devpts."""
    from sampan.linux.pty import is_on_devpts

    master = open_in_root(root, path, os.O_RDWR | os.O_NOCTTY)
    try:
        if is_on_devpts(master):
            return master
    except OSError as error:
        os.close(master)
        raise OSError(error.errno, error.strerror, path) from None
    os.close(master)
    return -1

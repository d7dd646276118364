"""Attaching the mounts that a snapshotter gives, through the mount API by descriptor.

On the import diet: monitors and the layer worker import this. A mount is a dict with ``type``, ``source`` and
``options``, as in an OCI configuration. mount(2) takes one page of options, which some sixty layers fill; fsconfig(2)
takes each layer by itself (``lowerdir+``, Linux 6.5).
"""

from __future__ import annotations

import errno
import os

from sampan.linux import mount as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypedDict

    class Mount(TypedDict):
        """One mount, as in an OCI configuration."""

        type: str
        source: str
        options: list[str]


_FLAGS = {
    "ro": kernel.MOUNT_ATTR_RDONLY,
    "nosuid": kernel.MOUNT_ATTR_NOSUID,
    "nodev": kernel.MOUNT_ATTR_NODEV,
    "noexec": kernel.MOUNT_ATTR_NOEXEC,
    "noatime": kernel.MOUNT_ATTR_NOATIME,
}
_KNOWN_BUT_DEFAULT = ("rw", "bind", "rbind")


def attach(mounts: Sequence[Mount], target: str, idmap: int = -1) -> None:
    """Mount all of ``mounts`` on ``target``, the later over the earlier.

    Args:
        mounts: What a snapshotter gave.
        target: An existing directory.
        idmap: Descriptor of a user namespace through whose mappings the files' owners are seen, or -1. The files
            stay as they are (``MOUNT_ATTR_IDMAP``): nothing is copied.

    Raises:
        OSError: With the path that it was on; nothing of ``mounts`` stays mounted.
    """
    done = 0
    try:
        for mount in mounts:
            fd = detached(mount, idmap)
            try:
                kernel.move_mount(fd, "", kernel.AT_FDCWD, target, kernel.MOVE_MOUNT_F_EMPTY_PATH)
            finally:
                os.close(fd)
            done += 1
    except BaseException:
        for _ in range(done):
            kernel.umount(target, kernel.MNT_DETACH)
        raise


def detach(target: str) -> None:
    """Unmount whatever is mounted on ``target``, to the last; nothing mounted there is no error."""
    while True:
        try:
            kernel.umount(target, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
        except (FileNotFoundError, OSError) as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # not there, or no mount point
                return
            raise


def escape(path: str) -> str:
    """A path as overlayfs's options have it, where commas and colons part them."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _unescaped(value: str) -> list[str]:
    """The paths of an option's value."""
    paths, path, escaped = [], "", False
    for letter in value:
        if escaped or letter not in "\\:":
            path += letter
            escaped = False
        elif letter == "\\":
            escaped = True
        else:
            paths.append(path)
            path = ""
    return [*paths, path]


def detached(mount: Mount, idmap: int = -1) -> int:
    """The mount as a descriptor, attached nowhere yet."""
    attributes = 0
    options = []
    for option in mount["options"]:
        if option in _FLAGS:
            attributes |= _FLAGS[option]
        elif option not in _KNOWN_BUT_DEFAULT:
            options.append(option)
    if mount["type"] == "overlay":
        try:
            return _overlay(mount["source"], options, attributes, idmap)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            try:
                return _older_overlay(mount["source"], options, attributes, idmap)
            except OSError:
                raise error from None
    if mount["type"] != "bind":
        raise OSError(errno.EINVAL, "a snapshot's mount is neither overlay nor bind", mount["type"])
    return _clone(mount["source"], attributes, idmap, recursive="rbind" in mount["options"])


def _clone(path: str, attributes: int, idmap: int, *, recursive: bool = False) -> int:
    """A detached copy of the tree at ``path``: a bind mount."""
    tree = kernel.AT_RECURSIVE if recursive else 0
    fd = kernel.open_tree(kernel.AT_FDCWD, path, kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | tree)
    try:
        if idmap >= 0:
            attributes |= kernel.MOUNT_ATTR_IDMAP
        kernel.set_attributes(
            fd, set=attributes, propagation=kernel.MS_PRIVATE, userns=max(idmap, 0), recursive=recursive
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _overlay(source: str, options: list[str], attributes: int, idmap: int) -> int:
    fd = kernel.fsopen("overlay")
    held: list[int] = []
    try:
        kernel.fsconfig_string(fd, "source", source)
        for option in options:
            key, equals, value = option.partition("=")
            if not equals:
                kernel.fsconfig_flag(fd, key)
            elif key == "lowerdir":
                for layer in _unescaped(value):
                    _set_layer(fd, "lowerdir+", layer, idmap, held)
            elif key in ("upperdir", "workdir"):
                _set_layer(fd, key, _unescaped(value)[0], -1, held)
                if key == "upperdir" and idmap >= 0:
                    _give(_unescaped(value)[0], os.fstat(held[0]))
            else:
                kernel.fsconfig_string(fd, key, value)
        kernel.fsconfig_create(fd)
        return kernel.fsmount(fd, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}{_log(fd)}", error.filename) from None
    finally:
        for layer_fd in held:
            os.close(layer_fd)
        os.close(fd)


def _older_overlay(source: str, options: list[str], attributes: int, idmap: int) -> int:
    """The same by mount(2), which wants all layers as paths in one string, and a path for the mount: for a moment."""
    values = {key: value for key, _, value in (option.partition("=") for option in options)}
    layers = _unescaped(values["lowerdir"])
    upper = _unescaped(values.get("upperdir", ""))[0]
    folder = f"{os.path.dirname(upper or layers[0])}/mount-{os.urandom(5).hex()}"
    mounted: list[str] = []
    os.mkdir(folder, 0o700)
    try:
        if idmap >= 0:
            layers = [_placed(layer, f"{folder}/{number}", idmap, mounted) for number, layer in enumerate(layers)]
            values["lowerdir"] = ":".join(map(escape, layers))
            if upper:
                _give(upper, os.stat(layers[0]))
        point = f"{folder}/merged"
        os.mkdir(point)
        kernel.mount(source, point, "overlay", 0, ",".join(_option(*each) for each in values.items()))
        mounted.append(point)
        return _clone(point, attributes, -1)
    finally:
        for point in reversed(mounted):
            kernel.umount(point, kernel.MNT_DETACH)
        for name in os.listdir(folder):
            os.rmdir(f"{folder}/{name}")
        os.rmdir(folder)


def _option(key: str, value: str) -> str:
    """As mount(2) takes it; the categories of a label (``context``) are parted by commas, so that it is quoted."""
    if key == "context":
        return f'{key}="{value}"'
    return f"{key}={value}" if value else key


def _placed(layer: str, point: str, idmap: int, mounted: list[str]) -> str:
    """The path of an idmapped view of a layer; it is added to ``mounted``."""
    os.mkdir(point)
    fd = _clone(layer, 0, idmap)
    try:
        kernel.move_mount(fd, "", kernel.AT_FDCWD, point, kernel.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(fd)
    mounted.append(point)
    return point


def _set_layer(fd: int, key: str, path: str, idmap: int, held: list[int]) -> None:
    if idmap < 0 and len(path) < 256:  # the most that fsconfig(2) takes as a string
        kernel.fsconfig_string(fd, key, path)
        return
    # By descriptor (Linux 6.13): an idmapped layer is a detached mount and has no path.
    layer = _clone(path, 0, idmap) if idmap >= 0 else os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    held.append(layer)
    kernel.fsconfig_fd(fd, key, layer)


def _give(upper: str, owner: os.stat_result) -> None:
    """Give the upper directory to the owner of the idmapped lower one: its root is the one that is seen.

    The upper layer itself can't be idmapped: overlayfs writes it as the mounter, who is nobody in the mappings.
    """
    os.chown(upper, owner.st_uid, owner.st_gid)


def _log(fd: int) -> str:
    """What the file system said about a failure (fsopen(2): messages are read from the context)."""
    try:
        return ": " + os.read(fd, 4096).decode(errors="replace").strip()
    except OSError:
        return ""

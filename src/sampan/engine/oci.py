"""A container's config.json, from its request, its pod and its image (OCI runtime specification, config.md)."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from sampan.engine import apparmor, limits, mounts, podfiles, security
from sampan.engine.model import ContainerSpec, Device, Namespaces, PodRecord
from sampan.errors import InvalidInput
from sampan.image.user import User
from sampan.spec.image import ContainerConfig

OCI_VERSION = "1.2.0"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Devices that a container may open besides those of its request (containerd's list).
_DEFAULT_DEVICE_RULES = (("c", 1, 3), ("c", 1, 8), ("c", 1, 7), ("c", 5, 0), ("c", 1, 5), ("c", 1, 9), ("c", 5, 1))

#: Folders of /dev that are mounts in every container too, and where others put devices aside (containerd's list).
_NO_DEVICES = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))
#: A folder that holds more is no folder of devices.
_MOST_ENTRIES = 1 << 16


class Surroundings(NamedTuple):
    """What a container gets from elsewhere: decided before its config.json is written."""

    rootfs: str
    cgroup_path: str
    #: Directory of the pod's files, and of its /dev/shm; empty: none.
    files: str
    shm: str
    #: Position of an image volume in the request -> directory.
    image_paths: dict[int, str]
    #: OCI type of a namespace to join -> file; to make -> empty. A type that is absent is the machine's.
    namespaces: dict[str, str]
    user: User
    handler_annotations: dict[str, str]
    #: Whether a privileged container has every device of the machine.
    host_devices: bool


def build(spec: ContainerSpec, pod: PodRecord, image: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    """The whole document.

    Raises:
        InvalidInput: A field of the request is wrong; named by its path in the request.
    """
    privileged = spec.security.privileged
    linux: dict[str, Any] = {
        "cgroupsPath": around.cgroup_path,
        "namespaces": _namespaces(around),
        "resources": limits.section(spec.resources),
        "rootfsPropagation": _rootfs_propagation(spec),
        "maskedPaths": security.masked_paths(spec.security),
        "readonlyPaths": security.readonly_paths(spec.security),
    }
    if around.namespaces.get("user") is not None:
        linux["uidMappings"] = mounts.oci_mappings(pod.spec.namespaces.uid_mappings)
        linux["gidMappings"] = mounts.oci_mappings(pod.spec.namespaces.gid_mappings)
    linux["devices"], linux["resources"]["devices"] = devices(spec, host_devices=privileged and around.host_devices)
    process = _process(spec, pod, image, around)
    profile = security.seccomp(spec.security, process["capabilities"]["bounding"])
    if profile is not None:
        linux["seccomp"] = profile
    document: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": around.rootfs, "readonly": spec.security.readonly_rootfs},
        "mounts": mounts.arranged(
            mounts.kernel_mounts(privileged=privileged),
            mounts.pod_mounts(spec, around.files, around.shm),
            mounts.volume_mounts(spec, around.image_paths),
        ),
        "annotations": around.handler_annotations,
        "linux": linux,
    }
    if around.namespaces.get("uts") == "":
        document["hostname"] = spec.hostname or pod.spec.hostname
    return document


def _namespaces(around: Surroundings) -> list[dict[str, str]]:
    return [
        {"type": kind, "path": path} if path else {"type": kind} for kind, path in sorted(around.namespaces.items())
    ]


def _rootfs_propagation(spec: ContainerSpec) -> str:
    """A volume that propagates needs a root that does (runc and containerd do the same)."""
    wanted = {mount.propagation for mount in spec.mounts}
    return "rshared" if "rshared" in wanted else "rslave" if "rslave" in wanted else "rprivate"


def _process(spec: ContainerSpec, pod: PodRecord, image: ContainerConfig, around: Surroundings) -> dict[str, Any]:
    cwd = spec.working_dir or image.working_dir or "/"
    if not cwd.startswith("/"):
        raise InvalidInput(f'"{cwd}" is not absolute', field="working_dir")
    process: dict[str, Any] = {
        "terminal": spec.tty,
        "user": {"uid": around.user.uid, "gid": around.user.gid, "additionalGids": list(around.user.groups)},
        "args": arguments(spec, image),
        "env": environment(spec, pod, image, around.user),
        "cwd": cwd,
        "capabilities": security.capabilities(spec.security),
        "noNewPrivileges": spec.security.no_new_privileges and not spec.security.privileged,
    }
    if spec.resources.oom_score_adj is not None:
        process["oomScoreAdj"] = spec.resources.oom_score_adj
    if profile := apparmor.profile(spec.security):
        process["apparmorProfile"] = profile
    return process


def arguments(spec: ContainerSpec, image: ContainerConfig) -> list[str]:
    """``process.args``: the request's command and arguments over the image's, as Kubernetes combines them.

    Raises:
        InvalidInput: Neither says what to run.
    """
    command, args = list(spec.command), list(spec.args)
    if not command:
        command = list(image.entrypoint or ())
        args = args or list(image.cmd or ())
    if not command + args:
        raise InvalidInput("the image names no entrypoint or command and the request gives none", field="command")
    return command + args


def environment(spec: ContainerSpec, pod: PodRecord, image: ContainerConfig, user: User) -> list[str]:
    """``process.env``: defaults, then the image's, then the request's; a later setting replaces an earlier."""
    merged: dict[str, str] = {}
    hostname = spec.hostname or podfiles.hostname_of(pod.spec, pod.id)
    entries = [DEFAULT_PATH, f"HOSTNAME={hostname}", *(["TERM=xterm"] if spec.tty else ())]
    entries += [*(image.env or ()), *(f"{key}={value}" for key, value in spec.envs)]
    for position, entry in enumerate(entries):
        if "\0" in entry:
            raise InvalidInput("holds a NUL byte", field=f"envs[{position}]")
        name, _, value = entry.partition("=")
        merged[name] = value
    merged.setdefault("HOME", user.home or "/")
    return [f"{name}={value}" for name, value in merged.items()]


def devices(spec: ContainerSpec, *, host_devices: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``linux.devices`` and ``linux.resources.devices``.

    Args:
        spec: The container's request.
        host_devices: Give it every device of the machine.

    Raises:
        InvalidInput: A device of the request is missing or is no device.
    """
    nodes: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor in _DEFAULT_DEVICE_RULES:
        rules.append({"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"})
    rules.append({"allow": True, "type": "c", "major": 136, "access": "rwm"})
    if host_devices:
        nodes = _nodes(Device("/dev", "/dev"), "devices")
        rules = [{"allow": True, "access": "rwm"}]
    known = {node["path"] for node in nodes}
    for position, device in enumerate(spec.devices):
        field = f"devices[{position}]"
        if set(device.permissions) - set("rwm"):
            raise InvalidInput(f'"{device.permissions}" has letters other than r, w, m', field=f"{field}.permissions")
        for node in _nodes(device, field):
            if node["path"] not in known:
                nodes.append(node)
            rule = {key: node[key] for key in ("type", "major", "minor")}
            rules.append({"allow": True, **rule, "access": device.permissions or "rwm"})
    return nodes, rules


def _nodes(device: Device, field: str) -> list[dict[str, Any]]:
    """The node that ``device`` names, or every node in the directory it names."""
    target = device.container_path or device.host_path
    try:
        status = os.stat(device.host_path)
        if stat.S_ISDIR(status.st_mode):
            inside = _device_files(device.host_path.rstrip("/"), field)
            return [_node(target.rstrip("/") + path, status) for path, status in inside]
    except OSError as error:
        raise InvalidInput(f"{device.host_path}: {error.strerror}", field=f"{field}.host_path") from error
    if not _is_device(status):
        raise InvalidInput(f"{device.host_path} is no device", field=f"{field}.host_path")
    return [_node(target, status)]


def _device_files(folder: str, field: str) -> list[tuple[str, os.stat_result]]:
    """Device nodes in a directory however deep, by their paths from there on.

    Links are not followed, and terminals and mounts that every container has of its own are left out.
    """
    found, pending, left = [], [""], _MOST_ENTRIES
    while pending:
        below = pending.pop()
        for entry in _entries(folder + below):
            left -= 1
            if left < 0:
                raise InvalidInput(f"{folder} holds more than {_MOST_ENTRIES} files", field=f"{field}.host_path")
            path = f"{below}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _NO_DEVICES:
                    pending.append(path)
            elif entry.name != "console":
                with suppress(FileNotFoundError):  # it was unplugged meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if _is_device(status):
                        found.append((path, status))
    return sorted(found)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def _is_device(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)


def _node(path: str, status: os.stat_result) -> dict[str, Any]:
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def stop_signal(*names: str) -> int:
    """The first named signal of ``names`` (``SIGTERM``, ``TERM`` or a number), or SIGTERM.

    Raises:
        InvalidInput: A name that is no signal.
    """
    for name in names:
        if not name:
            continue
        if name.isascii() and name.isdigit() and 0 < int(name) < signal.NSIG:
            return int(name)
        upper = name.upper().removeprefix("SIG")
        if upper.startswith("RTMIN"):
            offset = upper[5:] or "+0"
            if offset.startswith("+") and offset[1:].isdigit() and int(offset[1:]) <= 30:
                return signal.SIGRTMIN + int(offset[1:])
        if upper.startswith("RTMAX-") and upper[6:].isdigit() and int(upper[6:]) <= 30:
            return signal.SIGRTMAX - int(upper[6:])
        found = getattr(signal, f"SIG{upper}", None)
        if isinstance(found, signal.Signals):
            return int(found)
        raise InvalidInput(f'"{name}" is no signal', field="stop_signal", hint="see signal(7)")
    return int(signal.SIGTERM)


def namespaces_for(wanted: Namespaces, pod: PodRecord, *, target_pid: int, cgroup_v2: bool) -> dict[str, str]:
    """Which namespaces a container joins (path) and which it gets new (empty path); see :class:`Surroundings`.

    Args:
        wanted: The container's modes.
        pod: Its pod, with the files that pin its namespaces.
        target_pid: Init of the container whose PID namespace is asked for, with ``pid="target"``.
        cgroup_v2: Whether to give a cgroup namespace.
    """
    chosen = {"mount": ""}
    pinned = pod.namespace_paths
    for kind in ("network", "ipc", "uts", "user"):
        if kind in pinned:
            chosen[kind] = pinned[kind]
    if wanted.pid == "target":
        chosen["pid"] = f"/proc/{target_pid}/ns/pid"
    elif wanted.pid == "pod" and "pid" in pinned:
        chosen["pid"] = pinned["pid"]
    elif wanted.pid != "node":
        chosen["pid"] = ""
    if cgroup_v2:
        chosen["cgroup"] = ""
    return chosen

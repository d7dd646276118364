"""The mounts of a container's config.json: the kernel's file systems, the pod's files, the request's volumes."""

import os
import posixpath
from typing import Any

from sampan.engine.model import ContainerSpec, IdMapping, Mount
from sampan.errors import InvalidInput

OciMount = dict[str, Any]

#: Propagation a volume is bound with.
_PROPAGATION = {"private": "rprivate", "rslave": "rslave", "rshared": "rshared"}

#: Where each of a pod's shared files is bound.
POD_FILES = {"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf"}


def kernel_mounts(*, privileged: bool) -> list[OciMount]:
    """The file systems every container has; sysfs and cgroups are writable only for a privileged one."""
    access = "rw" if privileged else "ro"
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", access],
        },
    ]


def pod_mounts(spec: ContainerSpec, files: str, shm: str) -> list[OciMount]:
    """Binds of the pod's hosts, hostname, resolv.conf and /dev/shm, less those that the request mounts itself.

    Args:
        spec: The container's request.
        files: Directory of the pod's files; empty: none.
        shm: Directory to bind on /dev/shm; empty: a tmpfs of the container's own.
    """
    taken = {normalized(mount.container_path) for mount in spec.mounts}
    access = "ro" if spec.security.readonly_rootfs else "rw"
    mounts: list[OciMount] = []
    for destination, name in POD_FILES.items() if files else ():
        source = f"{files}/{name}"
        if destination not in taken and os.path.exists(source):
            mounts.append(_bind(source, destination, ["rbind", "rprivate", access]))
    if "/dev/shm" not in taken:
        if shm:
            mounts.append(_bind(shm, "/dev/shm", ["rbind", "rprivate", "rw"]))
        else:
            options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
            mounts.append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options})
    return mounts


def volume_mounts(spec: ContainerSpec, image_paths: dict[int, str]) -> list[OciMount]:
    """The request's own mounts.

    Args:
        spec: The container's request.
        image_paths: Position of an image volume in the request -> directory where its root file system is.

    Raises:
        InvalidInput: A path that is not absolute, a propagation that the machine's mount can't give, a source that
            can be neither found nor made.
    """
    volumes = []
    for position, mount in enumerate(spec.mounts):
        field = f"mounts[{position}]"
        if not mount.container_path.startswith("/"):
            raise InvalidInput(f'"{mount.container_path}" is not absolute', field=f"{field}.container_path")
        if mount.type:
            volumes.append(
                {
                    "destination": mount.container_path,
                    "type": mount.type,
                    "source": mount.host_path or mount.type,
                    "options": list(mount.options),
                }
            )
        else:
            volumes.append(_volume(mount, image_paths.get(position, ""), field))
    return volumes


def arranged(kernel: list[OciMount], pod: list[OciMount], volumes: list[OciMount]) -> list[OciMount]:
    """All mounts in the order in which they are made: parents before what lies in them, as containerd has it.

    Args:
        kernel: File systems of the kernel, less those that a volume would hide.
        pod: What the pod has for its containers; in a volume that propagates it would be seen on the machine, too.
        volumes: The request's own.
    """
    shared = [volume for volume in volumes if "rshared" in volume["options"]]
    rest = [*volumes, *_outside(shared, pod)]
    return _outside(volumes, kernel) + sorted(rest, key=lambda mount: _folder(mount).count("/"))


def _outside(volumes: list[OciMount], mounts: list[OciMount]) -> list[OciMount]:
    """Those of ``mounts`` that are neither at nor below the place of a volume."""
    folders = tuple(map(_folder, volumes))
    return [mount for mount in mounts if not _folder(mount).startswith(folders)]


def _folder(mount: OciMount) -> str:
    return normalized(mount["destination"]).rstrip("/") + "/"


def normalized(path: str) -> str:
    """A path in the container in its only form without dots and repeated slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _volume(mount: Mount, image_path: str, field: str) -> OciMount:
    source = image_path or _host_path(mount, field)
    options = ["rbind", _PROPAGATION[mount.propagation]]
    if mount.propagation != "private":
        _require_propagation(source, mount.propagation, field)
    if mount.recursive_readonly and (not mount.readonly or mount.propagation != "private"):
        raise InvalidInput(
            "needs readonly, and private propagation", field=f"{field}.recursive_read_only", hint="set readonly too"
        )
    if mount.recursive_readonly:
        options.append("rro")
    else:
        options.append("ro" if mount.readonly or image_path else "rw")
    volume = _bind(source, mount.container_path, options + list(mount.options))
    if mount.uid_mappings and not image_path:  # an image is mounted through the pod's, which no overlay is itself
        volume["uidMappings"] = oci_mappings(mount.uid_mappings)
        volume["gidMappings"] = oci_mappings(mount.gid_mappings)
    return volume


def _host_path(mount: Mount, field: str) -> str:
    if not mount.host_path.startswith("/"):
        raise InvalidInput(f'"{mount.host_path}" is not absolute', field=f"{field}.host_path")
    # The kubelet names some volumes by symlinks; the kernel would follow them at mount time, and so the mount's
    # source would not be what propagation was checked for.
    source = os.path.realpath(mount.host_path)
    if not os.path.exists(source):
        try:
            os.makedirs(source, 0o755, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{source}: {error.strerror}", field=f"{field}.host_path") from error
    return source


def _require_propagation(path: str, wanted: str, field: str) -> None:
    """Refuse a propagation that the mount under ``path`` can't take part in (mount_namespaces(7))."""
    tags = _mount_tags(path)
    shared = any(tag.startswith("shared:") for tag in tags)
    slave = any(tag.startswith("master:") for tag in tags)
    if shared or (wanted == "rslave" and slave):
        return
    raise InvalidInput(
        f"{path} is on a private mount, which {wanted} propagation can't reach",
        field=f"{field}.propagation",
        hint=f"mount --make-shared the mount of {path}",
    )


def _mount_tags(path: str) -> list[str]:
    best, tags = "", [""]
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            inside = path == point or point == "/" or path.startswith(point + "/")
            if inside and len(point) >= len(best):
                best, tags = point, fields[6 : fields.index("-", 6)]
    return tags


def oci_mappings(mappings: tuple[IdMapping, ...]) -> list[dict[str, int]]:
    """Id mappings as config.json has them."""
    return [{"containerID": m.container_id, "hostID": m.host_id, "size": m.size} for m in mappings]


def _bind(source: str, destination: str, options: list[str]) -> OciMount:
    return {"destination": destination, "type": "bind", "source": source, "options": options}

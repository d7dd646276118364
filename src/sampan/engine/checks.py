"""What a request may say: bounds and forms that hold for every caller, checked before anything is made."""

import re
from collections.abc import Sequence

from sampan.engine.model import ContainerSpec, Metadata, Namespaces, PodSpec, PortMapping
from sampan.engine.oci import stop_signal
from sampan.errors import InvalidInput

SYSCTL_NAME = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_@:-]+)+")
#: Lists such as kernel.sem are told with tabs.
_SYSCTL_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
#: As containerd has it: a folder has this name.
_NAMESPACE = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
#: Labels, or annotations, of one object together. A kubelet adds its own to the 256 KiB that Kubernetes allows a user.
_MAX_LABELS = 1 << 20

#: Namespaced sysctls of the IPC namespace; those of ``net.`` belong to the network namespace (namespaces(7)).
_IPC_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")


def namespace(name: str) -> None:
    """Check the name of an engine's namespace.

    Raises:
        InvalidInput: It is none.
    """
    if len(name) > 76 or not _NAMESPACE.fullmatch(name):
        raise InvalidInput(
            f'"{name[:100]}" is no name', field="namespace", hint="letters and digits, with single . _ - between them"
        )


def pod(spec: PodSpec) -> None:
    """Check a pod's request.

    Raises:
        InvalidInput: Names the field.
    """
    _metadata(spec.metadata)
    if spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidInput(f'"{spec.hostname}" is no host name of at most 64 characters', field="hostname")
    for name, value in spec.sysctls.items():
        _sysctl(spec, name, value)
    if spec.namespaces.network == "node" and (spec.namespaces.uid_mappings or spec.namespaces.gid_mappings):
        # Nobody but the owner of a network namespace may mount the sysfs that shows it.
        raise InvalidInput("can't be had with the machine's network namespace", field="namespaces.uid_mappings")
    _cgroup_parent(spec.cgroup_parent)
    if spec.log_directory and not spec.log_directory.startswith("/"):
        raise InvalidInput(f'"{spec.log_directory}" is not absolute', field="log_directory")
    for position, port in enumerate(spec.ports):
        for field, number in (("container_port", port.container_port), ("host_port", port.host_port)):
            if not 0 <= number <= 65535:
                raise InvalidInput(f"{number} is no port", field=f"port_mappings[{position}].{field}")
    _host_ports(spec.ports)
    _labels(spec.labels, "labels")
    _labels(spec.annotations, "annotations")


def container(spec: ContainerSpec) -> None:
    """Check a container's request.

    Raises:
        InvalidInput: Names the field.
    """
    _metadata(spec.metadata)
    if ".." in spec.log_path.split("/") or spec.log_path.startswith("/"):
        raise InvalidInput(f'"{spec.log_path}" leads out of the pod\'s log directory', field="log_path")
    for field, texts in (("command", spec.command), ("args", spec.args)):
        for position, text in enumerate(texts):
            if "\0" in text:
                raise InvalidInput("holds a NUL byte", field=f"{field}[{position}]")
    stop_signal(spec.stop_signal)
    for position, (name, _) in enumerate(spec.envs):
        if not name or "=" in name or "\0" in name:
            raise InvalidInput(f'"{name}" is no name of a variable', field=f"envs[{position}].key")
    for position, mount in enumerate(spec.mounts):
        if "\0" in mount.container_path + mount.host_path + mount.image_subpath:
            raise InvalidInput("holds a NUL byte", field=f"mounts[{position}]")
    _labels(spec.labels, "labels")
    _labels(spec.annotations, "annotations")


def user_namespace(wanted: Namespaces, pod: Namespaces) -> None:
    """Check that a container that asks for a user namespace asks for its pod's; one that doesn't ask gets that too.

    Raises:
        InvalidInput: Names the field.
    """
    if not (wanted.uid_mappings or wanted.gid_mappings):
        return
    for field in ("uid_mappings", "gid_mappings"):
        if getattr(wanted, field) != getattr(pod, field):
            raise InvalidInput("differs from the pod's", field=f"namespaces.{field}", hint="ask for the same in both")


def _metadata(metadata: Metadata) -> None:
    for field, text in (("name", metadata.name), ("uid", metadata.uid), ("namespace", metadata.namespace)):
        if len(text) > 1024 or "\0" in text or "\n" in text:
            raise InvalidInput("is longer than 1024 characters or holds a control character", field=f"metadata.{field}")
    if not metadata.name:
        raise InvalidInput("is empty", field="metadata.name")


def _sysctl(spec: PodSpec, name: str, value: str) -> None:
    field = f'sysctls["{name}"]'
    # A name becomes a path below /proc/sys and a value a line of a file: neither may lead elsewhere (CVE-2022-0811).
    if not SYSCTL_NAME.fullmatch(name) or not _SYSCTL_VALUE.fullmatch(value):
        raise InvalidInput("is not the name and one-line value of a sysctl", field=field)
    dotted = name.replace("/", ".") if "." not in name.split("/")[0] else name
    if dotted.startswith("net."):
        if spec.namespaces.network == "node":
            raise InvalidInput("is not allowed with the machine's network namespace", field=field)
    elif dotted.startswith(_IPC_SYSCTLS):
        if spec.namespaces.ipc == "node":
            raise InvalidInput("is not allowed with the machine's IPC namespace", field=field)
    else:
        raise InvalidInput("belongs to no namespace: it would change the machine", field=field)


def _host_ports(ports: Sequence[PortMapping]) -> None:
    leads: dict[tuple[str, str, int], int] = {}
    for position, port in enumerate(ports):
        if not port.host_port:
            continue
        target = leads.setdefault((port.protocol, port.host_ip, port.host_port), port.container_port)
        if target != port.container_port:
            raise InvalidInput(
                f"{port.host_port} leads to {target} already", field=f"port_mappings[{position}].host_port"
            )


def _cgroup_parent(parent: str) -> None:
    if parent and (".." in parent.split("/") or "\0" in parent or "\n" in parent):
        raise InvalidInput(f'"{parent}" is no cgroup path', field="linux.cgroup_parent")


def _labels(labels: dict[str, str], field: str) -> None:
    size = sum(len(key) + len(value) for key, value in labels.items())
    if size > _MAX_LABELS:
        raise InvalidInput(f"{size} bytes are more than {_MAX_LABELS}", field=field)

"""What the engine knows of pods, containers and images, as plain data.

Requests (``…Spec``) come from the CRI server, the command line or a program; records are what the store keeps. A
record never holds what can be asked of the kernel or of a monitor.
"""

from typing import Literal

import msgspec

#: Whose namespace of a kind a container uses: the pod's, its own, the machine's, or another container's.
NamespaceMode = Literal["pod", "container", "node", "target"]


class IdMapping(msgspec.Struct, frozen=True):
    """A range of user or group ids: ``size`` ids from ``container_id`` on stand for those from ``host_id`` on."""

    container_id: int
    host_id: int
    size: int


class PortMapping(msgspec.Struct, frozen=True):
    """A port of the machine that leads to one of the pod."""

    container_port: int
    host_port: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    host_ip: str = ""


class Dns(msgspec.Struct, frozen=True):
    """What the pod's resolv.conf says."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Namespaces(msgspec.Struct, frozen=True):
    """Namespace modes of a pod, or of a container where they differ from its pod's."""

    network: NamespaceMode = "pod"
    pid: NamespaceMode = "container"
    ipc: NamespaceMode = "pod"
    #: Container whose PID namespace is used, with ``pid="target"``.
    target_id: str = ""
    #: Empty: no user namespace of the pod's own.
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class SecurityProfile(msgspec.Struct, frozen=True):
    """A seccomp or AppArmor profile: the runtime's default, none, or one on this machine."""

    kind: Literal["default", "unconfined", "localhost"] = "default"
    #: Path (seccomp) or name (AppArmor) of a ``localhost`` profile.
    reference: str = ""


class SelinuxLabel(msgspec.Struct, frozen=True):
    """The parts of an SELinux context; empty parts are the policy's default."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class Resources(msgspec.Struct, frozen=True):
    """Limits, in the kernel's units: microseconds, bytes. ``None`` leaves a limit as it is."""

    cpu_period: int | None = None
    cpu_quota: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_limit: int | None = None
    memory_swap_limit: int | None = None
    pids_limit: int | None = None
    oom_score_adj: int | None = None
    hugepages: dict[str, int] = msgspec.field(default_factory=dict)
    unified: dict[str, str] = msgspec.field(default_factory=dict)


class Security(msgspec.Struct, frozen=True):
    """Who a container's process is and what it may do."""

    privileged: bool = False
    user: int | None = None
    group: int | None = None
    #: Name to be looked up in the image's /etc/passwd (``name``, ``uid`` or ``name:group``); wins over nothing else.
    username: str = ""
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: Literal["merge", "strict"] = "merge"
    readonly_rootfs: bool = False
    no_new_privileges: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()
    seccomp: SecurityProfile = SecurityProfile()
    apparmor: SecurityProfile = SecurityProfile()
    selinux: SelinuxLabel | None = None
    #: ``None`` is the default list; an empty tuple masks nothing.
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None


class Mount(msgspec.Struct, frozen=True):
    """A path of the machine, or an image, that a container sees."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_readonly: bool = False
    selinux_relabel: bool = False
    propagation: Literal["private", "rslave", "rshared"] = "private"
    #: Image to mount in place of a host path, and the folder in it.
    image: str = ""
    image_subpath: str = ""
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    #: File system type and options of a mount that is neither a host path nor an image (``tmpfs``).
    type: str = ""
    options: tuple[str, ...] = ()


class Device(msgspec.Struct, frozen=True):
    """A device node of the machine given to a container."""

    host_path: str
    container_path: str
    #: Letters of ``rwm``.
    permissions: str = "rwm"


class Metadata(msgspec.Struct, frozen=True):
    """What the kubelet calls a pod or a container; identity for idempotent creation is all four together."""

    name: str
    uid: str = ""
    namespace: str = ""
    attempt: int = 0


class PodSpec(msgspec.Struct, frozen=True):
    """A pod to be run."""

    metadata: Metadata
    hostname: str = ""
    log_directory: str = ""
    dns: Dns | None = None
    ports: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    namespaces: Namespaces = Namespaces()
    security: Security = Security()
    #: Sums over the pod's containers, as the kubelet tells them.
    overhead: Resources | None = None
    resources: Resources | None = None
    #: Runtime handler; empty is the configured default.
    handler: str = ""
    #: ``none``: no interface but loopback; else names of networks by comma, of which the empty one is the default.
    network: str = ""


class ContainerSpec(msgspec.Struct, frozen=True):
    """A container to be made in a pod."""

    metadata: Metadata
    #: As the user wrote it, and the resolved reference (digest or image id) where known.
    image: str = ""
    image_ref: str = ""
    #: A directory to run over (through a throw-away overlay) in place of an image.
    rootfs: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    #: Relative to the pod's log directory; empty: no log file of the CRI's.
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    stop_signal: str = ""
    hostname: str = ""


class PodRecord(msgspec.Struct, kw_only=True):
    """A pod as the store keeps it."""

    id: str
    spec: PodSpec
    handler: str
    created_at: int
    state: Literal["creating", "ready", "notready"] = "creating"
    #: Not ready since its monitor is gone; what it had on the machine is still to be freed.
    lost: bool = False
    #: Namespace kind -> file that pins it.
    namespace_paths: dict[str, str] = msgspec.field(default_factory=dict)
    #: Addresses, the first one being the pod's IP.
    ips: tuple[str, ...] = ()
    cgroup_path: str = ""
    #: Process of the pod-wide PID namespace, or 0.
    pause_pid: int = 0
    network_result: dict[str, object] = msgspec.field(default_factory=dict)


class ContainerRecord(msgspec.Struct, kw_only=True):
    """A container as the store keeps it. Nanoseconds since the epoch; 0 where it has not happened."""

    id: str
    pod_id: str
    spec: ContainerSpec
    created_at: int
    started_at: int = 0
    finished_at: int = 0
    state: Literal["creating", "created", "running", "exited", "unknown"] = "creating"
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int = 0
    #: Image id (config digest) and the manifest the container was made from.
    image_id: str = ""
    image_digest: str = ""
    snapshot_key: str = ""
    log_path: str = ""
    cgroup_path: str = ""
    resources: Resources = Resources()
    #: User, group and supplementary groups that its process was started with.
    user: tuple[int, int, tuple[int, ...]] | None = None


class ImageRecord(msgspec.Struct, kw_only=True, frozen=True):
    """An image of one namespace, gathered from all names that lead to it."""

    #: Digest of the image's configuration: its id.
    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    #: Bytes of the compressed content.
    size: int = 0
    user: str = ""
    pinned: bool = False
    created_at: int = 0


class Event(msgspec.Struct, kw_only=True, frozen=True):
    """Something that happened, in sequence."""

    sequence: int
    #: Nanoseconds since the epoch.
    time: int
    kind: Literal["created", "started", "stopped", "deleted", "oom", "pod-created", "pod-stopped", "pod-deleted"]
    container_id: str = ""
    pod_id: str = ""
    exit_code: int = 0

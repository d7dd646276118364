"""The types of config.json, for mypy only: at run time it is the plain dict that was parsed and validated.

Names are those of the runtime specification (config.md, config-linux.md). Imported under TYPE_CHECKING alone.
"""

from typing import Any, NotRequired, TypedDict


class IDMapping(TypedDict):
    """A range of a user namespace's ids."""

    containerID: int
    hostID: int
    size: int


class Mount(TypedDict):
    """``mounts[]``."""

    destination: str
    type: NotRequired[str]
    source: NotRequired[str]
    options: NotRequired[list[str]]
    uidMappings: NotRequired[list[IDMapping]]
    gidMappings: NotRequired[list[IDMapping]]


class Root(TypedDict):
    """``root``."""

    path: str
    readonly: NotRequired[bool]


class User(TypedDict, total=False):
    """``process.user``."""

    uid: int
    gid: int
    umask: int
    additionalGids: list[int]


class Capabilities(TypedDict, total=False):
    """``process.capabilities``."""

    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]


class Rlimit(TypedDict):
    """``process.rlimits[]``."""

    type: str
    soft: int
    hard: int


class ConsoleSize(TypedDict):
    """``process.consoleSize``."""

    height: int
    width: int


class Process(TypedDict, total=False):
    """``process``; of a validated one ``args`` and ``cwd`` are there."""

    terminal: bool
    consoleSize: ConsoleSize
    user: User
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: Capabilities
    rlimits: list[Rlimit]
    noNewPrivileges: bool
    apparmorProfile: str
    selinuxLabel: str
    oomScoreAdj: int
    scheduler: dict[str, Any]
    ioPriority: dict[str, Any]
    execCPUAffinity: dict[str, str]


class Hook(TypedDict):
    """``hooks.*[]``."""

    path: str
    args: NotRequired[list[str]]
    env: NotRequired[list[str]]
    timeout: NotRequired[int]


class Device(TypedDict):
    """``linux.devices[]``."""

    type: str
    path: str
    major: NotRequired[int]
    minor: NotRequired[int]
    fileMode: NotRequired[int]
    uid: NotRequired[int]
    gid: NotRequired[int]


class Namespace(TypedDict):
    """``linux.namespaces[]``."""

    type: str
    path: NotRequired[str]


class Linux(TypedDict, total=False):
    """``linux``."""

    namespaces: list[Namespace]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]
    timeOffsets: dict[str, dict[str, int]]
    devices: list[Device]
    cgroupsPath: str
    resources: dict[str, Any]
    rootfsPropagation: str
    seccomp: dict[str, Any]
    sysctl: dict[str, str]
    maskedPaths: list[str]
    readonlyPaths: list[str]
    mountLabel: str
    intelRdt: dict[str, Any]
    memoryPolicy: dict[str, Any]
    personality: dict[str, Any]
    netDevices: dict[str, dict[str, str]]


class RuntimeConfig(TypedDict):
    """The whole of config.json."""

    ociVersion: str
    root: Root
    process: NotRequired[Process]
    hostname: NotRequired[str]
    domainname: NotRequired[str]
    mounts: NotRequired[list[Mount]]
    hooks: NotRequired[dict[str, list[Hook]]]
    linux: NotRequired[Linux]
    annotations: NotRequired[dict[str, str]]

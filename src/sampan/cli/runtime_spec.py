"""`spec` and `features`."""

from __future__ import annotations

import os

from sampan.cli.runtime import Context
from sampan.cli.runtime_options import FLAG, VALUE, Option, Parsed
from sampan.cli.runtime_output import indented, write_all, write_text
from sampan.errors import AlreadyExists, StageFailed
from sampan.spec import kernel_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The runtime specification that is implemented.
OCI_VERSION = "1.3.0"

OPTIONS = {
    "spec": (
        Option("bundle,b", VALUE, "directory to write to (default: the current one)"),
        Option("rootless", FLAG, "a configuration that needs no root"),
    ),
    "features": (),
}

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def command_spec(_: Context, parsed: Parsed) -> int:
    """Write a config.json to start from."""
    path = os.path.join(parsed.value("bundle") or ".", "config.json")
    text = indented(example(rootless=parsed.flag("rootless")), "\t") + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists already", hint="remove it first") from None
    except OSError as error:
        raise StageFailed("write configuration", error, path=path) from error
    write_all(fd, text.encode())
    os.close(fd)
    return 0


def example(*, rootless: bool = False) -> dict[str, Any]:
    """A configuration that runs a shell in ``rootfs``, confined as runc's example confines it."""
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": list(kernel_files.HIDDEN),
        "readonlyPaths": list(kernel_files.READ_ONLY),
    }
    if rootless:
        # Without privileges there is no cgroup to set limits in, and no network to configure.
        del linux["resources"]
        linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "user")]
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sampan",
        "mounts": _mounts(rootless=rootless),
        "linux": linux,
    }


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    def mount(destination: str, kind: str, source: str, options: str = "") -> dict[str, Any]:
        entry: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
        if options:
            entry["options"] = options.split(",")
        return entry

    sysfs = (
        mount("/sys", "none", "/sys", "rbind,nosuid,noexec,nodev,ro")
        if rootless
        else mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro")
    )
    pts = "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"
    return [
        mount("/proc", "proc", "proc"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", pts if rootless else f"{pts},gid=5"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        sysfs,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ]


def command_features(_: Context, __: Parsed) -> int:
    """Print what this runtime can do (runtime-spec, features.md)."""
    write_text(indented(features(), "    ") + "\n")
    return 0


def features() -> dict[str, Any]:
    """The features document."""
    from sampan import __version__
    from sampan.linux import capabilities, scheduling
    from sampan.linux.namespaces import KINDS
    from sampan.runtime import seccomp
    from sampan.spec import mount_options

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": list(mount_options.KNOWN),
        "linux": {
            "namespaces": sorted(KINDS),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": bool(libseccomp_version()),
                "actions": sorted(seccomp.actions()),
                "operators": sorted(seccomp.operators()),
                "archs": sorted(seccomp.architectures()),
                "knownFlags": sorted(seccomp.known_flags()),
                "supportedFlags": sorted(seccomp.known_flags()),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(scheduling.MEMORY_MODES), "flags": sorted(scheduling.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {
            "io.github.seccomp.libseccomp.version": libseccomp_version(),
            "org.opencontainers.runc.checkpoint.enabled": "true",
            "sampan.version": __version__,
        },
        # No annotation changes what the runtime does.
        "potentiallyUnsafeConfigAnnotations": [],
    }


def libseccomp_version() -> str:
    """The version of libseccomp, or an empty string where there is none."""
    try:
        from sampan.linux import libseccomp
    except OSError:
        return ""
    return ".".join(map(str, libseccomp.version()))

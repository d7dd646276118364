"""The files that a pod's containers share: hosts, hostname, resolv.conf, and /dev/shm."""

import os
import shutil

from sampan.engine.model import Dns, IdMapping, PodSpec
from sampan.errors import StageFailed
from sampan.linux.mount import MNT_DETACH, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, umount

_LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hostname_of(spec: PodSpec, pod_id: str) -> str:
    """The pod's host name: the one asked for, the machine's on its network, or the id's beginning."""
    if spec.hostname:
        return spec.hostname
    return os.uname().nodename if spec.namespaces.network == "node" else pod_id[:12]


def write(directory: str, spec: PodSpec, hostname: str, ips: tuple[str, ...], dns: Dns | None) -> None:
    """Write hosts, hostname and resolv.conf.

    Args:
        directory: Where to; made when missing.
        spec: The pod's request.
        hostname: The pod's host name.
        ips: The pod's addresses.
        dns: What resolv.conf is to say; None, or nothing in it: what the machine's says.
    """
    os.makedirs(directory, 0o755, exist_ok=True)
    _write(f"{directory}/hostname", hostname + "\n")
    if spec.namespaces.network == "node":
        _copy("/etc/hosts", f"{directory}/hosts")
    else:
        _write(f"{directory}/hosts", _LOCALHOST + "".join(f"{ip}\t{hostname}\n" for ip in ips))
    if dns in (None, Dns()):
        _copy("/etc/resolv.conf", f"{directory}/resolv.conf")
    else:
        _write(f"{directory}/resolv.conf", _resolv_conf(dns))
    _give_to_root(directory, spec)


def _give_to_root(directory: str, spec: PodSpec) -> None:
    """Let the root of a pod with a user namespace write its files.

    That their owners were seen through its mappings would do too, but only on Linux 6.3 and later, where a tmpfs can be
    mounted so.
    """
    owners = (_root(spec.namespaces.uid_mappings), _root(spec.namespaces.gid_mappings))
    if owners != (-1, -1):
        for name in ("hosts", "hostname", "resolv.conf"):
            os.chown(f"{directory}/{name}", *owners)


def _root(mappings: tuple[IdMapping, ...]) -> int:
    """The machine's id for id 0 of a user namespace; -1, which changes no owner, if it has none."""
    return next((mapping.host_id for mapping in mappings if mapping.container_id == 0), -1)


def mount_shm(directory: str, size: int) -> str:
    """Mount a tmpfs of ``size`` bytes for the pod's /dev/shm; its path."""
    target = f"{directory}/shm"
    os.makedirs(target, 0o711, exist_ok=True)
    try:
        mount("shm", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={size}")
    except OSError as error:
        raise StageFailed("mount the pod's /dev/shm", error) from error
    return target


def remove(directory: str) -> None:
    """Unmount and remove all of it; what is not there is no error."""
    try:
        umount(f"{directory}/shm", MNT_DETACH)
    except OSError:
        pass  # ENOENT or EINVAL: never mounted, or a pod with the machine's IPC
    shutil.rmtree(directory, ignore_errors=True)


def _resolv_conf(dns: Dns) -> str:
    lines = [f"nameserver {server}\n" for server in dns.servers]
    if dns.searches:
        lines.insert(0, f"search {' '.join(dns.searches)}\n")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}\n")
    return "".join(lines)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)


def _copy(source: str, target: str) -> None:
    try:
        with open(source, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(1 << 20)
    except OSError:
        text = ""
    with open(target, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)

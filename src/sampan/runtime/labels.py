"""AppArmor profiles and SELinux labels: written to the process's own attributes, taken on at the next execve(2)."""

from __future__ import annotations

import errno
import os

from sampan.errors import Unsupported
from sampan.linux import mount as m
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Process

#: Sampan's own profile, which lets a process execute any file; the engine loads it.
DEFAULT_PROFILE = "sampan-default"


def on_exec(process: Process) -> bool:
    """Whether a label waits for the next execve(2), which must then be the program's own.

    The trampoline before it would take the label on, and then need its leave to execute the program.
    """
    profile = process.get("apparmorProfile") or ""
    return profile not in ("", "unconfined", DEFAULT_PROFILE) or bool(process.get("selinuxLabel"))


def given(process: Process) -> bool:
    """Whether the process is to have a label at all."""
    return process.get("apparmorProfile") not in (None, "", "unconfined") or bool(process.get("selinuxLabel"))


def apply(process: Process) -> None:
    """Ask for the process's labels.

    Raises:
        OSError: The kernel has no such profile or label, or no such security module.
    """
    profile = process.get("apparmorProfile") or ""
    if profile not in ("", "unconfined"):
        trace.step("set AppArmor profile", profile)
        try:
            _write(("apparmor/exec", "exec"), f"exec {profile}")
        except FileNotFoundError as error:
            if error.filename is not None:  # the file is missing, not the profile
                raise
            raise FileNotFoundError(2, "the kernel has no such profile", profile) from None
    label = process.get("selinuxLabel") or ""
    if label:
        trace.step("set SELinux label", label)
        _write(("exec",), label)


def check_machine(process: Process, mount_label: str) -> list[str]:
    """Refuse labels of a security module that this kernel does not run: a container must not seem confined.

    The label of mounts confines nobody by itself, and files without SELinux have none: it is only warned of.

    Returns:
        The warning, if there is one.

    Raises:
        Unsupported: Named for the field.
    """
    if process.get("selinuxLabel") and not _selinux():
        raise Unsupported("process.selinuxLabel: SELinux is not enabled on this machine", hint="remove the label")
    profile = process.get("apparmorProfile") or ""
    if profile not in ("", "unconfined"):
        from sampan.linux import apparmor

        if not apparmor.enabled():
            field = "process.apparmorProfile"
            raise Unsupported(f"{field}: AppArmor is not enabled on this machine", hint="remove the profile")
    if mount_label and not _selinux():
        return ["linux.mountLabel: SELinux is not enabled on this machine: mounts have no label"]
    return []


def _selinux() -> bool:
    return os.path.isdir("/sys/fs/selinux/booleans")


def mount_option(fstype: str, label: str) -> list[str]:
    """The option by which a new file system's files get an SELinux label; procfs and sysfs label their own."""
    if not label or fstype in ("proc", "sysfs", "cgroup", "cgroup2") or not _selinux():
        return []
    return [f"context={label}"]


def _write(names: tuple[str, ...], text: str) -> None:
    for number, name in enumerate(names):
        try:
            fd = os.open(f"/proc/thread-self/attr/{name}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            if number == len(names) - 1:
                raise
            continue
        try:
            # In the container's /proc, which must be one (CVE-2019-16884): a fake would swallow the label.
            if m.filesystem_type(fd) != m.PROC_SUPER_MAGIC:
                raise OSError(errno.EINVAL, "not on procfs", f"/proc/thread-self/attr/{name}")
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        return

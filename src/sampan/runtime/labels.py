"""AppArmor profiles and SELinux labels: written to the process's own attributes, taken on at the next execve(2)."""

from __future__ import annotations

import errno
import os

from sampan.errors import InvalidInput, Unsupported
from sampan.linux import mount as m
from sampan.linux import selinux
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Process

#: Sampan's own profile, which lets a process execute any file; the engine loads it.
DEFAULT_PROFILE = "sampan-default"

#: File systems of which there is one for all, or one for a namespace: the policy or the first mount labels them.
_LABELLED = frozenset("proc sysfs cgroup cgroup2 mqueue securityfs debugfs tracefs configfs pstore efivarfs".split())
#: Options that are labels (mount(8)).
_OPTIONS = ("context=", "fscontext=", "defcontext=", "rootcontext=")


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


def apply_to_keys(process: Process) -> None:
    """Have keys that the caller makes bear the process's label, until the next execve(2): else it may not use them."""
    label = process.get("selinuxLabel") or ""
    if label:
        trace.step("set SELinux label of keys", label)
        _write(("keycreate",), label)


def check_machine(process: Process, mount_label: str) -> list[str]:
    """Refuse labels of a security module that this kernel does not run, for a container must not seem confined; and
    SELinux labels that its policy lacks.

    The label of mounts confines nobody by itself, and files without SELinux have none: it is only warned of.

    Returns:
        The warning, if there is one.

    Raises:
        Unsupported: Named for the field.
        InvalidInput: Likewise.
    """
    label = process.get("selinuxLabel") or ""
    if label and not selinux.enabled():
        raise Unsupported("process.selinuxLabel: SELinux is not enabled on this machine", hint="remove the label")
    for field, text in (("process.selinuxLabel", label), ("linux.mountLabel", mount_label)):
        if text and selinux.lacks(text):
            raise InvalidInput(f"this machine's policy has no label {text!r}", field=field)
    profile = process.get("apparmorProfile") or ""
    if profile not in ("", "unconfined"):
        from sampan.linux import apparmor

        if not apparmor.enabled():
            field = "process.apparmorProfile"
            raise Unsupported(f"{field}: AppArmor is not enabled on this machine", hint="remove the profile")
    if mount_label and not selinux.enabled():
        return ["linux.mountLabel: SELinux is not enabled on this machine: mounts have no label"]
    return []


def mount_option(fstype: str, options: list[str], label: str) -> list[str]:
    """The option by which a new file system's files get an SELinux label, unless ``options`` have one.

    Some label their own. The categories of a label are parted by commas, as options are: so it is quoted.
    """
    if not label or fstype in _LABELLED or not selinux.enabled():
        return []
    if any(option.startswith(_OPTIONS) for option in options):
        return []
    return [f'context="{label}"']


def label_root(mount: int, fstype: str, label: str) -> None:
    """Give the root of a new mount a label where an option can't: message queues are there before they are mounted.

    They keep the policy's where that has no others for them, and where another user made the namespace that they are
    of: they are of no use to the container then.
    """
    if fstype != "mqueue" or not label or not selinux.enabled():
        return
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        os.setxattr(fd, selinux.ATTRIBUTE, label.encode() + b"\0")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise OSError(error.errno, error.strerror) from None  # which names the descriptor
    finally:
        os.close(fd)


def parted(option: str) -> list[str]:
    """Options that commas part, as mount(2) has them: within quotes, which only labels have, a comma parts nothing."""
    if '"' not in option:
        return option.split(",")
    found = [""]
    quoted = False
    for letter in option:
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            found.append("")
        else:
            found[-1] += letter
    return found


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

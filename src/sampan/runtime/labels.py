"""AppArmor profiles and SELinux labels: written to the process's own attributes, taken on at the next execve(2)."""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Process


def on_exec(process: Process) -> bool:
    """Whether a label waits for the next execve(2), which must then be the program's own."""
    return bool(process.get("apparmorProfile") or process.get("selinuxLabel"))


def apply(process: Process) -> None:
    """Ask for the process's labels.

    Raises:
        OSError: The kernel has no such profile or label, or no such security module.
    """
    profile = process.get("apparmorProfile") or ""
    if profile and profile != "unconfined":
        trace.step("set AppArmor profile", profile)
        _write(("apparmor/exec", "exec"), f"exec {profile}")
    label = process.get("selinuxLabel") or ""
    if label:
        trace.step("set SELinux label", label)
        _write(("exec",), label)


def _write(names: tuple[str, ...], text: str) -> None:
    for number, name in enumerate(names):
        try:
            fd = os.open(f"/proc/thread-self/attr/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if number == len(names) - 1:
                raise
            continue
        try:
            # In the container's /proc, which must be one (CVE-2019-16884): a fake would swallow the label.
            if m.filesystem_type(fd) != m.PROC_SUPER_MAGIC:
                raise OSError(22, "not on procfs", f"/proc/thread-self/attr/{name}")
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        return

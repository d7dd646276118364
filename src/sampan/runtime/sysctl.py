"""Kernel parameters of the container's namespaces (``linux.sysctl``)."""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.linux.resolve import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from sampan.runtime import trace

_IPC = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced",
        "msg_next_id", "sem_next_id", "shm_next_id", "auto_msgmni",
    )
)  # fmt: skip
_UTS = frozenset(("kernel.domainname", "kernel.hostname"))


def namespace_of(name: str) -> str:
    """The type of namespace that a parameter belongs to; empty of one that is the whole machine's."""
    if name in _IPC or name.startswith("fs.mqueue."):
        return "ipc"
    if name in _UTS:
        return "uts"
    return "network" if name.startswith("net.") else ""


def dotted(name: str) -> str:
    """A name in the dotted form: "net/ipv4/conf/eth0.1/mtu" has its dots as slashes, as sysctl(8) reads it."""
    slash, dot = name.find("/"), name.find(".")
    if slash < 0 or 0 <= dot < slash:
        return name
    return name.translate({ord("/"): ".", ord("."): "/"})


def apply(parameters: dict[str, str]) -> None:
    """Set parameters of the namespaces that the caller is in.

    Through the runtime's /proc, before the pivot: in the container's, an image or another container could have
    put something else in the place of a file that is about to be written (CVE-2025-52881).
    """
    if not parameters:
        return
    trace.step("open /proc/sys", "/proc/sys")
    base = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if m.filesystem_type(base) != m.PROC_SUPER_MAGIC:
            raise OSError(22, "not on procfs", "/proc/sys")
        for name, value in parameters.items():
            path = dotted(name).translate({ord("."): "/", ord("/"): "."})
            trace.step(f"set sysctl {name} to {value!r}", f"/proc/sys/{path}")
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
            fd = openat2(base, path, os.O_WRONLY, resolve=resolve)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    finally:
        os.close(base)

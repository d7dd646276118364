"""Kernel parameters of the container's namespaces (``linux.sysctl``)."""

from __future__ import annotations

import errno
import os

from sampan.errors import StageFailed
from sampan.linux import mount as m
from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.linux.resolve import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from sampan.runtime import trace
from sampan.spec.sysctl_names import path_of


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
            raise OSError(errno.EINVAL, "not on procfs", "/proc/sys")
        for name, value in parameters.items():
            path = path_of(name)
            trace.step(f"set sysctl {name} to {value!r}", f"/proc/sys/{path}")
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
            fd = openat2(base, path, os.O_WRONLY, resolve=resolve)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    finally:
        os.close(base)


def apply_in(namespace: str, parameters: dict[str, str]) -> None:
    """Set parameters of a network namespace from outside, by the calling thread alone; through the caller's /proc.

    Args:
        namespace: File that it is pinned as.
        parameters: Of its interfaces, which are there by now.

    Raises:
        StageFailed: Names the parameter.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(other, CLONE_NEWNET)
        finally:
            os.close(other)
        try:
            for name, value in parameters.items():
                _apply_one(name, value)
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def _apply_one(name: str, value: str) -> None:
    try:
        apply({name: value})
    except OSError as error:
        hint = "the pod's network has no such interface, or the kernel no such parameter"
        raise StageFailed(
            f"set sysctl {name} to {value!r}",
            error,
            path=f"/proc/sys/{path_of(name)}",
            hint=hint if error.errno == errno.ENOENT else "",
        ) from error

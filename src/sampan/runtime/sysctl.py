"""Kernel parameters of the container's namespaces (``linux.sysctl``)."""

from __future__ import annotations

import errno
import os

from sampan.errors import ValueRefused
from sampan.linux import mount as m
from sampan.linux.resolve import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from sampan.runtime import trace
from sampan.spec.sysctl_names import path_of

#: How a parameter, or its value, is refused.
_REFUSALS = (errno.ENOENT, errno.EINVAL, errno.ERANGE)


def apply(parameters: dict[str, str]) -> None:
    """Set parameters of the namespaces that the caller is in.

    Through the runtime's /proc, before the pivot: in the container's, an image or another container could have
    put something else in the place of a file that is about to be written (CVE-2025-52881).

    Raises:
        ValueRefused: The kernel has no such parameter, or the parameter takes no such value.
        OSError: See :mod:`sampan.runtime.trace` for the parameter.
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
            try:
                fd = openat2(base, path, os.O_WRONLY, resolve=resolve)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                raise ValueRefused(trace.stage, error, path=trace.path, hint=_hint(error)) from error
    finally:
        os.close(base)


def _hint(error: OSError) -> str:
    missing = "; the kernel has no such parameter, or the network no such interface"
    return "asked for by linux.sysctl" + (missing if error.errno == errno.ENOENT else "")

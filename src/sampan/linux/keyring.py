"""Kernel keyrings: keyctl(2)."""

import os

from sampan.linux.syscall import syscall

_SYS_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_SETPERM = 5
#: What the kernel gives a new session keyring, and for its user to find it by name: keyrings(7).
_FOUND_BY_NAME = 0x3F130000 | 0x00080000


def join_session(name: str) -> int:
    """Give the caller the session keyring of this name that its user has, else a new one; its serial number."""
    number = syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, name.encode(), 0, 0, 0, path=name)
    syscall(_SYS_KEYCTL, _KEYCTL_SETPERM, number, _FOUND_BY_NAME, 0, 0, path=name)
    return number

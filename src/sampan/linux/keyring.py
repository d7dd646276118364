"""Kernel keyrings: keyctl(2)."""

import os

from sampan.linux.syscall import syscall

_SYS_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_KEYCTL_JOIN_SESSION_KEYRING = 1


def join_session(name: str) -> int:
    """Give the caller a new session keyring of this name; its serial number."""
    return syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, name.encode(), 0, 0, 0, path=name)

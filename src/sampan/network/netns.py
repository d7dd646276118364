"""Work in another network namespace: for the calling thread, for as short a time as can be.

setns(2) moves one thread. What needs a namespace for longer opens a socket inside and works through it from outside: a
netlink socket belongs for ever to the namespace that it was opened in.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sampan.errors import InvalidInput, StageFailed
from sampan.linux.namespaces import CLONE_NEWNET, setns

_OWN = "/proc/thread-self/ns/net"


def open_namespace(path: str) -> int:
    """A descriptor of the network namespace pinned at ``path``.

    Raises:
        InvalidInput: There is none, or the file is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(f"network namespace {path}: {error.strerror}") from None
    try:
        with inside(fd):
            pass
    except OSError:
        os.close(fd)
        raise InvalidInput(f"{path} is not a network namespace") from None
    return fd


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body with the calling thread in the network namespace ``fd``; -1 stays where it is."""
    if fd < 0:
        yield
        return
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def set_sysctl(name: str, value: str, *, missing_ok: bool = False) -> None:
    """Set a sysctl of the calling thread's namespaces when it has another value.

    Args:
        name: With slashes, ``net/ipv4/ip_forward``: interface names may have dots.
        value: What it shall be.
        missing_ok: A kernel without it is no error.

    Raises:
        StageFailed: It is missing or read-only.
    """
    path = f"/proc/sys/{name}"
    try:
        with open(path, "r+", encoding="ascii") as file:
            if file.read().split() == value.split():
                return
            file.seek(0)
            file.write(value)
    except FileNotFoundError as error:
        if not missing_ok:
            raise StageFailed(f"set sysctl {name}={value}", error, hint="this kernel lacks it") from error
    except OSError as error:
        if not _has(path, value):
            hint = f"set it by hand on the machine: sysctl -w {name.replace('/', '.')}={value}"
            raise StageFailed(f"set sysctl {name}={value}", error, path=path, hint=hint) from error


def _has(path: str, value: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split() == value.split()
    except OSError:
        return False


def get_sysctl(name: str) -> str:
    """A sysctl's value, or the empty string where the kernel lacks it."""
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""

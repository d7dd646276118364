"""Id mappings of user namespaces (user_namespaces(7))."""

from __future__ import annotations

import os

from sampan.linux.namespaces import CLONE_NEWUSER
from sampan.linux.process import PR_SET_PDEATHSIG, clone3, prctl
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sampan.spec.runtime_types import IDMapping


def write_maps(pid: int, uids: list[IDMapping], gids: list[IDMapping]) -> None:
    """Give process ``pid``'s new user namespace its mappings; each can be written once."""
    trace.step("write gid_map", f"/proc/{pid}/gid_map")
    if gids and os.geteuid() != 0:
        # An unprivileged writer may map its own group only after giving up setgroups(2).
        _write(f"/proc/{pid}/setgroups", "deny")
    if gids:
        _write(f"/proc/{pid}/gid_map", _lines(gids))
    trace.step("write uid_map", f"/proc/{pid}/uid_map")
    if uids:
        _write(f"/proc/{pid}/uid_map", _lines(uids))


def mapped(inside: int, mappings: Iterable[IDMapping]) -> int:
    """The machine's id of one in the namespace; -1 if it has none."""
    for one in mappings:
        if 0 <= inside - one["containerID"] < one["size"]:
            return one["hostID"] + inside - one["containerID"]
    return -1


def _lines(mappings: list[IDMapping]) -> str:
    return "".join(f"{one['containerID']} {one['hostID']} {one['size']}\n" for one in mappings)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def namespace_of(uids: list[IDMapping], gids: list[IDMapping]) -> int:
    """A user namespace with these mappings and nobody in it, as a descriptor."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = clone3(CLONE_NEWUSER)
        if pid == 0:
            _wait_for_end(reader, writer)
        os.close(pidfd)
        try:
            write_maps(pid, uids, gids)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writer)
            writer = -1
            os.waitpid(pid, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _wait_for_end(reader: int, writer: int) -> None:
    try:
        prctl(PR_SET_PDEATHSIG, 9)
        os.close(writer)
        os.read(reader, 1)
    finally:
        os._exit(0)

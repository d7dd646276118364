"""Who the program runs as: the last steps before it is executed.

The order is runc's, which the specification leaves to the runtime: the bounding set goes first, while CAP_SETPCAP
is still held; groups and ids follow with the permitted set kept; then the other four capability sets.
"""

from __future__ import annotations

import os

from sampan.linux import capabilities as caps
from sampan.linux.process import PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, prctl
from sampan.linux.resolve import open_in_root
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Capabilities, Process, User

_LARGEST_PASSWD = 1 << 20


def set_no_new_privileges() -> None:
    """From here on no execve(2) gives more rights (PR_SET_NO_NEW_PRIVS)."""
    trace.step("set no_new_privs")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def shortfall(process: Process, *, user_namespace: bool) -> list[str]:
    """Warnings of the capabilities that are asked for and cannot be given (config.md, "Linux Process").

    Args:
        process: The OCI process object.
        user_namespace: The process is in a user namespace, whose root has every capability there.
    """
    sets = process.get("capabilities") or {}
    asked = dict.fromkeys(name for names in sets.values() for name in names or ())  # type: ignore[attr-defined]
    if not asked:
        return []
    most = (1 << caps.last() + 1) - 1 if user_namespace else caps.get()[1]
    unknown = [name for name in asked if not caps.mask([name])]
    lacking = [name for name in asked if name not in unknown and not caps.mask([name]) & most]
    told = (
        (unknown, "not known to this kernel"),
        (lacking, "not granted: the runtime lacks it itself"),
    )
    return [f"process.capabilities: {', '.join(names)[:1000]}: {why}" for names, why in told if names]


def become(process: Process, *, setgroups: bool) -> None:
    """Take on the process's user and capabilities.

    Args:
        process: The OCI process object. Capabilities that it does not name it does not have: none without the sets.
        setgroups: Whether setgroups(2) is allowed here; a user namespace may deny it.
    """
    user = process.get("user") or {}
    sets = process.get("capabilities") or {}
    trace.step("limit capability bounding set")
    caps.limit_bounding(caps.mask(sets.get("bounding") or []))
    _become_user(user, setgroups=setgroups)
    _set_capabilities(sets)


def _become_user(user: User, *, setgroups: bool) -> None:
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    trace.step(f"become user {uid}:{gid}")
    prctl(PR_SET_KEEPCAPS, 1)
    if setgroups:
        os.setgroups(user.get("additionalGids") or [])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl(PR_SET_KEEPCAPS, 0)


def _set_capabilities(sets: Capabilities) -> None:
    trace.step("set capabilities")
    permitted = caps.mask(sets.get("permitted") or [])
    effective = caps.mask(sets.get("effective") or [])
    inheritable = caps.mask(sets.get("inheritable") or [])
    # What the runtime itself lacks it can't give: the machine's limits are the container's.
    held = caps.get()[1]
    caps.set_sets(effective & held & permitted, permitted & held, inheritable & held)
    caps.set_ambient(caps.mask(sets.get("ambient") or []) & permitted & inheritable & held)


def home_of(root: int, uid: int) -> str:
    """The home directory that the container's /etc/passwd gives ``uid``; "/" where it gives none."""
    try:
        fd = open_in_root(root, "/etc/passwd", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return "/"
    try:
        content = os.read(fd, _LARGEST_PASSWD)
    except OSError:
        return "/"
    finally:
        os.close(fd)
    wanted = str(uid).encode()
    for line in content.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == wanted:
            return os.fsdecode(fields[5]) or "/"
    return "/"

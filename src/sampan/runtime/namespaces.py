"""How the init gets into its namespaces: the new ones, and those that a path names.

Most containers need one clone3(2): it makes every new namespace at once, and the child joins the others. Three
things need more. A PID namespace is joined by the runtime itself before it clones, and left again. A user
namespace that is joined must own the new ones, and a time namespace takes its offsets before anyone is in it: for
these an intermediate process makes the init as its sibling (CLONE_PARENT) and ends.
"""

from __future__ import annotations

import errno
import os

from sampan.linux import namespaces as ns
from sampan.linux.process import CLONE_PARENT, clone3
from sampan.runtime import trace
from sampan.runtime.channel import BORN, TRACE, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.spec.runtime_types import Linux

# Joined in this order: the mount namespace last, since /proc and every path change with it.
_JOIN_ORDER = ("cgroup", "ipc", "uts", "network", "time", "mount")


class NamespacePlan:
    """What ``linux.namespaces`` asks for, with the paths opened.

    Attributes:
        new: Types to be made.
        joined: Type -> descriptor of the namespace to be entered.
        offsets: Content for /proc/self/timens_offsets.
    """

    __slots__ = ("joined", "new", "offsets")

    def __init__(self, linux: Linux) -> None:
        self.new: set[str] = set()
        self.joined: dict[str, int] = {}
        self.offsets = "".join(
            f"{clock} {value.get('secs', 0)} {value.get('nanosecs', 0)}\n"
            for clock, value in (linux.get("timeOffsets") or {}).items()
        )
        try:
            for one in linux.get("namespaces") or []:
                path = one.get("path")
                if path:
                    trace.step(f"open {one['type']} namespace", path)
                    self.joined[one["type"]] = open_namespace(path, one["type"])
                else:
                    self.new.add(one["type"])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        while self.joined:
            os.close(self.joined.popitem()[1])

    def flags(self) -> int:
        """The new namespaces, for clone(2)."""
        # The cgroup namespace is made by the init once it is in its cgroup, which becomes the namespace's root.
        late = {"cgroup", "ipc"} if self.late_ipc() else {"cgroup"}
        return sum(ns.KINDS[kind][0] for kind in self.new - late)

    def late_ipc(self) -> bool:
        """Whether the init makes the IPC namespace, as root of a new user namespace: its message queues are its
        maker's.
        """
        return {"ipc", "user"} <= self.new

    def has(self, kind: str) -> bool:
        """Whether the container has a namespace of its own of this type, new or joined."""
        return kind in self.new or kind in self.joined


def open_namespace(path: str, kind: str) -> int:
    """Open a namespace file and check that it is one of ``kind``."""
    from fcntl import ioctl

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        found = 0
    if found != ns.KINDS[kind][0]:
        os.close(fd)
        raise OSError(errno.EINVAL, f"not a {kind} namespace", path)
    return fd


_NS_GET_NSTYPE = 0xB703


def spawn(plan: NamespacePlan, channel: Channel, child: Callable[[], None], *, cgroup_fd: int = -1) -> tuple[int, bool]:
    """Make the init.

    Args:
        plan: The namespaces.
        channel: The child's end: an intermediate process tells of the init's pid, or of its failure, on it.
        child: What the init does; must not return.
        cgroup_fd: Directory of the cgroup v2 it is born in, or -1.

    Returns:
        The pid, and whether it is an intermediate process's, to be reaped, of which the channel will tell the init's.
    """
    flags = plan.flags()
    offsets = "time" in plan.new
    through = "user" in plan.joined or offsets or ("user" in plan.new and bool(plan.joined))
    if not through:
        return _in_pid_namespace(plan, lambda: _clone_direct(flags, child, cgroup_fd)), False
    pid, pidfd = clone3(0)
    if pid == 0:
        _intermediate(plan, flags, channel, child)
    os.close(pidfd)
    return pid, True


def _clone_direct(flags: int, child: Callable[[], None], cgroup_fd: int) -> int:
    trace.step("clone init")
    pid, pidfd = clone3(flags, cgroup_fd=cgroup_fd)
    if pid == 0:
        child()
        os._exit(1)
    os.close(pidfd)
    return pid


def _in_pid_namespace(plan: NamespacePlan, clone: Callable[[], int]) -> int:
    """Clone with the PID namespace that the plan joins, and come back."""
    target = plan.joined.get("pid", -1)
    if target < 0:
        return clone()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        trace.step("join pid namespace")
        ns.setns(target, ns.CLONE_NEWPID)
        try:
            return clone()
        finally:
            ns.setns(own, ns.CLONE_NEWPID)
    finally:
        os.close(own)


def join(plan: NamespacePlan) -> None:
    """Enter the namespaces that the plan names by path; the PID and user namespaces are entered already."""
    for kind in _JOIN_ORDER:
        fd = plan.joined.get(kind, -1)
        if fd >= 0:
            trace.step(f"join {kind} namespace")
            ns.setns(fd, ns.KINDS[kind][0])


def _intermediate(plan: NamespacePlan, flags: int, channel: Channel, child: Callable[[], None]) -> None:
    """The process between: enters what the init is to be born in, makes it as a sibling, and ends."""
    try:
        trace.become("middle")
        refused = _join_early(plan)
        if "user" in plan.joined:
            trace.step("join user namespace")
            ns.setns(plan.joined["user"], ns.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        for kind in refused:
            trace.step(f"join {kind} namespace")
            ns.setns(plan.joined[kind], ns.KINDS[kind][0])
        if "time" in plan.new:
            trace.step("make time namespace")
            ns.unshare(ns.CLONE_NEWTIME)
            flags &= ~ns.CLONE_NEWTIME
            if plan.offsets:
                trace.step("set time offsets", "/proc/self/timens_offsets")
                fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
                os.write(fd, plan.offsets.encode())
                os.close(fd)
        trace.step("clone init")
        # Entered already: the init must not join them again from inside the new ones.
        plan.joined = {kind: fd for kind, fd in plan.joined.items() if kind == "mount"}
        clone_sibling(flags, channel, child)
        if trace.enabled():
            channel.send(TRACE, trace.take())
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
        channel.fail(error)
    finally:
        os._exit(0)


def clone_sibling(flags: int, channel: Channel, child: Callable[[], None]) -> None:
    """Make a child of the runtime's, of which the runtime knows before the child says or does anything."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid, _ = clone3(flags | CLONE_PARENT)
    if pid == 0:
        os.close(writer)
        told = os.read(reader, 1)
        os.close(reader)
        if told:
            child()
        os._exit(1)
    channel.send(BORN, pid)
    os.write(writer, b"!")


def _join_early(plan: NamespacePlan) -> list[str]:
    """Join with the runtime's own rights; what they don't reach belongs to the user namespace and follows later."""
    refused = []
    for kind in ("pid", *_JOIN_ORDER):
        if kind not in plan.joined or kind == "mount":
            continue
        trace.step(f"join {kind} namespace")
        try:
            ns.setns(plan.joined[kind], ns.KINDS[kind][0])
        except PermissionError:
            if "user" not in plan.joined:
                raise
            refused.append(kind)
    return refused

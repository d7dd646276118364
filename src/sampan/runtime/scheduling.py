"""When, where and as what a process runs: ``process.scheduler``, ``ioPriority`` and ``execCPUAffinity``, and what holds
for each process of a container, ``linux.personality`` and ``linux.memoryPolicy``.
"""

from __future__ import annotations

import errno
import os

from sampan.linux import scheduling
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime_types import Linux, Process


def apply(process: Process) -> None:
    """Set the scheduler and the i/o priority of the calling process."""
    scheduler = process.get("scheduler")
    if scheduler:
        trace.step("set scheduler")
        flags = 0
        for name in scheduler.get("flags") or []:
            flags |= scheduling.FLAGS[name]
        scheduling.sched_setattr(
            scheduling.POLICIES[scheduler["policy"]],
            flags=flags,
            nice=scheduler.get("nice") or 0,
            priority=scheduler.get("priority") or 0,
            runtime=scheduler.get("runtime") or 0,
            deadline=scheduler.get("deadline") or 0,
            period=scheduler.get("period") or 0,
        )
    priority = process.get("ioPriority")
    if priority:
        trace.step("set i/o priority")
        scheduling.ioprio_set(scheduling.IO_CLASSES[priority["class"]], priority.get("priority") or 0)


def apply_to_all(linux: Linux) -> None:
    """Set the personality and the memory policy, which each process takes on for itself."""
    personality = linux.get("personality")
    if personality:
        trace.step("set personality")
        scheduling.personality(scheduling.PERSONALITIES[personality["domain"]])
    policy = linux.get("memoryPolicy")
    if policy:
        trace.step("set memory policy")
        mode = scheduling.MEMORY_MODES[policy["mode"]]
        for name in policy.get("flags") or []:
            mode |= scheduling.MEMORY_FLAGS[name]
        nodes = policy.get("nodes") or ""
        scheduling.set_mempolicy(mode, affinity(nodes) if nodes else set())


def affinity(cpus: str) -> set[int]:
    """A list such as "0-2,7" as numbers.

    Raises:
        ValueError: It is not such a list.
    """
    result: set[int] = set()
    for part in cpus.split(","):
        first, dash, last = part.strip().partition("-")
        low = int(first)
        high = int(last) if dash else low
        if low < 0 or high < low or high > 1 << 16:
            raise ValueError(f"{part!r} is not a range of CPUs")
        result.update(range(low, high + 1))
    return result


def set_affinity(process: Process, key: str) -> None:
    """Bind the caller to ``execCPUAffinity``'s CPUs: ``initial`` before it joins its cgroup, ``final`` after.

    Without any it is freed of the runtime's own binding: before it joins, when it has no filter yet that could refuse.
    """
    given = process.get("execCPUAffinity") or {}
    cpus = given.get(key) or ""
    if cpus:
        trace.step(f"set {key} CPU affinity")
        os.sched_setaffinity(0, affinity(cpus))
    elif key == "initial" and not given:
        forget_affinity()


def forget_affinity() -> None:
    """Undo the binding that the runtime itself was started with; a container's CPUs are its cpuset's.

    Since Linux 6.2 a binding stays when a process joins a cpuset.
    """
    try:
        scheduling.run_anywhere()
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise

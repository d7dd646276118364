"""Making a process by a child that borrows this one's memory (:mod:`sampan.linux.vfork`), where that is safe.

It is not safe where somebody could interfere with the child before it executes, since the runtime would end with it:
a process of the container, out of memory or by a signal; nor where the child asks the runtime something on its way.
And it is for a runtime that can be spared: a command, or a helper of a monitor, never the monitor itself.
"""

from __future__ import annotations

import os
import sys

from sampan.linux import vfork
from sampan.linux.process import PR_GET_DUMPABLE, PR_SET_DUMPABLE, prctl
from sampan.runtime import program as programs
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sampan.linux.vfork import Image
    from sampan.runtime.program import Program
    from sampan.spec.runtime_types import Process, RuntimeConfig

    T = TypeVar("T")

#: A container with less memory than this may run out of it while it is made, and the kernel kills all that share.
_ENOUGH_MEMORY = 64 << 20
_ASKING_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer")


def possible(config: RuntimeConfig, program: Program) -> bool:
    """Whether a process of a container may be made so."""
    linux = config.get("linux") or {}
    kinds = {one["type"] for one in linux.get("namespaces") or []}
    limit = ((linux.get("resources") or {}).get("memory") or {}).get("limit")
    hooks = config.get("hooks") or {}
    return (
        # The kernel lets nobody who shares memory into another user or time namespace.
        not kinds & {"user", "time"}
        and (limit is None or limit < 0 or limit >= _ENOUGH_MEMORY)
        and not any(hooks.get(kind) for kind in _ASKING_HOOKS)
        and not linux.get("netDevices")
        and not (program.seccomp is not None and program.seccomp.notify)
        and programs.trampoline(program) >= 0
        and vfork.available()
    )


def possible_inside(config: RuntimeConfig, program: Program) -> bool:
    """Whether a process can be made in a running container by a caller that must survive: see :func:`spawn_inside`.

    That is for where nobody may trace it: who could, would read and write the caller's memory.
    """
    process = program.process
    linux = config.get("linux") or {}
    kinds = {one["type"] for one in linux.get("namespaces") or []}
    return (
        "pid" in kinds
        and not kinds & {"user", "time"}
        # A filter that is loaded before the second clone might refuse it; a terminal is its session leader's; the
        # caller would count as the user's; affinity is set anew by joining, and memory bound to the nodes there.
        and not (program.seccomp is not None and (program.seccomp.notify or not process.get("noNewPrivileges")))
        and not process.get("terminal")
        and not any(one["type"] == "RLIMIT_NPROC" for one in process.get("rlimits") or [])
        and not process.get("execCPUAffinity")
        and not linux.get("memoryPolicy")
        # The second clone would lose what is reset by a fork.
        and not (process.get("scheduler") or {}).get("flags")
        and programs.trampoline(program) >= 0
        and vfork.available()
    )


def may_trace(config: RuntimeConfig, process: Process | None = None) -> bool:
    """Whether processes of a container may trace ours that they see: those are not dumpable, which does not keep out
    who has CAP_SYS_PTRACE in the machine's user namespace.

    Args:
        config: The container's.
        process: What is exec'ed there, instead of its first process.
    """
    kinds = {one["type"] for one in (config.get("linux") or {}).get("namespaces") or []}
    sets = (process or config.get("process") or {}).get("capabilities") or {}
    return "user" not in kinds and "CAP_SYS_PTRACE" in (sets.get("bounding") or [])


def spawn_inside(files: list[int], program: Program, child: Callable[[], Image | None]) -> int:
    """Make a process in a running container. Nobody there can see the child while it borrows.

    Args:
        files: Files of the groups to join.
        program: What it becomes.
        child: Sets it up; it has the PID namespace set for its children.

    Returns:
        Its pid, 0 without one. Once its end of the channel is closed, :func:`check` tells whether it was executed.
    """
    program.borrowing = True
    return _lend("exec", lambda: vfork.spawn_inside(files, child))


def check() -> None:
    """Look how the process fared that :func:`spawn_inside` made.

    Raises:
        OSError: It could not join its cgroups, or be executed.
    """
    if number := vfork.outcome():
        raise OSError(number, os.strerror(number))


def spawn(flags: int, who: str, program: Program, child: Callable[[], Image | None]) -> tuple[int, OSError | None]:
    """Make the process; this one stands still until it executes.

    Args:
        flags: ``CLONE_NEW*``.
        who: Its name in a trace.
        program: What it becomes.
        child: Sets it up; see :func:`sampan.linux.vfork.spawn`.

    Returns:
        Its pid, and why its program could not be executed, if so: it is to be reaped then.
    """
    program.borrowing = True
    return lend(who, flags, child)


def lend(who: str, flags: int, child: Callable[[], Image | None]) -> tuple[int, OSError | None]:
    """As :func:`spawn`, for another program than a container's."""
    pid, number = _lend(who, lambda: vfork.spawn(flags, child))
    return pid, OSError(number, os.strerror(number)) if number else None


def _lend(who: str, make: Callable[[], T]) -> T:
    imports = [*sys.meta_path], [*sys.path_hooks], [*sys.path], dict(sys.path_importer_cache)
    dumpable = prctl(PR_GET_DUMPABLE)
    before = trace.lend(who)
    try:
        return make()
    finally:
        trace.lend(before)
        sys.meta_path[:], sys.path_hooks[:], sys.path[:], cache = imports
        sys.path_importer_cache.update(cache)
        # One memory, one mark; the child made itself opaque.
        if dumpable == 1:
            prctl(PR_SET_DUMPABLE, 1)

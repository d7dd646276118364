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

    from sampan.linux.vfork import Image
    from sampan.runtime.program import Program
    from sampan.spec.runtime_types import RuntimeConfig

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
    imports = [*sys.meta_path], [*sys.path_hooks], [*sys.path], dict(sys.path_importer_cache)
    dumpable = prctl(PR_GET_DUMPABLE)
    before = trace.lend(who)
    program.borrowing = True
    try:
        pid, number = vfork.spawn(flags, child)
    finally:
        trace.lend(before)
        sys.meta_path[:], sys.path_hooks[:], sys.path[:], cache = imports
        sys.path_importer_cache.update(cache)
        # One memory, one mark; the child made itself opaque.
        if dumpable == 1:
            prctl(PR_SET_DUMPABLE, 1)
    return pid, OSError(number, os.strerror(number)) if number else None

"""Starting anew from a sealed copy of the interpreter, where a container could reach the machine's own.

Who may open what a process of ours executes may write to it once that has ended (CVE-2019-5736). A monitor's
interpreter is a sealed copy from its start; a command's only where that matters, since the copy takes its time. What a
command needs is imported when it is called, as everywhere here.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def seal_to_create(config: dict[str, Any]) -> None:
    """For `create` and `run`, of a configuration that is not checked yet; does not return when it starts anew.

    Without the trampoline the program is executed by our own process, and ``/proc/self/exe`` as its path is ours.

    Raises:
        StageFailed: There is no memory for the copy.
    """
    hooks = config.get("hooks")
    if (isinstance(hooks, dict) and hooks.get("startContainer")) or _without_trampoline(config.get("process")):
        _seal()


def seal_to_exec(config: dict[str, Any], process: dict[str, Any]) -> None:
    """For `exec`: there, whoever may trace processes can open what ours executes as well.

    Raises:
        StageFailed: There is no memory for the copy.
    """
    from sampan.runtime.borrow import may_trace

    if may_trace(config) or _without_trampoline(process):  # type: ignore[arg-type]
        _seal()


def _without_trampoline(process: object) -> bool:
    from sampan.runtime import labels, stage2

    return isinstance(process, dict) and (not stage2.available() or labels.on_exec(process))  # type: ignore[arg-type]


def _seal() -> None:
    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return
    from sampan.shim.interpreter import real_executable, sealed_copy

    os.execve(sealed_copy(real_executable()), sys.orig_argv, os.environ)

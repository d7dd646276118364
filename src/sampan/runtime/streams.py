"""A process's standard streams in a user namespace."""

from __future__ import annotations

import os
import stat

from sampan.runtime import trace
from sampan.runtime.users import mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.runtime.handler import Stdio
    from sampan.spec.runtime_types import Linux, Process


def give(stdio: Stdio, process: Process, linux: Linux) -> None:
    """Make the pipes among them the user's, so that the program can open /dev/stdout anew.

    Inside a user namespace nobody can: a pipe belongs to who made it, whom the namespace does not know.

    Args:
        stdio: What the process is to have.
        process: Whose user is meant, a terminal of its own is the container's already.
        linux: Its mappings; without any there is nothing to do.
    """
    uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
    if not uids or not gids or process.get("terminal"):
        return
    user = process.get("user") or {}
    uid, gid = mapped(user.get("uid") or 0, uids), mapped(user.get("gid") or 0, gids)
    if uid < 0 or gid < 0:
        return
    trace.step("give pipes to the user")
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
        if fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode):
            try:
                os.fchown(fd, uid, gid)
            except OSError:
                continue  # without root's rights the caller may give nothing away

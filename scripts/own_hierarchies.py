"""Control-group hierarchies of a run's own, where nobody else sees them.

Some programs want v1 controllers that machines of today leave unmounted. A controller that no hierarchy uses is free
(its line in /proc/cgroups says hierarchy 0): it is mounted in a mount namespace of the run's own, over a copy of
/sys/fs/cgroup, and is free again when the run ends. The machine's own mounts stay as they are.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sampan.linux import mount as m
from sampan.linux.namespaces import CLONE_NEWNS, unshare

_TOP = Path("/sys/fs/cgroup")
#: What is mounted together, when all of it is free.
_WANTED = (("net_cls", "net_prio"), ("hugetlb",))
_PATIENCE = 32.0


def free_controllers() -> set[str]:
    """The controllers that no hierarchy of cgroups v1 has."""
    lines = Path("/proc/cgroups").read_text().splitlines()[1:]
    return {fields[0] for fields in map(str.split, lines) if fields[1] == "0"}


def run_with(work: Callable[[], int]) -> int:
    """Call ``work`` in a child that has the hierarchies; its result, once they are gone again."""
    before = free_controllers()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _mount_free(before)
            status = work()
        except SystemExit as error:
            print(error, file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # Taking a hierarchy down takes the kernel seconds, and asking anew begins anew: so ever more rarely.
    pause = 1.0
    while missing := _wait_for(before, pause):
        if pause > _PATIENCE:
            print(f"controllers that are still bound after the run: {', '.join(sorted(missing))}", file=sys.stderr)
            return 1
        _let_go(missing)
        pause *= 2
    return status


def _wait_for(free: set[str], seconds: float) -> set[str]:
    """Those of ``free`` that are not free even then."""
    deadline = time.monotonic() + seconds
    while (missing := free - free_controllers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return missing


def _let_go(names: set[str]) -> None:
    """Mount and unmount them once more.

    The last unmount ends a hierarchy only if no removed group of it is left in the kernel's memory; what is left goes
    within a moment, and then nobody asks again.
    """
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWNS)
            m.mount(None, "/", None, m.MS_PRIVATE | m.MS_REC)
            for controllers in _WANTED:
                if names.issuperset(controllers):
                    m.mount("cgroup", "/mnt", "cgroup", 0, ",".join(controllers))
                    m.umount("/mnt")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _mount_free(free: set[str]) -> None:
    if not _TOP.is_dir() or (_TOP / "cgroup.controllers").exists():
        return  # cgroup v2 alone: programs that want v1 have no place here
    unshare(CLONE_NEWNS)
    m.mount(None, "/", None, m.MS_PRIVATE | m.MS_REC)
    with tempfile.TemporaryDirectory() as aside:
        m.mount(str(_TOP), aside, None, m.MS_BIND | m.MS_REC)
        m.mount("tmpfs", str(_TOP), "tmpfs", 0, "mode=755")
        for entry in sorted(Path(aside).iterdir()):
            target = _TOP / entry.name
            if entry.is_symlink():
                target.symlink_to(os.readlink(entry))
            elif entry.is_dir():
                target.mkdir()
                m.mount(str(entry), str(target), None, m.MS_BIND | m.MS_REC)
        m.umount(aside, m.MNT_DETACH)
    for names in _WANTED:
        if free.issuperset(names):
            _mount_controllers(names)


def _mount_controllers(names: tuple[str, ...]) -> None:
    point = _TOP / ",".join(names)
    point.mkdir()
    try:
        m.mount("cgroup", str(point), "cgroup", 0, ",".join(names))
    except OSError as error:
        # The unified hierarchy may have it switched on for someone.
        print(f"cgroup controllers {', '.join(names)} can't be mounted: {error.strerror}", file=sys.stderr)
        point.rmdir()
        return
    for name in names if len(names) > 1 else ():
        (_TOP / name).symlink_to(point.name)

"""Filters in force on this kernel."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sampan.linux import seccomp as kernel
from sampan.linux.mount import MNT_DETACH, mount, umount
from sampan.linux.process import PR_SET_NO_NEW_PRIVS, prctl
from sampan.runtime import seccomp
from sampan.runtime.seccomp import Filter, compile_filter
from sampan.runtime.seccomp_default import profile

pytestmark = pytest.mark.root


def under(found: Filter, work: Callable[[], None]) -> int:
    """Wait status of a child that did ``work`` under the filter; its exit code is the errno it met."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            kernel.load(found.bpf, found.flags)
            work()
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def deny(**rule: Any) -> Filter:
    return compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], **rule}]})


def test_a_filter_that_the_disk_has_no_room_for_is_not_kept_in_part(tmp_path: Path) -> None:
    section = profile(["CAP_CHOWN"])
    whole = compile_filter(section).bpf
    assert len(whole) > 4096
    mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=4k")
    try:
        for _ in range(2):
            seccomp._compiled.clear()
            assert compile_filter(section, cache=str(tmp_path)).bpf == whole
        assert os.listdir(tmp_path) == []
    finally:
        umount(str(tmp_path), MNT_DETACH)


def test_errno() -> None:
    found = deny(action="SCMP_ACT_ERRNO", errnoRet=errno.EXDEV)
    assert os.waitstatus_to_exitcode(under(found, lambda: os.mkdir("/tmp/never"))) == errno.EXDEV


def test_kill() -> None:
    status = under(deny(action="SCMP_ACT_KILL_PROCESS"), lambda: os.mkdir("/tmp/never"))
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_the_default_profile_runs_programs_and_denies_mounts() -> None:
    found = compile_filter(profile([]))
    assert under(found, lambda: os.execv("/bin/true", ["true"])) == 0

    def unshare() -> None:
        from sampan.linux.namespaces import CLONE_NEWUTS, unshare

        unshare(CLONE_NEWUTS)

    assert os.waitstatus_to_exitcode(under(found, unshare)) == errno.EPERM


def test_a_listener_is_a_descriptor() -> None:
    found = deny(action="SCMP_ACT_NOTIFY")
    assert found.notify
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        fd = kernel.load(found.bpf, found.flags, listener=True)
        os._exit(0 if fd > 2 and not os.get_inheritable(fd) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_program_that_is_none_is_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.load(b"\xff" * 8)

"""A group in the unified hierarchy (Documentation/admin-guide/cgroup-v2)."""

# ruff: noqa: D102 - what each method promises is said once, in Group

from __future__ import annotations

import errno
import os
import select
import time

from sampan.cgroup import device_program, devices, hierarchy, v2_limits, v2_stats
from sampan.cgroup.group import SIGKILL, Former, Group, Joiner, signal_pids, write
from sampan.cgroup.oom import OomWatch
from sampan.errors import InvalidInput, StageFailed, TimedOut, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup.usage import Meter

#: Seconds that a freeze may take; a process in an uninterruptible wait cannot be frozen.
_FREEZE_PATIENCE = 10.0


class GroupV2(Group):
    """See :class:`~sampan.cgroup.group.Group`.

    Args:
        path: Cgroup path; a relative one lies beside the caller's own group, whose children cannot have controllers
            while the caller is in it.
        point: Mount point, where it is not the machine's usual one.
    """

    __slots__ = ("_directory", "_point")

    def __init__(self, path: str, point: str = "") -> None:
        path = hierarchy.check_path(path)
        if not path.startswith("/"):
            own = hierarchy.parse_proc_cgroup(hierarchy.read_file("/proc/self/cgroup")).get("", "/")
            path = f"{os.path.dirname(own).rstrip('/')}/{path}"
        super().__init__(path)
        self._point = point or hierarchy.layout().unified
        self._directory = self._point + self.path

    def paths(self) -> dict[str, str]:
        return {"": self._directory}

    def create(self) -> None:
        enable_controllers(self._point)
        made = False
        try:
            made = hierarchy.make_directory(self._point, self.path, self._adopt, parents_first=True)
            kind = hierarchy.read_file(f"{self._directory}/cgroup.type").strip()
            if kind not in ("domain", "domain threaded"):
                raise Unsupported(
                    f"cgroup {self.path} is of type {kind!r} and cannot hold a container",
                    hint="a parent of it is threaded, or has processes of its own",
                )
        except BaseException:
            if made:
                hierarchy.remove_directory(self._point, self.path)
            raise

    def _adopt(self, directory: str, _ours: bool) -> bool:
        if directory != self._directory:
            enable_controllers(directory)
        return True

    def join(self, pid: int = 0) -> None:
        if pid == 0:
            self.joiner().join()
            return
        directory = self._directory_to_join()
        try:
            hierarchy.write_file(f"{directory}/cgroup.procs", str(pid))
        except OSError as error:
            raise StageFailed(f"join cgroup with process {pid}", error) from error

    def joiner(self, below: dict[str, str] | None = None) -> Joiner:
        if below and set(below) != {""}:
            raise InvalidInput("cgroup v2 has one hierarchy for all controllers", field="cgroup")
        directory = f"{self._directory}/{below['']}" if below else self._directory_to_join()
        try:
            return Joiner([os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)])
        except OSError as error:
            raise StageFailed("join cgroup", error) from error

    def fd(self) -> int:
        try:
            return os.open(self._directory_to_join(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StageFailed("open cgroup", error) from error

    def _directory_to_join(self) -> str:
        """The group, or, where a container divides its own among children, the child of its oldest process.

        A group with controllers on for its children can have no process (cgroup-v2, "No Internal Process
        Constraint"): systemd in a container makes it so, and an exec'ed process then goes where systemd is.
        """
        try:
            if not hierarchy.read_file(f"{self._directory}/cgroup.subtree_control").strip():
                return self._directory
            oldest = min(self.pids())
            own = hierarchy.parse_proc_cgroup(hierarchy.read_file(f"/proc/{oldest}/cgroup"))[""]
        except (OSError, ValueError, KeyError):
            return self._directory
        return self._point + own if own.startswith(f"{self.path}/") else self._directory

    def set(self, resources: dict[str, Any], *, undo: bool = False) -> None:
        former = Former() if undo else None
        try:
            v2_limits.apply(self._directory, resources, former)
        except BaseException:
            if former is not None:
                former.restore()
            raise

    def set_devices(self, rules: list[dict[str, Any]]) -> None:
        parsed = devices.parse(rules)
        try:
            device_program.install(self._directory, parsed)
        except OSError as error:
            raise StageFailed("set device rules", error, path=self._directory) from error

    def delegate(self, uid: int) -> None:
        # The list that the kernel gives is what a delegate may own (cgroup-v2, "Model of Delegation").
        try:
            names = hierarchy.read_file("/sys/kernel/cgroup/delegate").split()
        except FileNotFoundError:  # before Linux 4.15
            names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        try:
            os.chown(self._directory, uid, -1)
            for name in names:
                if os.path.exists(f"{self._directory}/{name}"):
                    os.chown(f"{self._directory}/{name}", uid, -1)
        except OSError as error:
            raise StageFailed("hand over cgroup", error) from error

    def stats(self) -> dict[str, Any]:
        return v2_stats.gather(self._directory)

    def meter(self) -> Meter:
        from sampan.cgroup.usage import MeterV2  # monitors never ask

        return MeterV2(self._directory)

    def freeze(self) -> None:
        self._set_frozen(True)

    def thaw(self) -> None:
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        write("freezer state", f"{self._directory}/cgroup.freeze", "1" if frozen else "0")
        try:
            fd = os.open(f"{self._directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StageFailed("wait for the freezer", error) from error
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            deadline = time.monotonic() + _FREEZE_PATIENCE
            while f"frozen {int(frozen)}" not in os.pread(fd, 256, 0).decode():
                if time.monotonic() > deadline:
                    write("freezer state", f"{self._directory}/cgroup.freeze", "0")
                    raise TimedOut(f"cgroup {self.path} did not freeze in {_FREEZE_PATIENCE:.0f} s")
                poll.poll(100)
        finally:
            os.close(fd)

    def frozen(self) -> bool:
        return hierarchy.read_int(f"{self._directory}/cgroup.freeze") == 1

    def freezer_file(self) -> tuple[str, str]:
        return f"{self._directory}/cgroup.freeze", "0"

    def kill(self, signal: int = SIGKILL) -> None:
        if signal == SIGKILL:
            try:
                hierarchy.write_file(f"{self._directory}/cgroup.kill", "1")
                if self.frozen():
                    # The kernel kills frozen processes too, but leaves the group frozen for who comes next.
                    hierarchy.write_file(f"{self._directory}/cgroup.freeze", "0")
                return
            except OSError as error:
                if not os.path.isdir(self._directory):
                    return
                if error.errno != errno.ENOENT:  # before Linux 5.14
                    raise StageFailed("kill cgroup", error) from error
        signal_pids(self.pids(), signal)

    def pids(self, all: bool = True) -> list[int]:
        return hierarchy.read_pids(self._directory, below=all)

    def remove(self) -> None:
        hierarchy.remove_directory(self._point, self.path)

    def oom_kills(self) -> int:
        return hierarchy.read_pairs(f"{self._directory}/memory.events").get("oom_kill", 0)

    def oom_watch(self) -> OomWatch:
        try:
            return OomWatch.v2(self._directory)
        except OSError as error:
            raise StageFailed("watch for out-of-memory", error) from error

    def memory_usage(self) -> int:
        return hierarchy.read_int(f"{self._directory}/memory.current")

    def memory_working_set(self) -> int:
        pairs = hierarchy.read_pairs(f"{self._directory}/memory.stat")
        return max(0, self.memory_usage() - pairs.get("inactive_file", 0))


def enable_controllers(directory: str) -> None:
    """Give the children of a group every controller that the group has.

    One that cannot be given (real-time processes forbid cpu, for one) is passed over: a limit that needs it is then
    refused where it is set.
    """
    try:
        available = hierarchy.read_file(f"{directory}/cgroup.controllers").split()
        enabled = hierarchy.read_file(f"{directory}/cgroup.subtree_control").split()
    except FileNotFoundError:
        return
    missing = [f"+{name}" for name in available if name not in enabled]
    path = f"{directory}/cgroup.subtree_control"
    try:
        if missing:
            hierarchy.write_file(path, " ".join(missing))
    except OSError:
        for name in missing:
            try:
                hierarchy.write_file(path, name)
            except OSError:
                pass

"""A group in the v1 hierarchies and, in hybrid set-ups, in the unified one beside them.

The unified hierarchy of a hybrid machine holds no v1 controller, but it may have one that is mounted nowhere else
(hugetlb). A process is moved into a group there only where something is limited in it: that takes a lock of the kernel
that costs ten times more than everything else together.
"""

# ruff: noqa: D102 - what each method promises is said once, in Group

from __future__ import annotations

import errno
import os
import time

from sampan.cgroup import devices, hierarchy, v1_limits, v1_stats
from sampan.cgroup.group import SIGKILL, Former, Group, Joiner, signal_pids, write, write_each
from sampan.cgroup.oom import OomWatch
from sampan.errors import InvalidInput, StageFailed, TimedOut, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup.usage import Meter

#: Seconds that a freeze may take; a process in an uninterruptible wait cannot be frozen.
_FREEZE_PATIENCE = 10.0
#: The controller whose membership is asked: every v1 set-up of a container has one of these.
_MEMBERSHIP = ("devices", "pids", "freezer", "memory", "cpu", "name=systemd")


class GroupV1(Group):
    """See :class:`~sampan.cgroup.group.Group`."""

    __slots__ = ("_directories", "_limited_there", "_points")

    def __init__(self, path: str) -> None:
        super().__init__(hierarchy.check_path(path))
        layout = hierarchy.layout()
        own = {} if self.path.startswith("/") else hierarchy.parse_proc_cgroup(hierarchy.read_file("/proc/self/cgroup"))
        # Mount point -> path under it. Controllers may share a mount (cpu,cpuacct).
        self._points: dict[str, str] = {}
        self._directories: dict[str, str] = {}
        #: Something is limited in the unified hierarchy.
        self._limited_there = False
        for name, point in [*layout.controllers.items(), *([("", layout.unified)] if layout.unified else [])]:
            path = self.path if self.path.startswith("/") else _under(own.get(name, "/"), self.path)
            self._points[point] = path
            self._directories[name] = point + path

    def paths(self) -> dict[str, str]:
        return dict(self._directories)

    def create(self) -> None:
        made: list[tuple[str, str]] = []
        cpuset = hierarchy.layout().controllers.get("cpuset")
        try:
            for point, path in self._points.items():
                if hierarchy.make_directory(point, path, _fill_cpuset if point == cpuset else None):
                    made.append((point, path))
        except BaseException:
            for point, path in made:
                hierarchy.remove_directory(point, path)
            raise

    def join(self, pid: int = 0) -> None:
        if pid == 0:
            self.joiner().join()
            return
        for directory in self._v1_directories():
            try:
                hierarchy.write_file(f"{directory}/cgroup.procs", str(pid))
            except OSError as error:
                raise StageFailed(f"join cgroup with process {pid}", error) from error

    def joiner(self, below: dict[str, str] | None = None) -> Joiner:
        # "0" written to v1's `tasks`, not to cgroup.procs: a single thread that moves itself needs no global lock.
        fds: list[int] = []
        joiner = Joiner(fds)
        try:
            for directory in self._below(below) if below else self._v1_directories():
                fds += (os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC),)
            if "" in self._directories and (self._limited_there or self._is_populated()):
                fds += (os.open(f"{self._directories['']}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC),)
        except OSError as error:
            joiner.close()
            raise StageFailed("join cgroup", error) from error
        return joiner

    def _below(self, below: dict[str, str]) -> list[str]:
        """The directories to join, where some are below the group's own; those of controllers may be one."""
        controllers = hierarchy.layout().controllers
        for name in below:
            if name and name not in controllers:
                raise InvalidInput(f"no hierarchy of cgroup v1 has the controller {name!r}", field="cgroup")
        chosen = {controllers[name]: path for name, path in below.items() if name}
        return [
            f"{directory}/{path}".rstrip("/")
            for point, directory in zip(self._v1_points(), self._v1_directories(), strict=True)
            for path in (chosen.get(point, below.get("", "")),)
        ]

    def _v1_points(self) -> list[str]:
        unified = hierarchy.layout().unified
        return [point for point in self._points if point != unified]

    def _v1_directories(self) -> list[str]:
        return [point + self._points[point] for point in self._v1_points()]

    def fd(self) -> int:
        directory = self._directories.get("")
        if directory is None:
            return -1
        try:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StageFailed("open cgroup", error) from error

    def set(self, resources: dict[str, Any], *, undo: bool = False) -> None:
        former = Former() if undo else None
        try:
            v1_limits.apply(self._directories, resources, former)
        except BaseException:
            if former is not None:
                former.restore()
            raise
        huge = resources.get("hugepageLimits") and "hugetlb" not in self._directories
        if "" in self._directories and (huge or resources.get("unified")):
            self._limited_there = True
            for pid in [] if self._is_populated() else self.pids():
                try:
                    hierarchy.write_file(f"{self._directories['']}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    continue

    def _is_populated(self) -> bool:
        """Whether the container's processes are in the group of the unified hierarchy."""
        try:
            return "populated 1" in hierarchy.read_file(f"{self._directories['']}/cgroup.events")
        except FileNotFoundError:
            return False

    def set_devices(self, rules: list[dict[str, Any]]) -> None:
        policy = devices.reduce(devices.parse(rules))
        directory = self._directories.get("devices")
        if directory is None:
            if policy.allow_all and not policy.exceptions:
                return
            raise Unsupported("devices cannot be restricted: the cgroup v1 devices controller is not mounted")
        first, *exceptions = policy.writes()
        if not (policy.allow_all and _allows_all(directory)):
            write("device rule", f"{directory}/{first[0]}", first[1])
        if exceptions:
            write_each("device rule", f"{directory}/{exceptions[0][0]}", [text for _, text in exceptions])

    def stats(self) -> dict[str, Any]:
        return v1_stats.gather(self._directories)

    def meter(self) -> Meter:
        from sampan.cgroup.usage import MeterV1  # monitors never ask

        return MeterV1(self._directories)

    def freeze(self) -> None:
        self._set_frozen("FROZEN")

    def thaw(self) -> None:
        self._set_frozen("THAWED")

    def _set_frozen(self, state: str) -> None:
        directory = self._directories.get("freezer")
        if directory is None:
            raise Unsupported("cannot pause: the cgroup v1 freezer controller is not mounted")
        path = f"{directory}/freezer.state"
        deadline = time.monotonic() + _FREEZE_PATIENCE
        pause = 0.00005
        while True:
            # Written anew each time: a process forked half-way is caught only by another attempt.
            write("freezer state", path, state)
            if hierarchy.read_file(path).strip() == state:
                return
            if time.monotonic() > deadline:
                write("freezer state", path, "THAWED")
                raise TimedOut(f"cgroup {self.path} did not freeze in {_FREEZE_PATIENCE:.0f} s")
            time.sleep(pause)
            pause = min(pause * 2, 0.01)

    def frozen(self) -> bool:
        directory = self._directories.get("freezer")
        if directory is None:
            return False
        try:
            return hierarchy.read_file(f"{directory}/freezer.state").strip() != "THAWED"
        except FileNotFoundError:
            return False

    def freezer_file(self) -> tuple[str, str]:
        directory = self._directories.get("freezer")
        return ("", "") if directory is None else (f"{directory}/freezer.state", "THAWED")

    def kill(self, signal: int = SIGKILL) -> None:
        fatal = signal == SIGKILL
        if fatal and "" in self._directories:
            try:
                hierarchy.write_file(f"{self._directories['']}/cgroup.kill", "1")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise StageFailed("kill cgroup", error) from error
        pids = self.pids()
        if pids:
            self._signal_all(pids, signal)
        if fatal and pids and self.frozen():
            self._thaw_what_is_left()  # a frozen process dies only when thawed

    def _signal_all(self, pids: list[int], signal: int) -> None:
        if len(pids) == 1 or "freezer" not in self._directories or self.frozen():
            signal_pids(pids, signal)
            return
        # Frozen, the group cannot fork while the list is walked.
        try:
            self.freeze()
        except TimedOut:
            pass  # a process in an uninterruptible wait: the others get their signal all the same
        try:
            signal_pids(self.pids(), signal)
        finally:
            self._thaw_what_is_left()

    def _thaw_what_is_left(self) -> None:
        """Who waits for the end of the processes may have removed the group already."""
        try:
            self.thaw()
        except (OSError, StageFailed) as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def pids(self, all: bool = True) -> list[int]:
        for name in _MEMBERSHIP:
            if name in self._directories:
                return hierarchy.read_pids(self._directories[name], below=all)
        return []

    def remove(self) -> None:
        for point, path in self._points.items():
            hierarchy.remove_directory(point, path)
        if "" in self._directories:
            v1_limits.release_hugepages(hierarchy.layout().unified)

    def oom_kills(self) -> int:
        return self._memory_pairs("memory.oom_control").get("oom_kill", 0)

    def oom_watch(self) -> OomWatch:
        if "memory" not in self._directories:
            raise Unsupported("cannot watch for out-of-memory: the cgroup v1 memory controller is not mounted")
        try:
            return OomWatch.v1(self._directories["memory"])
        except OSError as error:
            raise StageFailed("watch for out-of-memory", error) from error

    def _memory_pairs(self, name: str) -> dict[str, int]:
        return hierarchy.read_pairs(f"{self._directories['memory']}/{name}") if "memory" in self._directories else {}

    def memory_usage(self) -> int:
        directory = self._directories.get("memory")
        return hierarchy.read_int(f"{directory}/memory.usage_in_bytes") if directory else 0

    def memory_working_set(self) -> int:
        return max(0, self.memory_usage() - self._memory_pairs("memory.stat").get("total_inactive_file", 0))


def _under(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{path}"


def _fill_cpuset(directory: str, ours: bool) -> bool:
    """Give a cpuset its parent's processors and memory nodes: until it has both, no process can join it.

    In a parent that we made the kernel does so itself for each new child (cgroup-v1/cpusets, "cgroup.clone_children"),
    which spares a look at each cpuset of the machine.

    Returns:
        Whether it has both now; not if its parent has not.
    """
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if hierarchy.read_file(f"{directory}/{name}").strip():
            continue
        value = hierarchy.read_file(f"{parent}/{name}").strip()
        if not value:
            return False
        hierarchy.write_file(f"{directory}/{name}", value)
    if ours:
        hierarchy.write_file(f"{directory}/cgroup.clone_children", "1")
    return True


def _allows_all(directory: str) -> bool:
    return hierarchy.read_file(f"{directory}/devices.list").startswith("a ")

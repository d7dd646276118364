"""The making of a container, from its configuration to an init that waits to be started."""

from __future__ import annotations

import errno
import os

from sampan.cgroup import open_group
from sampan.errors import StageFailed, ValueRefused, WrongState
from sampan.linux import mount as m
from sampan.runtime import (
    borrow,
    console,
    credentials,
    hooks,
    init,
    labels,
    namespaces,
    program,
    shared_mounts,
    streams,
    trace,
    users,
)
from sampan.runtime import channel as talk
from sampan.runtime.channel import Channel
from sampan.runtime.handler import Created
from sampan.runtime.init import InitWork
from sampan.runtime.launch import Launch, set_oom_score
from sampan.runtime.mounts import PreparedMounts, prepare
from sampan.runtime.namespaces import NamespacePlan
from sampan.runtime.options import Options
from sampan.runtime.program import Program
from sampan.runtime.state import NOTIFY_FOLDER, dumps, now, start_time

__all__ = ["Creation", "Options", "default_cgroup"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroup import Group, Joiner
    from sampan.runtime.handler import Stdio
    from sampan.runtime.net_devices import NetDevices
    from sampan.runtime.seccomp import Filter
    from sampan.runtime.state import StateDir
    from sampan.spec.runtime_types import Linux, Process, RuntimeConfig


#: What a container without a process gets: an init that waits, and no name that validation would let pass.
NO_PROCESS: Process = {"args": [""], "cwd": "/"}


class Creation:
    """One container being made. Whatever it opens or makes is in its attributes, so that a failure can take it back."""

    __slots__ = (
        "_channel",
        "_devices",
        "_fds",
        "_group",
        "_hooked",
        "_joiner",
        "_launch",
        "_mounts",
        "_plan",
        "_theirs",
        "_warn",
        "bundle",
        "config",
        "directory",
        "options",
        "record",
        "stdio",
    )

    def __init__(
        self,
        directory: StateDir,
        bundle: str,
        config: RuntimeConfig,
        stdio: Stdio,
        options: Options,
        warn: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.bundle = bundle
        #: With a process in it: see :data:`NO_PROCESS`.
        self.config: RuntimeConfig = config if config.get("process") else {**config, "process": NO_PROCESS}
        self.stdio = stdio
        self.options = options
        self._warn = warn
        self._plan: NamespacePlan | None = None
        self._mounts: PreparedMounts | None = None
        self._group: Group | None = None
        self._joiner: Joiner | None = None
        self._launch: Launch | None = None
        self._channel: Channel | None = None
        self._theirs: Channel | None = None
        self._devices: NetDevices | None = None
        self._fds: list[int] = []
        #: Hooks have run, or tried to.
        self._hooked = False
        linux = config.get("linux") or {}
        self.record: dict[str, Any] = {
            "ociVersion": config["ociVersion"],
            "id": directory.container_id,
            "pid": 0,
            "start": 0,
            "bundle": bundle,
            "rootfs": os.path.normpath(os.path.join(bundle, config["root"]["path"])),
            "created": now(),
            "cgroup": linux.get("cgroupsPath") or default_cgroup(directory.container_id, self.options),
            "systemd": options.systemd_cgroup,
            "annotations": config.get("annotations") or {},
            "hooks": [kind for kind, several in (config.get("hooks") or {}).items() if several],
        }
        if self.config is not config:
            self.record["empty"] = True
        if not any(one["type"] == "pid" and not one.get("path") for one in linux.get("namespaces") or []):
            self.record["foreign_pids"] = True
        if not options.new_keyring:
            self.record["callers_keyring"] = True

    def run(self) -> Created:
        """Make it.

        Raises:
            StageFailed: Of the stage that failed; nothing is left of the container.
        """
        try:
            trace.step("make state directory", self.directory.path)
            self.directory.make()
        except OSError as error:
            raise StageFailed("make state directory", error, path=self.directory.path) from error
        try:
            created = self._make()
        except BaseException as error:
            # What took it back must not hide what went wrong, nor the stage it went wrong at.
            stage, path = trace.stage, trace.path
            self._undo()
            if isinstance(error, OSError):
                raise StageFailed(stage, error, path=path) from error
            raise
        finally:
            self._close()
        return created

    def _make(self) -> Created:
        config, linux = self.config, self.config.get("linux") or {}
        warnings = labels.check_machine(config["process"], linux.get("mountLabel") or "")
        spaces = {one["type"] for one in linux.get("namespaces") or []}
        warnings += credentials.shortfall(config["process"], user_namespace="user" in spaces)
        # The intent comes first: were we killed now, delete --force would find the cgroup by it.
        trace.step("record intent", self.directory.path)
        self.directory.store(self.record)
        self.directory.write("config.json", dumps(config))
        if self.options.notify:
            os.mkdir(self.directory.file(NOTIFY_FOLDER))
            os.chmod(self.directory.file(NOTIFY_FOLDER), 0o755)  # whatever the umask is
        filter_ = self._compile_filter(linux)
        self._plan = NamespacePlan(linux)
        self._mounts = prepare(config, self.bundle, users.namespace_of)
        if not self._plan.has("mount"):
            self._note_shared_mounts()
        self._make_cgroup(linux)
        ours, theirs = Channel.pair()
        self._channel, self._theirs = ours, theirs
        program_ = self._program(theirs, filter_)
        work = InitWork(config, self._plan, self._mounts, program_, self._state("creating"))
        work.joiner = self._joiner
        work.rootless = os.geteuid() != 0
        work.no_pivot = self.options.no_pivot
        work.new_keyring = self.options.new_keyring
        self._launch = launch = Launch(ours)
        launch.warnings += warnings + self._mounts.warnings
        self._answer(launch)
        try:
            self._spawn(launch, theirs, work)
        finally:
            theirs.close()
        if launch.pid:
            try:
                self._born(launch)
            except (FileNotFoundError, ProcessLookupError):
                self._follow(launch)  # It has ended already, and says why.
                raise
        self._follow(launch)
        return self._finish(launch)

    def _follow(self, launch: Launch) -> None:
        """Serve the init until it waits to be started; of one that the kernel has killed, say why in its place."""
        try:
            launch.follow()
        except StageFailed as error:
            if launch.silent and self._group is not None and self._group.oom_kills():
                hint = "the kernel killed it for want of memory: the memory limit is too low"
                raise ValueRefused(error.stage, OSError(0, "the init was killed"), hint=hint) from error
            raise

    def _spawn(self, launch: Launch, theirs: Channel, work: InitWork) -> None:
        plan = work.plan
        # In a PID namespace that others are in, they could kill the init half-way.
        if self.options.expendable and "pid" in plan.new and borrow.possible(self.config, work.program):
            trace.step("clone init")
            launch.pid, failure = borrow.spawn(plan.flags(), "init", work.program, lambda: init.borrow(work))
            if failure is not None:
                raise failure
            return
        pid, between = namespaces.spawn(plan, theirs, lambda: init.run(work))
        if between:
            launch.middle = pid
        else:
            launch.pid = pid

    def _note_shared_mounts(self) -> None:
        """Without a mount namespace the root is mounted in the runtime's own; it goes with the container."""
        assert self._mounts is not None
        self.record["mount"] = m.mount_id(self._mounts.root)
        self.directory.store(self.record)

    def _compile_filter(self, linux: Linux) -> Filter | None:
        section = linux.get("seccomp")
        if not section:
            return None
        from sampan.runtime.seccomp import compile_filter

        trace.step("compile seccomp filter")
        return compile_filter(section, cache=self.options.seccomp_cache)

    def _make_cgroup(self, linux: Linux) -> None:
        resources = linux.get("resources") or {}
        group = open_group(self.record["cgroup"], systemd=self.options.systemd_cgroup)
        trace.step("make cgroup", group.path)
        refuse_occupied(group)
        self._group = group
        try:
            group.create()
        except StageFailed as error:
            # As runc has it: who may make no groups has containers without one, and without limits.
            denied = error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
            if os.geteuid() == 0 or not denied or set(resources) - {"devices"}:
                raise
            self._group = None
            self.record["ungrouped"] = True
            return
        trace.step("set cgroup limits", group.path)
        group.set(resources)
        group.set_devices(resources.get("devices") or [])
        self._joiner = group.joiner()
        assert self._mounts is not None
        if any(one.fstype == "cgroup" for one in self._mounts.mounts):
            from sampan.runtime.cgroup_mount import open_groups, owner

            if (uid := owner(self.config)) >= 0:
                group.delegate(uid)
            self._mounts.cgroups = open_groups(group.paths())

    def _program(self, theirs: Channel, filter_: Filter | None) -> Program:
        streams.give(self.stdio, self.config["process"], self.config.get("linux") or {})
        made = Program(self.config["process"], theirs, self.stdio)
        trace.step("make fifos", self.directory.path)
        made.fifo = self._fifo("exec.fifo")
        made.report = self._fifo("report.fifo")
        made.preserve_fds = self.options.preserve_fds
        made.seccomp = filter_
        assert self._plan is not None
        made.user_namespace = self._plan.has("user")
        made.alone = os.geteuid() != 0 and {"user", "pid"} <= set(self._plan.new)
        made.direct = bool((self.config.get("hooks") or {}).get("startContainer"))
        # Made here and not by the init, so that the next container finds it.
        program.trampoline(made)
        return made

    def _fifo(self, name: str) -> int:
        path = self.directory.file(name)
        os.mkfifo(path, 0o600)
        # For both, so that opening never waits and reading never ends.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _answer(self, launch: Launch) -> None:
        linux = self.config.get("linux") or {}
        hooks_ = self.config.get("hooks") or {}

        def set_maps(_: int) -> None:
            users.write_maps(launch.pid, linux.get("uidMappings") or [], linux.get("gidMappings") or [])

        def run_hooks(_: int) -> None:
            self._hooked = True
            # The specification has prestart come when the environment is there, so "created", as crun has it.
            hooks.run("prestart", hooks_.get("prestart") or [], self._state("created", launch.pid))
            hooks.run("createRuntime", hooks_.get("createRuntime") or [], self._state("creating", launch.pid))

        def set_limits(_: int) -> None:
            for one in self.config["process"].get("rlimits") or []:
                warning = program.set_limit(launch.pid, one)
                if warning:
                    launch.warnings.append(warning)

        def hand_listener(fd: int) -> None:
            from sampan.runtime.notify import send_listener

            section = linux.get("seccomp") or {}
            trace.step("hand over seccomp listener", section.get("listenerPath", ""))
            send_listener(section, fd, self._state("creating", launch.pid), launch.pid)

        launch.answers = {
            talk.BORN: lambda _: self._born(launch),
            talk.MAP: set_maps,
            talk.ENVIRONMENT: run_hooks,
            talk.LIMITS: set_limits,
            talk.LISTENER: hand_listener,
        }

    def _born(self, launch: Launch) -> None:
        """What the runtime does to the init from outside, as soon as it exists."""
        process = self.config["process"]
        adjust = process.get("oomScoreAdj")
        if adjust is not None:
            warning = set_oom_score(launch.pid, adjust)
            if warning:
                launch.warnings.append(warning)
        self._move_devices(launch.pid)

    def _move_devices(self, pid: int) -> None:
        devices = (self.config.get("linux") or {}).get("netDevices")
        if devices:
            from sampan.runtime.net_devices import NetDevices, give

            # A namespace that is joined may not be the init's yet.
            joined = self._plan.joined.get("network", -1) if self._plan is not None else -1
            path = f"/proc/{pid}/ns/net"
            trace.step("open network namespace of init", path)
            self._devices = NetDevices(os.dup(joined) if joined >= 0 else os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            give(devices, self._devices)

    def _finish(self, launch: Launch) -> Created:
        trace.step("record container", self.directory.path)
        self.record["pid"] = launch.pid
        self.record["start"] = start_time(launch.pid)
        if launch.warnings:
            self.record["warnings"] = launch.warnings
        if launch.console >= 0 and self.options.console_socket:
            trace.step("send terminal", self.options.console_socket)
            console.send(self.options.console_socket, launch.console)
            os.close(launch.console)
            launch.console = -1
        self.directory.store(self.record)
        trace.step("container is created")
        may_trace = borrow.may_trace(self.config)
        return Created(launch.pid, launch.console, tuple(launch.warnings), may_trace=may_trace)

    def _state(self, status: str, pid: int = 0) -> dict[str, Any]:
        return {
            "ociVersion": self.record["ociVersion"],
            "id": self.record["id"],
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.record["annotations"],
        }

    def _undo(self) -> None:
        if self._launch is not None:
            self._launch.abort()
        if self._devices is not None:
            self._devices.give_back()
        self._close()
        if self._group is not None:
            try:
                self._group.kill()
                self._group.remove()
            except (OSError, StageFailed):
                pass
        if "mount" in self.record:
            shared_mounts.remove(self.record["mount"], self.record["rootfs"])
        if self._hooked:
            # What the first hooks made has to go, though there will be no container: the specification goes on so.
            poststop = (self.config.get("hooks") or {}).get("poststop") or []
            hooks.run_each("poststop", poststop, self._state("stopped"), self._warn)
        self.directory.remove()

    def _close(self) -> None:
        owners = (self._plan, self._mounts, self._joiner, self._group, self._channel, self._theirs, self._devices)
        for owner in owners:
            if owner is not None:
                owner.close()
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


def refuse_occupied(group: Group) -> None:
    """Refuse a group that others are in: a container's end would be theirs too, and the other way round.

    Raises:
        WrongState: It has processes.
    """
    if group.pids():
        raise WrongState(
            f"cgroup {group.path} has processes already",
            hint="another container is in it: give this one a linux.cgroupsPath of its own",
        )


def default_cgroup(container_id: str, options: Options) -> str:
    """Where a container's cgroup is when its configuration does not say."""
    return f":sampan:{container_id}" if options.systemd_cgroup else f"/sampan/{container_id}"

"""A pod's namespaces, without a container: made by a short-lived process, and pinned as files.

    <directory>/{net,ipc,uts,user,pid}      one file for each namespace, bound from /proc

Containers join them by these paths in their config.json, so that any OCI runtime can run them. A process of the
pod's own, pause, exists only where containers share a PID namespace, which lives no longer than its process 1; it
sits in an empty read-only root.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module brings enum
import os

from sampan.cgroup import open_group
from sampan.errors import InvalidInput, StageFailed, Unsupported

# Not where it is used: there the root is empty already, and nothing can be imported any more.
from sampan.linux import capabilities, interface, vfork
from sampan.linux import mount as m
from sampan.linux import namespaces as ns
from sampan.linux.process import (
    CLOSE_RANGE_CLOEXEC,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    clone3,
    close_range,
    has_ended,
    pidfd_open,
    pidfd_send_signal,
    prctl,
)
from sampan.linux.syscall import fail, libc
from sampan.runtime import borrow, stage2, sysctl, trace, users
from sampan.runtime import channel as talk
from sampan.runtime import pause as pause_program
from sampan.runtime.channel import Channel
from sampan.runtime.rootfs import make_filesystem
from sampan.spec import sysctl_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from sampan.cgroup import Joiner
    from sampan.spec.runtime_types import IDMapping

# OCI type -> name of the pin.
_FILES = {kind: name for kind, (_, name) in ns.KINDS.items() if kind in ("network", "ipc", "uts", "user", "pid")}


class Sandbox:
    """What was made.

    Attributes:
        pause_pid: The pause process, a child of the caller, or 0.
        pidfd: A descriptor of it, the caller's to close, or -1.
        paths: OCI namespace type -> file that it is pinned as.
    """

    __slots__ = ("paths", "pause_pid", "pidfd")

    def __init__(self) -> None:
        self.pause_pid = 0
        self.pidfd = -1
        self.paths: dict[str, str] = {}


def create_sandbox(
    directory: str,
    kinds: Iterable[str],
    *,
    hostname: str = "",
    domainname: str = "",
    sysctls: dict[str, str] | None = None,
    loopback: bool = True,
    uid_mappings: list[IDMapping] | None = None,
    gid_mappings: list[IDMapping] | None = None,
    pause: bool = False,
    pause_cgroup: str = "",
    pause_resources: dict[str, Any] | None = None,
    systemd: bool = False,
    enter: bool = False,
) -> Sandbox:
    """Make a pod's namespaces; the caller must be single-threaded.

    Args:
        directory: Where they are pinned; made where missing.
        kinds: OCI types of the namespaces to make: network, ipc, uts, user, pid; pid comes with ``pause``.
        hostname: The pod's; needs a uts namespace.
        domainname: Likewise.
        sysctls: Kernel parameters of the pod's namespaces.
        loopback: Bring up lo in a new network namespace.
        uid_mappings: Of a new user namespace.
        gid_mappings: Likewise.
        pause: Start the pause process.
        pause_cgroup: Its cgroup, made where missing; empty for the caller's.
        pause_resources: Limits of that cgroup, ``linux.resources``.
        systemd: ``pause_cgroup`` is "slice:prefix:name".
        enter: The caller is a process that can be spared: it may enter the namespaces itself, which :func:`leave` takes
            back, and lend its memory to the pause process, which saves a fork.

    Raises:
        InvalidInput: An unknown type, or a parameter of a namespace that is not the pod's.
        StageFailed: Nothing is left.
    """
    wanted = set(kinds) | ({"pid"} if pause else set())
    _check(wanted, hostname, sysctls or {}, pause=pause)
    making = _Making(directory, wanted)
    making.hostname, making.domainname = hostname, domainname
    making.sysctls = sysctls or {}
    making.loopback = loopback
    making.maps = (uid_mappings or [], gid_mappings or [])
    try:
        if pause and pause_cgroup:
            making.prepare_cgroup(pause_cgroup, pause_resources or {}, systemd=systemd)
        # A user namespace needs somebody outside who writes its mappings, and a PID namespace its first process.
        if not enter or "user" in wanted:
            sandbox = making.run()
        elif "pid" not in wanted:
            sandbox = making.run_here()
        else:
            sandbox = making.run_lending() if vfork.available() else making.run()
        trace.step("sandbox is made")
        return sandbox
    except BaseException as error:
        stage, path = trace.stage, trace.path
        making.undo()
        if isinstance(error, OSError):
            raise StageFailed(stage, error, path=path) from error
        raise
    finally:
        making.close()


def leave() -> None:
    """Go back to the namespaces of the parent, for a process that :func:`create_sandbox` has let ``enter``."""
    parent = pidfd_open(os.getppid())
    try:
        ns.setns(parent, ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS)
    finally:
        os.close(parent)


def _check(wanted: set[str], hostname: str, sysctls: dict[str, str], *, pause: bool) -> None:
    unknown = wanted - set(_FILES)
    if unknown:
        raise InvalidInput(f"a pod can't have a namespace of type {min(unknown)!r}", field="namespaces")
    if "pid" in wanted and not pause:
        raise InvalidInput("a PID namespace needs the pause process", field="namespaces")
    if pause and not pause_program.available():
        raise Unsupported("sharing a PID namespace in a pod needs an x86-64 machine")
    if hostname and "uts" not in wanted:
        raise InvalidInput("the pod has no uts namespace", field="hostname")
    for name in sysctls:
        kind = sysctl_names.namespace_of(sysctl_names.dotted(name))
        if kind not in wanted:
            reason = f"the pod has no {kind} namespace" if kind else "it belongs to the whole machine"
            raise InvalidInput(reason, field=f"sysctls[{name!r}]")


class _Making:
    """One sandbox being made."""

    def __init__(self, directory: str, wanted: set[str]) -> None:
        self.directory = directory
        self.wanted = wanted
        self.hostname = ""
        self.domainname = ""
        self.sysctls: dict[str, str] = {}
        self.loopback = True
        self.maps: tuple[list[IDMapping], list[IDMapping]] = ([], [])
        self._pid = 0
        self._pidfd = -1
        self._channel: Channel | None = None
        self._pinned: list[str] = []
        self._group = open_group("/")
        self._has_group = False
        self._joiner: Joiner | None = None

    def prepare_cgroup(self, path: str, resources: dict[str, Any], *, systemd: bool) -> None:
        self._group = open_group(path, systemd=systemd)
        trace.step("make cgroup", path)
        self._has_group = True
        self._group.create()
        self._group.set(resources)
        self._joiner = self._group.joiner()

    def run(self) -> Sandbox:
        self._make_directory()
        ours, theirs = Channel.pair()
        self._channel = ours
        flags = self._flags()
        if "user" in self.wanted:
            flags &= ~ns.CLONE_NEWIPC  # made by its root, whose message queues they are then
        keep = "pid" in self.wanted
        if keep:
            flags |= ns.CLONE_NEWNS
        trace.step("clone sandbox")
        try:
            self._pid, self._pidfd = clone3(flags)
            if self._pid == 0:
                self._be_child(theirs)
        finally:
            theirs.close()
        self._follow(ours)
        sandbox = self._pin_all()
        if keep:
            ours.send(talk.GO)
            self._follow(ours, until_program=True)
            sandbox.pause_pid, sandbox.pidfd = self._pid, self._pidfd
            self._pidfd = -1
        else:
            self._end_child()
        return sandbox

    def run_here(self) -> Sandbox:
        """As :meth:`run`, in this very process, which then is in the namespaces."""
        self._make_directory()
        trace.step("isolate sandbox")
        prctl(PR_SET_DUMPABLE, 0)
        trace.step("make namespaces")
        ns.unshare(self._flags())
        self._set_up_inside()
        return self._pin_all()

    def run_lending(self) -> Sandbox:
        """As :meth:`run`, the pause process being made in this one's memory: its PID namespace is new, so that nobody
        in the pod can reach it before it is there. Who ends it from outside ends this process too.
        """
        self._make_directory()
        program = pause_program.program()
        failures: list[BaseException] = []

        def become_pause() -> vfork.Image | None:
            try:
                self._isolate()
                self._set_up_inside()
                self._prepare_pause()
                return vfork.Image(program, ["/pause"], [])
            except BaseException as error:  # noqa: BLE001 -- the maker raises it
                failures.append(error)
                return None

        trace.step("clone sandbox")
        self._pid, failure = borrow.lend("sandbox", self._flags() | ns.CLONE_NEWNS, become_pause)
        for error in (*failures, failure):
            if error is not None:
                raise error
        self._pidfd = pidfd_open(self._pid)
        sandbox = self._pin_all()
        sandbox.pause_pid, sandbox.pidfd = self._pid, self._pidfd
        self._pidfd = -1
        return sandbox

    def _make_directory(self) -> None:
        trace.step("make directory", self.directory)
        os.makedirs(self.directory, 0o711, exist_ok=True)

    def _flags(self) -> int:
        flags = 0
        for kind in self.wanted:
            flags |= ns.KINDS[kind][0]
        return flags

    def _pin_all(self) -> Sandbox:
        sandbox = Sandbox()
        for kind in self.wanted:
            sandbox.paths[kind] = self._pin(kind)
        return sandbox

    def _follow(self, ours: Channel, *, until_program: bool = False) -> None:
        """Serve the child until it is ready, or until it is another program."""
        ready = False
        while not ready or until_program:
            letter, fields, _ = ours.receive()
            if letter == talk.MAP:
                users.write_maps(self._pid, *self.maps)
                ours.send(talk.GO)
            elif letter == talk.FAILED:
                raise talk.error_of(fields)
            elif letter == talk.READY:
                ready = True
            elif not letter:
                if ready and not has_ended(self._pidfd):
                    return
                raise StageFailed("set up sandbox", OSError(0, "its process ended without a word"))

    def _pin(self, kind: str) -> str:
        path = f"{self.directory}/{_FILES[kind]}"
        trace.step(f"pin {kind} namespace", path)
        self._pinned.append(path)
        ns.pin(f"/proc/{self._pid or 'self'}/ns/{_FILES[kind]}", path)
        return path

    def _end_child(self) -> None:
        pid, self._pid = self._pid, 0
        if self._channel is not None:
            self._channel.close()
        os.waitpid(pid, 0)

    def undo(self) -> None:
        if self._pid:
            try:
                os.kill(self._pid, 9)
                os.waitpid(self._pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        for path in self._pinned:
            try:
                ns.unpin(path)
            except OSError:
                continue
        try:
            os.rmdir(self.directory)
        except OSError:
            pass
        if self._has_group:
            try:
                self._group.remove()
            except (OSError, StageFailed):
                pass

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._joiner is not None:
            self._joiner.close()
        self._group.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _be_child(self, channel: Channel) -> None:
        """All of the child: it sets up what only an inhabitant can, and becomes pause or ends."""
        try:
            if self._channel is not None:
                self._channel.close()  # our copy of the parent's end would hide its closing from us
            trace.become("sandbox")
            self._set_up(channel)
            channel.send(talk.READY)
            letter, _, _ = channel.receive()
            if letter == talk.GO:
                self._become_pause(channel)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
            channel.fail(error)
        finally:
            os._exit(0)

    @staticmethod
    def _isolate() -> None:
        trace.step("isolate child")
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_PDEATHSIG, 9)
        os.setsid()

    def _set_up(self, channel: Channel) -> None:
        self._isolate()
        if "user" in self.wanted:
            channel.ask(talk.MAP)
        if "user" in self.wanted:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            if "ipc" in self.wanted:
                ns.unshare(ns.CLONE_NEWIPC)
        self._set_up_inside()

    def _set_up_inside(self) -> None:
        """What can be set from within only."""
        if self.hostname:
            trace.step(f"set hostname {self.hostname!r}")
            name = self.hostname.encode()
            if libc.sethostname(name, len(name)) != 0:
                raise fail()
        if self.domainname:
            trace.step(f"set domain name {self.domainname!r}")
            name = self.domainname.encode()
            if libc.setdomainname(name, len(name)) != 0:
                raise fail()
        if self.loopback and "network" in self.wanted:
            trace.step("bring up loopback")
            interface.set_up("lo")
        sysctl.apply(self.sysctls)

    def _become_pause(self, channel: Channel) -> None:
        program = pause_program.program()
        self._prepare_pause()
        channel.send(talk.READY)
        stage2.execute(program, ["/pause"], [])

    def _prepare_pause(self) -> None:
        if self._joiner is not None:
            trace.step("join cgroup")
            self._joiner.enter()  # its maker closes it, in whose memory this may be
        trace.step("enter empty root")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        close_range(3, flags=CLOSE_RANGE_CLOEXEC)
        m.mount(None, "/", None, m.MS_PRIVATE | m.MS_REC)
        empty = make_filesystem("tmpfs", "pause", ["size=0k", "nr_inodes=2", "mode=555"])
        quiet = m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
        m.set_attributes(empty, set=quiet)
        m.move_mount(empty, "", m.AT_FDCWD, "/", m.MOVE_MOUNT_F_EMPTY_PATH)
        os.fchdir(empty)
        m.pivot_root(".", ".")
        m.umount(".", m.MNT_DETACH)
        os.chdir("/")
        trace.step("execute pause")
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._drop_rights()
        # Before the program does it itself: until then process 1 would not be sent them at all.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [_signal.SIGINT, _signal.SIGTERM])
        prctl(PR_SET_PDEATHSIG, 0)

    def _drop_rights(self) -> None:
        capabilities.limit_bounding(0)
        # As nobody of the pod's: 65535, the pause image's user, where it is mapped.
        try:
            os.setgroups([])
            os.setresgid(65535, 65535, 65535)
            os.setresuid(65535, 65535, 65535)
        except OSError:
            pass
        capabilities.set_sets(0, 0, 0)


def destroy_sandbox(directory: str, *, pause_pid: int = 0, pause_cgroup: str = "", systemd: bool = False) -> None:
    """Let go of a sandbox: end its pause process, unpin, remove the directory. What is gone already is no error.

    Args:
        directory: As it was given to :func:`create_sandbox`.
        pause_pid: Its pause process; it is reaped if it is the caller's child.
        pause_cgroup: As given; removed.
        systemd: As given.
    """
    if pause_pid:
        trace.step("end pause process")
        _end(pause_pid)
    for name in _FILES.values():
        path = f"{directory}/{name}"
        trace.step("unpin namespace", path)
        ns.unpin(path)
    if pause_cgroup:
        group = open_group(pause_cgroup, systemd=systemd)
        trace.step("remove cgroup", pause_cgroup)
        group.kill()
        group.remove()
    trace.step("remove directory", directory)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def _end(pid: int) -> None:
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        pidfd_send_signal(pidfd, 9)
        has_ended(pidfd, 10_000)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass

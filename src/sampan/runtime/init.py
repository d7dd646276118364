"""The container's init, from its birth until it becomes the container's program. All of it runs in the child."""

from __future__ import annotations

import os

from sampan.linux import interface
from sampan.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWIPC, unshare
from sampan.linux.process import PR_SET_DUMPABLE, prctl
from sampan.linux.syscall import fail, libc
from sampan.linux.vfork import Image
from sampan.runtime import devices, hooks, namespaces, scheduling, sysctl, trace
from sampan.runtime import program as programs
from sampan.runtime.channel import ENVIRONMENT, MAP
from sampan.runtime.rootfs import Rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup import Joiner
    from sampan.runtime.mounts import PreparedMounts
    from sampan.runtime.namespaces import NamespacePlan
    from sampan.runtime.program import Program
    from sampan.spec.runtime_types import Linux, RuntimeConfig


class InitWork:
    """All that the init needs; made by the runtime, inherited by the fork.

    Attributes:
        state: The container's state document, for hooks that the init runs.
        joiner: Files that put the init into its cgroup; None without one.
        rootless: The runtime has not root's rights itself.
    """

    __slots__ = (
        "config",
        "joiner",
        "mounts",
        "new_keyring",
        "no_pivot",
        "plan",
        "program",
        "rootless",
        "state",
    )

    def __init__(
        self,
        config: RuntimeConfig,
        plan: NamespacePlan,
        mounts: PreparedMounts,
        program: Program,
        state: dict[str, Any],
    ) -> None:
        self.config = config
        self.plan = plan
        self.mounts = mounts
        self.program = program
        self.state = state
        self.joiner: Joiner | None = None
        self.rootless = False
        self.no_pivot = False
        self.new_keyring = True


def run(work: InitWork) -> None:
    """Be the init. Does not return."""
    trace.become("init")
    try:
        programs.execute(_set_up(work))
    except BaseException as error:  # noqa: BLE001 -- the runtime must hear of everything
        work.program.channel.fail(error)
    finally:
        os._exit(1)


def borrow(work: InitWork) -> Image | None:
    """Be the init in the runtime's own interpreter: what it is to execute, or None once the runtime was told why."""
    try:
        return _set_up(work)
    except BaseException as error:  # noqa: BLE001 -- the runtime must hear of everything
        work.program.channel.fail(error)
        return None


def _set_up(work: InitWork) -> Image:
    config = work.config
    linux = config.get("linux") or {}
    program = work.program
    programs.isolate(program)
    namespaces.join(work.plan)
    if "user" in work.plan.new:
        trace.step("wait for id mappings")
        if work.rootless:
            # A runtime without rights may write the maps of what it may look into; nothing is in there yet.
            prctl(PR_SET_DUMPABLE, 1)
        program.channel.ask(MAP)
        prctl(PR_SET_DUMPABLE, 0)
    if program.user_namespace:
        trace.step("become root of user namespace")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if work.plan.late_ipc():
        trace.step("make ipc namespace")
        unshare(CLONE_NEWIPC)
    if work.new_keyring:
        programs.join_keyring(program, work.state["id"])
    _name(config, work.plan)
    if "network" in work.plan.new:
        trace.step("bring up loopback")
        interface.set_up("lo")
    sysctl.apply(linux.get("sysctl") or {})
    os.umask(0)
    root = _file_system(work, linux)
    scheduling.apply_to_all(linux)
    os.umask(0o022)
    return programs.become(program, root)


def _name(config: RuntimeConfig, plan: NamespacePlan) -> None:
    hostname = config.get("hostname")
    if hostname and plan.has("uts"):
        trace.step(f"set hostname {hostname!r}")
        name = hostname.encode()
        if libc.sethostname(name, len(name)) != 0:
            raise fail()
    domain = config.get("domainname")
    if domain and plan.has("uts"):
        trace.step(f"set domain name {domain!r}")
        name = domain.encode()
        if libc.setdomainname(name, len(name)) != 0:
            raise fail()


def _file_system(work: InitWork, linux: Linux) -> int:
    """Make the container's file system and enter it; its root as a descriptor."""
    config, program = work.config, work.program
    rootfs = Rootfs(work.mounts, no_pivot=work.no_pivot, shared=not work.plan.has("mount"))
    rootfs.attach()
    rootfs.mount_all()
    volume = next((one for one in work.mounts.mounts if one.bind and os.path.normpath(one.destination) == "/dev"), None)
    if volume is None:
        devices.populate(rootfs.fd, linux.get("devices") or [], user_namespace=program.user_namespace)
    _join_cgroup(work)
    _run_hooks(work)
    if program.process.get("terminal"):
        # Not where it would be seen on the machine too.
        programs.open_terminal(program, rootfs.fd, console=volume is None or not volume.shared)
    else:
        programs.reopen_null(rootfs.fd)
    rootfs.make_cwd(program.process.get("cwd") or "/")
    rootfs.finish_mounts()
    if config["root"].get("readonly"):
        rootfs.make_root_readonly()
    rootfs.make_readonly(linux.get("readonlyPaths") or [])
    rootfs.mask(linux.get("maskedPaths") or [])
    trace.step("close descriptors")
    keep = [program.channel.fd, rootfs.fd, program.fifo, program.report, programs.trampoline(program)]
    programs.close_others([*keep, *range(3, 3 + program.preserve_fds)])
    programs.forbid_imports()
    rootfs.pivot()
    return rootfs.fd


def _join_cgroup(work: InitWork) -> None:
    """As late as the hooks allow: what this interpreter needs until then is not charged to the container."""
    if work.joiner is not None:
        trace.step("join cgroup")
        work.joiner.enter()
    scheduling.forget_affinity()
    if "cgroup" in work.plan.new:
        trace.step("unshare cgroup namespace")
        unshare(CLONE_NEWCGROUP)


def _run_hooks(work: InitWork) -> None:
    """prestart and createRuntime hooks by the runtime, then createContainer hooks here."""
    kinds = work.config.get("hooks") or {}
    own = kinds.get("createContainer") or []
    if kinds.get("prestart") or kinds.get("createRuntime") or own:
        # It is to know of our own ones too: that hooks have begun.
        trace.step("wait for createRuntime hooks")
        work.program.channel.ask(ENVIRONMENT)
    if own:
        # The runtime's environment stays outside.
        os.umask(0o022)  # what they make on the machine is not for everybody to write
        hooks.run("createContainer", own, {**work.state, "pid": os.getpid()}, [])
        os.umask(0)
    late = kinds.get("startContainer") or []
    if late:
        # Their paths are the container's, and they run when it is started. What they need is loaded now.
        state = {**work.state, "status": "created", "pid": os.getpid()}
        hooks.preload()
        env = work.program.process.get("env") or []
        work.program.before_exec.append(lambda: hooks.run("startContainer", late, state, env))

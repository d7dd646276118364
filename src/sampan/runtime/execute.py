"""One more process in a running container.

It enters what the container's init is in: every namespace at once through the init's pidfd (setns(2), Linux 5.8), and
the init's cgroup. Nothing of the container is trusted on the way: the root is the mount namespace's own, and from
there the process is set up as an init is (:mod:`sampan.runtime.program`).
"""

from __future__ import annotations

import errno
import os

from sampan.cgroup import open_group
from sampan.errors import StageFailed, WrongState
from sampan.linux import namespaces as ns
from sampan.linux.process import clone3, has_ended, pidfd_open
from sampan.runtime import borrow, console, credentials, labels, program, scheduling, streams, trace
from sampan.runtime import channel as talk
from sampan.runtime.channel import Channel
from sampan.runtime.handler import Created
from sampan.runtime.launch import Launch, set_oom_score
from sampan.runtime.namespaces import clone_sibling
from sampan.runtime.program import Program
from sampan.runtime.state import start_time
from sampan.spec.runtime_config import validate_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup import Joiner
    from sampan.linux.vfork import Image
    from sampan.runtime.handler import Stdio
    from sampan.runtime.options import Options
    from sampan.runtime.state import StateDir
    from sampan.spec.runtime_types import Process, RuntimeConfig

#: Milliseconds that it takes an init to end when it has begun to.
_LAST_MS = 200
_ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def execute(
    directory: StateDir, record: dict[str, Any], process: dict[str, Any], stdio: Stdio, options: Options
) -> Created:
    """Run ``process`` in the container of ``record``; see :meth:`sampan.runtime.native.NativeHandler.exec`."""
    config: RuntimeConfig = directory.load("config.json")  # type: ignore[assignment]
    checked: Process = confined(validate_process(process), config)  # type: ignore[arg-type, assignment]
    labels.check_machine(checked, "")
    work = _Execution(record, config, checked, stdio, options)
    try:
        return work.run()
    except BaseException as error:
        stage, path = trace.stage, trace.path
        work.undo()
        if isinstance(error, (OSError, StageFailed)) and work.is_void(error):
            raise WrongState(f"container {record['id']!r} has just ended") from error
        if isinstance(error, OSError):
            raise StageFailed(stage, error, path=path) from error
        raise
    finally:
        work.close()


def confined(process: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """``process`` with the container's confinement where it has none of its own: nobody leaves it by saying nothing.

    Capabilities count as its own when they are there, if only as empty sets, as runc has it; ``noNewPrivileges`` is
    false where it is absent.
    """
    own = config.get("process") or {}
    result = dict(process)
    if result.get("capabilities") is None and own.get("capabilities"):
        result["capabilities"] = own["capabilities"]
    for key in ("apparmorProfile", "selinuxLabel", "rlimits"):
        if not result.get(key) and own.get(key):
            result[key] = own[key]
    return result


class _Execution:
    """One process on its way in."""

    def __init__(
        self, record: dict[str, Any], config: RuntimeConfig, process: Process, stdio: Stdio, options: Options
    ) -> None:
        self._record = record
        self._config = config
        self._process = process
        self._stdio = stdio
        self._options = options
        self._launch: Launch | None = None
        self._channel: Channel | None = None
        self._theirs: Channel | None = None
        self._joiner: Joiner | None = None
        self._pidfd = -1
        #: Files that the process joins by when it is inside; None if the child joins before.
        self._inside: list[int] | None = None
        #: It was made by lending; how it fared is to be asked for.
        self._lent = False
        self._frozen = False

    def run(self) -> Created:
        pid = self._record["pid"]
        name = self._record["id"]
        trace.step("find container's init")
        try:
            self._pidfd = pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            self._pidfd = -1
        if self._pidfd < 0 or start_time(pid) != self._record["start"]:
            raise WrongState(f"container {name!r} is not running")
        group = open_group(self._record["cgroup"], systemd=self._record["systemd"])
        self._frozen = group.frozen()
        if self._frozen and not self._options.ignore_paused:
            raise WrongState(f"container {name!r} is paused")
        trace.step("open cgroup", group.path)
        if not self._record.get("ungrouped"):
            self._joiner = group.joiner(self._options.cgroups)
        return self._spawn()

    def _spawn(self) -> Created:
        linux = self._config.get("linux") or {}
        ours, theirs = Channel.pair()
        self._channel, self._theirs = ours, theirs
        streams.give(self._stdio, self._process, linux)
        made = Program(self._process, theirs, self._stdio)
        made.preserve_fds = self._options.preserve_fds
        section = linux.get("seccomp")
        if section:
            from sampan.runtime.seccomp import compile_filter

            trace.step("compile seccomp filter")
            made.seccomp = compile_filter(section, cache=self._options.seccomp_cache)
        kinds = {one["type"] for one in linux.get("namespaces") or []}
        made.user_namespace = "user" in kinds
        program.trampoline(made)
        self._launch = launch = Launch(ours)
        launch.warnings += credentials.shortfall(self._process, user_namespace=made.user_namespace)
        self._answer(launch)
        try:
            self._clone(kinds, made)
        finally:
            theirs.close()
        self._born(launch)
        launch.follow()
        if self._lent:
            borrow.check()
        if launch.console >= 0 and self._options.console_socket:
            trace.step("send terminal", self._options.console_socket)
            console.send(self._options.console_socket, launch.console)
            os.close(launch.console)
            launch.console = -1
        return Created(
            launch.pid,
            launch.console,
            tuple(launch.warnings),
            may_trace=borrow.may_trace(self._config, self._process),
        )

    def _born(self, launch: Launch) -> None:
        """What is done to the process from outside, as soon as it exists."""
        adjust = self._process.get("oomScoreAdj")
        if adjust is not None and self._inside is None:
            warning = set_oom_score(launch.pid, adjust)
            if warning:
                launch.warnings.append(warning)

    def _clone(self, kinds: set[str], made: Program) -> None:
        """Clone a child into the init's PID namespace, and come back from it."""
        flags = 0
        for kind in kinds - {"pid"}:
            flags |= ns.KINDS[kind][0]
        if "user" in kinds and os.geteuid() != 0:
            self._clone_between(flags, ns.CLONE_NEWPID if "pid" in kinds else 0, made)
            return
        if "pid" not in kinds:
            self._clone_here(flags, made)
            return
        inside = flags | ns.CLONE_NEWPID
        watched = self._options.watched or borrow.may_trace(self._config)
        if self._stay_outside(inside, made) if watched else self._step_inside(inside, made):
            return
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            trace.step("join pid namespace")
            ns.setns(self._pidfd, ns.CLONE_NEWPID)
            try:
                self._clone_here(flags, made)
            finally:
                ns.setns(own, ns.CLONE_NEWPID)
        finally:
            os.close(own)

    def _clone_between(self, flags: int, pid_flag: int, made: Program) -> None:
        """Without rights outside the other namespaces are entered from the user namespace, which there is no way back
        from: a process between enters it, makes the child as its sibling, and ends.
        """
        assert self._launch is not None
        trace.step("clone process")
        pid, pidfd = clone3(0)
        if pid == 0:
            try:
                trace.step("join user namespace")
                ns.setns(self._pidfd, ns.CLONE_NEWUSER | pid_flag)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                clone_sibling(0, made.channel, lambda: self._be_child(flags & ~ns.CLONE_NEWUSER, made))
            except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
                made.channel.fail(error)
            finally:
                os._exit(0)
        os.close(pidfd)
        self._launch.middle = pid

    def _clone_here(self, flags: int, made: Program) -> None:
        trace.step("clone process")
        assert self._launch is not None
        # A frozen child would hold up who lends to it, and no signal but SIGKILL would end that one.
        if self._options.expendable and not self._frozen and borrow.possible(self._config, made):
            self._launch.pid, failure = borrow.spawn(0, "exec", made, lambda: self._borrow(flags, made))
            if failure is not None:
                raise failure
            return
        pid, pidfd = clone3(0)
        if pid == 0:
            self._be_child(flags, made)
        os.close(pidfd)
        self._launch.pid = pid

    def _stay_outside(self, flags: int, made: Program) -> bool:
        """Where somebody inside may trace what he sees: let him see nothing that has more rights than the container.

        A process between becomes all that the program is to be, outside of the PID namespace; a child of it, which
        is inside, only joins the cgroups and executes. (A security module's label keeps tracers away by itself, and
        could not be set so.)
        """
        resets = (self._process.get("scheduler") or {}).get("flags")  # by a fork
        if labels.given(self._process) or resets or program.trampoline(made) < 0:
            return False
        trace.step("clone process")
        assert self._launch is not None
        self._inside = self._joiner.files() if self._joiner is not None else []
        made.session = False
        pid, pidfd = clone3(0)
        if pid == 0:
            self._be_between(flags, made)
        os.close(pidfd)
        self._launch.middle = pid
        return True

    def _be_between(self, flags: int, made: Program) -> None:
        trace.become("exec")
        try:
            image = self._enter(flags, made)
            clone_sibling(0, made.channel, lambda: self._be_inside(image, made))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
            made.channel.fail(error)
        finally:
            os._exit(0)

    def _be_inside(self, image: Image, made: Program) -> None:
        try:
            program.lead_session(made)
            for fd in self._inside or ():
                os.write(fd, b"0")
            scheduling.set_affinity(self._process, "final")
            program.execute(image)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
            made.channel.fail(error)
        finally:
            os._exit(1)

    def _step_inside(self, flags: int, made: Program) -> bool:
        """Make the process without a fork, where that is possible.

        False also where it failed, for a fork to find out whether it must: in the container's procfs there is no
        /proc/self for a child that is outside, and what leads through it is missing.
        """
        if self._options.expendable or not borrow.possible_inside(self._config, made):
            return False
        trace.step("clone process")
        assert self._launch is not None
        self._inside = self._joiner.files() if self._joiner is not None else []
        self._launch.pid = borrow.spawn_inside(self._inside, made, lambda: self._borrow(flags, made))
        if self._launch.pid:
            self._lent = True
            return True
        self._launch.channel.drain()
        self._inside = None
        made.borrowing = False
        return False

    def _borrow(self, flags: int, made: Program) -> Image | None:
        try:
            return self._enter(flags, made)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
            made.channel.fail(error)
            return None

    def _be_child(self, flags: int, made: Program) -> None:
        trace.become("exec")
        try:
            program.execute(self._enter(flags, made))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the runtime must hear of it
            made.channel.fail(error)
        finally:
            os._exit(1)

    def _enter(self, flags: int, made: Program) -> Image:
        """In the child: enter the container, and be ready to execute the program."""
        program.isolate(made)
        scheduling.set_affinity(self._process, "initial")
        if self._inside is not None:
            # Before it runs; it inherits it.
            adjust = self._process.get("oomScoreAdj")
            warning = set_oom_score("self", adjust) if adjust is not None else ""
            if warning:
                made.channel.send(talk.WARNING, warning)
        elif self._joiner is not None:
            trace.step("join cgroup")
            self._joiner.enter()
        scheduling.set_affinity(self._process, "final")
        program.forbid_imports()
        trace.step("join namespaces")
        # A container without a mount namespace has a root all the same.
        root = os.open(f"/proc/{self._record['pid']}/root", _ROOT_FLAGS) if not flags & ns.CLONE_NEWNS else -1
        ns.setns(self._pidfd, flags)
        if root >= 0:
            os.fchdir(root)
            os.chroot(".")
            os.close(root)
        if flags & ns.CLONE_NEWUSER:
            trace.step("become root of user namespace")
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        if not self._record.get("callers_keyring"):
            program.join_keyring(made, self._record["id"])
        root = os.open("/", _ROOT_FLAGS)
        keep = [made.channel.fd, root, program.trampoline(made), *(self._inside or ())]
        program.close_others([*keep, *range(3, 3 + made.preserve_fds)])
        if self._process.get("terminal"):
            program.open_terminal(made, root, console=False)
        else:
            program.reopen_null(root)
        scheduling.apply_to_all(self._config.get("linux") or {})
        return program.become(made, root)

    def _answer(self, launch: Launch) -> None:
        def set_limits(_: int) -> None:
            for one in self._process.get("rlimits") or []:
                warning = program.set_limit(launch.pid, one)
                if warning:
                    launch.warnings.append(warning)

        def hand_listener(fd: int) -> None:
            from sampan.runtime.notify import send_listener

            section = (self._config.get("linux") or {}).get("seccomp") or {}
            keys = ("ociVersion", "id", "pid", "bundle", "annotations")
            state = {**{key: self._record[key] for key in keys}, "status": "running"}
            # The process between is all there is as yet, where there is one.
            send_listener(section, fd, state, launch.pid or launch.middle)

        launch.answers = {
            talk.BORN: lambda _: self._born(launch),
            talk.LIMITS: set_limits,
            talk.LISTENER: hand_listener,
        }

    def is_void(self, error: OSError | StageFailed) -> bool:
        """Whether it failed since the container's init has ended, or is about to: it has let go of its namespaces
        (ESRCH of setns(2)), or has had all in its PID namespace killed, one that can't tell why.
        """
        return self._pidfd >= 0 and has_ended(self._pidfd, 0 if error.errno not in (errno.ESRCH, 0) else _LAST_MS)

    def undo(self) -> None:
        if self._launch is not None:
            self._launch.abort()

    def close(self) -> None:
        for owner in (self._channel, self._theirs, self._joiner):
            if owner is not None:
                owner.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

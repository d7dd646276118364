"""From a set-up process to the container's program: what the init and an exec'ed process have in common.

All of this runs in the child. After :func:`forbid_imports` the interpreter loads nothing any more, since every path
is now the container's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module brings enum
import errno
import fcntl
import os
import stat
import sys

from sampan.errors import ProgramFailed
from sampan.linux import keyring, pty, seccomp
from sampan.linux.mount import PROC_SUPER_MAGIC, filesystem_type
from sampan.linux.process import CLOSE_RANGE_CLOEXEC, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, close_range, prctl
from sampan.linux.resolve import open_in_root
from sampan.linux.syscall import libc
from sampan.linux.vfork import Image
from sampan.runtime import credentials, devices, labels, scheduling, stage2, trace
from sampan.runtime.channel import CONSOLE, LIMITS, READY, TRACE, WARNING, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.runtime.handler import Stdio
    from sampan.runtime.seccomp import Filter
    from sampan.spec.runtime_types import Process, Rlimit

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_O_DIRECTORY_PATH = os.O_PATH | os.O_DIRECTORY
#: What passes a descriptor beside a message, and hears that it is to be passed so.
_SENDING = ("sendmsg", "recvmsg")


class Program:
    """What a process is to become.

    Attributes:
        process: The OCI process object.
        channel: The child's end of the talk with the runtime.
        stdio: Standard streams, when the process has no terminal.
        fifo: Where the init waits to be started, or -1.
        report: Where the starter reads an errno, or -1.
        preserve_fds: So many descriptors from 3 on are the program's too.
        seccomp: The compiled filter, or None.
        alone: Nobody can be in its user namespace or see it but the runtime, which has no rights of its own: it may be
            looked into when that is needed.
        user_namespace: Whether limits must be set by the runtime, which has rights outside.
        direct: The program must be executed by this very process: startContainer hooks come between.
        before_exec: Called when the program may run, just before it is executed: startContainer hooks.
        borrowing: The process is none of its own yet: it runs in its maker's interpreter.
        session: It leads a session from the beginning; else :func:`lead_session` makes it.
    """

    __slots__ = (
        "alone",
        "before_exec",
        "borrowing",
        "channel",
        "direct",
        "fifo",
        "preserve_fds",
        "process",
        "report",
        "seccomp",
        "session",
        "stdio",
        "user_namespace",
    )

    def __init__(self, process: Process, channel: Channel, stdio: Stdio) -> None:
        self.process = process
        self.channel = channel
        self.stdio = stdio
        self.fifo = -1
        self.report = -1
        self.preserve_fds = 0
        self.seccomp: Filter | None = None
        self.alone = False
        self.user_namespace = False
        self.direct = False
        self.before_exec: list[Callable[[], None]] = []
        self.borrowing = False
        self.session = True
        if process.get("rlimits"):
            # A library to be loaded: for those who need it, and while files are still the runtime's own.
            import resource  # noqa: F401


def isolate(program: Program) -> None:
    """The first acts of a new child: nobody may look into it, and nothing of the runtime leaks through it."""
    trace.step("isolate child")
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
    for number in range(1, _signal.NSIG):
        if _signal.getsignal(number) not in (_signal.SIG_DFL, None):
            # Not through the interpreter, which may be borrowed and keeps a table.
            libc.signal(number, None)
    close_range(3 + program.preserve_fds, flags=CLOSE_RANGE_CLOEXEC)
    _take_streams(program.stdio)
    os.setsid()


def _take_streams(stdio: Stdio) -> None:
    """Make the given descriptors 0, 1 and 2; /dev/null for what is not given."""
    given = (stdio.stdin, stdio.stdout, stdio.stderr)
    # First out of the way of each other: the caller may give 1 as stdin.
    safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd >= 0 else os.open("/dev/null", os.O_RDWR) for fd in given]
    for number, fd in enumerate(safe):
        os.dup2(fd, number)
        os.close(fd)


def forbid_imports() -> None:
    """No import works any more: from now on a file found on any path is the container's."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def close_others(keep: list[int]) -> None:
    """Close every descriptor but 0, 1, 2 and ``keep``."""
    first = 3
    for fd in sorted(fd for fd in keep if fd >= 3):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def join_keyring(program: Program, container_id: str) -> None:
    """Take the container's session keyring, made by its first process; the runtime's own is for none of them."""
    labels.apply_to_keys(program.process)
    trace.step("join session keyring")
    try:
        keyring.join_session(f"_ses.{container_id}")
    except OSError as error:
        # ENOSYS: a kernel without keyrings; EDQUOT: too many containers for root's quota. The container is no
        # less confined: its parent's session keyring holds nothing of ours.
        if error.errno not in (errno.ENOSYS, errno.EDQUOT):
            raise


def open_terminal(program: Program, root: int, *, console: bool) -> None:
    """Make the process's terminal in the container's devpts, give its master to the runtime, and take it as 0, 1, 2.

    Args:
        program: What the process is to become.
        root: The container's root, a descriptor.
        console: Bind it over /dev/console as well, as the first process's is.
    """
    trace.step("open terminal", "/dev/ptmx")
    master = devices.open_multiplexer(root)
    pty.unlock(master)
    slave = pty.peer(master)
    size = program.process.get("consoleSize")
    if size:
        pty.resize(master, size["height"], size["width"])
    if console:
        devices.bind_console(root, slave)
    trace.step("hand over terminal")
    program.channel.send(CONSOLE, fd=master)
    os.close(master)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)
    if program.session:
        pty.set_controlling(0)


def lead_session(program: Program) -> None:
    """Begin a session, with the process's terminal if it has one."""
    os.setsid()
    if program.process.get("terminal"):
        pty.set_controlling(0)


def reopen_null(root: int) -> None:
    """Where a standard stream is the host's /dev/null, make it the container's: a descriptor leads to its mount."""
    null = os.makedev(1, 3)
    streams = [fd for fd in range(3) if _is_device(fd, null)]
    if not streams:
        return
    trace.step("reopen /dev/null", "/dev/null")
    try:
        fd = open_in_root(root, "/dev/null", os.O_RDWR | os.O_NOCTTY)
    except OSError:  # a container without one keeps the host's
        return
    if _is_device(fd, null):
        for stream in streams:
            os.dup2(fd, stream)
    os.close(fd)


def _is_device(fd: int, number: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == number


def become(program: Program, root: int) -> Image:
    """Take on the limits, the user, the rights and the filter; what is left to do is to execute what this returns.

    Without a trampoline the program is executed from here.

    Args:
        program: What to become.
        root: The container's root, which the process is already in.
    """
    process = program.process
    _limit(program)
    scheduling.apply(process)
    labels.apply(process)
    environment = _environment(process, root)
    _own_streams(process)
    user = process.get("user") or {}
    os.umask(user.get("umask", 0o022))
    cwd = process.get("cwd") or "/"
    entered = _enter_early(root, cwd)
    setgroups = _may_set_groups()
    if process.get("noNewPrivileges"):
        credentials.set_no_new_privileges()
    else:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to go. From here on only calls that any
        # profile allows: old ones refuse openat2 and faccessat2 with EPERM, which looks like a verdict on the file.
        _load_filter(program)
    credentials.become(process, setgroups=setgroups)
    if not entered:
        # The user may search what root in a user namespace, or on a network file system, may not.
        _enter_late(root, cwd)
    path = find_program(process)
    return _prepare(program, path, environment)


def _limit(program: Program) -> None:
    limits = program.process.get("rlimits") or []
    if not limits:
        return
    trace.step("set resource limits")
    if program.user_namespace:
        program.channel.ask(LIMITS)
        return
    for one in limits:
        warning = set_limit(0, one)
        if warning:
            program.channel.send(WARNING, warning)


def set_limit(pid: int, one: Rlimit) -> str:
    """Set a limit on a process (0: the caller). As far as the kernel lets us; what it refused is returned as text."""
    import resource

    kind: int = getattr(resource, one["type"])
    soft, hard = (_limit_value(one[key]) for key in ("soft", "hard"))
    trace.step(f"set {one['type']}")
    try:
        resource.prlimit(pid, kind, (soft, hard))
    except PermissionError:
        # Raising a hard limit takes CAP_SYS_RESOURCE: keep the hard limit that is there.
        _, most = resource.prlimit(pid, kind)
        lowered = (soft if most == -1 or 0 <= soft <= most else most, most)
        resource.prlimit(pid, kind, lowered)
        return f"{one['type']}: the hard limit stays {most}: raising it to {one['hard']} needs CAP_SYS_RESOURCE"
    return ""


def _limit_value(value: int) -> int:
    # RLIM_INFINITY is all ones; Python has it as -1.
    return value if value < 1 << 63 else value - (1 << 64)


def _load_filter(program: Program) -> None:
    chosen = program.seccomp
    if chosen is None:
        return
    trace.step("load seccomp filter")
    if not chosen.notify:
        seccomp.load(chosen.bpf, chosen.flags)
        return
    beside = chosen.notified.isdisjoint(_SENDING)
    if program.alone:
        prctl(PR_SET_DUMPABLE, 1)
    listener = seccomp.load(chosen.bpf, chosen.flags, listener=True)
    program.channel.offer_listener(listener, beside=beside)
    if program.alone:
        prctl(PR_SET_DUMPABLE, 0)
    os.close(listener)


def _environment(process: Process, root: int) -> list[str]:
    """The environment with each name once, set as the last entry of that name says: getenv(3) would find the first."""
    entries = {entry.partition("=")[0]: entry for entry in process.get("env") or []}
    if entries.get("HOME", "HOME=") == "HOME=":
        trace.step("find home directory", "/etc/passwd")
        entries["HOME"] = f"HOME={credentials.home_of(root, (process.get('user') or {}).get('uid') or 0)}"
    return list(entries.values())


def _own_streams(process: Process) -> None:
    """Give pipes and terminals to the user, so that the program can open /dev/stdout anew; what refuses, stays."""
    user = process.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    if not uid:
        return
    trace.step("own standard streams")
    for fd in range(3):
        status = os.fstat(fd)
        if status.st_uid == uid or (stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)):
            continue
        try:
            # A terminal's group stays "tty", as devpts made it.
            os.fchown(fd, uid, status.st_gid)
        except OSError:
            try:
                os.fchown(fd, uid, gid)
            except OSError:
                continue


def _may_set_groups() -> bool:
    try:
        # Not held up by a pipe of that name.
        fd = os.open("/proc/self/setgroups", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        # Of a file of the image's nothing is believed: a "deny" in it would leave the runtime's groups to the program.
        return filesystem_type(fd) != PROC_SUPER_MAGIC or os.read(fd, 16).strip() != b"deny"
    finally:
        os.close(fd)


def _enter_early(root: int, cwd: str) -> bool:
    try:
        _enter(root, cwd)
    except PermissionError:
        return False
    _check_inside(cwd)
    return True


def _enter(root: int, cwd: str) -> None:
    trace.step("change directory", cwd)
    # Never through a magic link: /proc/self/fd/N may be a directory of the host (CVE-2024-21626).
    fd = open_in_root(root, cwd, _O_DIRECTORY_PATH)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def _enter_late(root: int, cwd: str) -> None:
    """As the program's user, and perhaps under its filter."""
    try:
        _enter(root, cwd)
    except PermissionError:
        # A filter without openat2, or it is so: chdir(2) follows magic links, and the check is all there is.
        os.chdir(cwd)
    _check_inside(cwd)


def _check_inside(cwd: str) -> None:
    trace.step("check working directory", cwd)
    if not os.getcwd().startswith("/"):
        raise OSError(errno.ENOENT, "the working directory is outside the container", cwd)


def find_program(process: Process) -> str:
    """The file that ``args[0]`` names: as it is when it holds a slash, else the first in the process's PATH.

    Of a container without a process it is empty, which no file is.

    Raises:
        ProgramFailed: It is not there, or not executable.
    """
    name = process["args"][0]
    if not name:
        return name
    stage = f"find program {name!r}"
    trace.step(stage)
    try:
        return _find(process, name)
    except OSError as error:
        raise ProgramFailed(stage, error) from None


def _find(process: Process, name: str) -> str:
    if "/" in name:
        _check_executable(name)
        return name
    search = _DEFAULT_PATH
    for entry in process.get("env") or []:
        if entry.startswith("PATH="):
            search = entry[5:]
    denied = False
    for directory in search.split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            _check_executable(path)
        except PermissionError:
            denied = True
        except OSError:
            continue
        else:
            return path
    if denied:
        raise PermissionError(13, "permission denied", name)
    raise FileNotFoundError(2, f"executable file not found in $PATH ({search})", name)


def _check_executable(path: str) -> None:
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise PermissionError(13, "permission denied: is a directory", path)
    # The real ids are the effective ones by now, and access(2) asks less of a filter than faccessat2(2).
    if not os.access(path, os.X_OK):
        raise PermissionError(13, "permission denied: not executable", path)


def trampoline(program: Program) -> int:
    """The trampoline that fits, made before it is needed; -1 where the process must be executed from here."""
    process = program.process
    if program.direct or not stage2.available() or labels.on_exec(process):
        return -1
    chosen = program.seccomp
    if chosen is None or chosen.notify or not process.get("noNewPrivileges"):
        return stage2.program()
    return stage2.program(chosen.bpf, chosen.flags)


def _prepare(program: Program, path: str, environment: list[str]) -> Image:
    channel = program.channel
    fd = trampoline(program)
    late = program.process.get("noNewPrivileges") and program.seccomp is not None
    if late and (fd < 0 or (program.seccomp is not None and program.seccomp.notify)):
        _load_filter(program)
    trace.step(f"execute {path!r}")
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    lowest = 3 + program.preserve_fds
    if trace.enabled() and not program.borrowing:
        channel.send(TRACE, trace.take())
    channel.send(READY)
    prctl(PR_SET_PDEATHSIG, 0)
    if fd < 0:
        _execute_directly(program, path, environment)
    fifo, report = (
        fcntl.fcntl(one, fcntl.F_DUPFD, lowest) if one >= 0 else -1 for one in (program.fifo, program.report)
    )
    argv = stage2.arguments(path, program.process["args"], fifo=fifo, report=report)
    return Image(fd, argv, environment)


def execute(image: Image) -> None:
    """Execute what :func:`become` returned; raises OSError or does not return."""
    stage2.execute(image.fd, image.argv, image.environment)


def _execute_directly(program: Program, path: str, environment: list[str]) -> None:
    """Without a trampoline: wait and execute from here."""
    program.channel.close()
    if program.fifo >= 0:
        os.read(program.fifo, 1)
    try:
        for act in program.before_exec:
            act()
        stage2.execute_path(path, program.process["args"], environment)
    except BaseException as error:  # noqa: BLE001 -- it is told to whoever started us
        number = getattr(error, "errno", 0) or 0
        if program.report >= 0:
            os.write(program.report, number.to_bytes(4, sys.byteorder) + str(error).encode("utf-8", "replace")[:2000])
        os._exit(127 if number == 2 else 126)

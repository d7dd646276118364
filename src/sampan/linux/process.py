"""Processes: clone3(2), pidfds, prctl(2), close_range(2), memfds."""

import ctypes
import errno
import os
import select

from sampan.linux.syscall import fail, held, libc, syscall

CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

CLOSE_RANGE_CLOEXEC = 4

_MFD_EXEC = 0x10

F_ADD_SEALS = 1033
F_SEAL_SEAL = 1
F_SEAL_SHRINK = 2
F_SEAL_GROW = 4
F_SEAL_WRITE = 8

_SYS_CLONE3 = 435
_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_CLOSE_RANGE = 436
_SYS_PIDFD_GETFD = 438


class CloneArgs(ctypes.Structure):
    """``struct clone_args`` of clone3(2), as of Linux 5.7."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_fork_child.restype = None


def clone3(flags: int, *, exit_signal: int = 17, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork into new namespaces with one system call.

    The caller must be single-threaded: this is fork(2) without the C library's handlers. The child runs the
    interpreter's own after-fork work, as os.fork() would.

    Args:
        flags: ``CLONE_NEW*``, ``CLONE_PARENT``; ``CLONE_PIDFD`` is added.
        exit_signal: Sent to the parent when the child ends; SIGCHLD. Must be 0 with ``CLONE_PARENT``.
        cgroup_fd: Directory of the cgroup v2 to be born in, or -1.

    Returns:
        In the parent, the child's pid and its pidfd (close-on-exec). In the child, ``(0, -1)``.
    """
    pidfd = ctypes.c_int(-1)
    args = CloneArgs(
        flags=flags | CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=0 if flags & CLONE_PARENT else exit_signal,
    )
    if cgroup_fd >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid: int = held.syscall(ctypes.c_long(_SYS_CLONE3), ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    if pid < 0:
        raise fail()
    if pid == 0:
        _after_fork_child()
        return 0, -1
    return pid, pidfd.value


def pidfd_open(pid: int) -> int:
    """A descriptor of process ``pid``; polls readable when it has ended."""
    return syscall(_SYS_PIDFD_OPEN, pid, 0, path=f"/proc/{pid}")


def has_ended(pidfd: int, patience: int = 0) -> bool:
    """Whether a process has ended, reaped or not; ``patience`` is how many milliseconds it is given for that."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience))


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal the very process that ``pidfd`` refers to.

    Raises:
        ProcessLookupError: It has ended.
    """
    syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signal, None, 0)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Another process's descriptor as one of the caller's own, close-on-exec.

    Raises:
        PermissionError: The caller may not trace that process.
        OSError: EBADF without such a descriptor, ENOSYS before Linux 5.6.
    """
    return syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)


# A function object of its own, so that its argument types can be fixed: it is called some fifty times for a container.
_prctl = libc["prctl"]
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) for options whose arguments are integers."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        raise fail()
    return result


def set_name(name: str) -> None:
    """Set the calling thread's name, as ps shows it; 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    if libc.prctl(PR_SET_NAME, buffer, 0, 0, 0) != 0:
        raise fail()


def become_subreaper() -> None:
    """Make orphans among the caller's descendants the caller's children."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2): close descriptors, or mark them with ``CLOSE_RANGE_CLOEXEC``."""
    syscall(_SYS_CLOSE_RANGE, first, last, flags)


def sealed_memfd(name: str, content: bytes, *, cloexec: bool = True, executable: bool = False) -> int:
    """A memory file whose ``content`` nobody, root included, can change any more (fcntl(2), F_ADD_SEALS)."""
    import fcntl

    flags = os.MFD_ALLOW_SEALING | (os.MFD_CLOEXEC if cloexec else 0)
    try:
        fd = os.memfd_create(name, flags | (_MFD_EXEC if executable else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux before 6.3 does not know the flag, and needs none
            raise
        fd = os.memfd_create(name, flags)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd

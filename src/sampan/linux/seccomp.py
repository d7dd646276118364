"""System call filters: the seccomp(2) system call, and the shape of classic BPF programs."""

import ctypes
import os

from sampan.linux.syscall import fail, libc

SECCOMP_SET_MODE_FILTER = 1

SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

#: Bytes of one ``struct sock_filter``, and the most of them that the kernel takes (BPF_MAXINSNS).
INSTRUCTION_SIZE = 8
MAX_INSTRUCTIONS = 4096

# seccomp(2) by machine; the architectures with the generic table share one number.
_NUMBERS = {"x86_64": 317, "i686": 354, "armv7l": 383, "ppc64le": 358, "s390x": 348}
_SYS_SECCOMP = _NUMBERS.get(os.uname().machine, 277)


class SockFprog(ctypes.Structure):
    """``struct sock_fprog``: a classic BPF program."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load(bpf: bytes, flags: int = 0, *, listener: bool = False) -> int:
    """Put the calling thread, and what it will execute, under a filter for ever.

    The caller has CAP_SYS_ADMIN in its user namespace, or has set no_new_privs.

    Args:
        bpf: A program: 8-byte instructions.
        flags: ``SECCOMP_FILTER_FLAG_*``.
        listener: Also make a descriptor that receives the system calls that the filter sends to user space.

    Returns:
        The listener, close-on-exec, or -1.

    Raises:
        OSError: EINVAL for a program or flags that the kernel refuses, EACCES without the privilege.
    """
    program = SockFprog(len(bpf) // INSTRUCTION_SIZE, bpf)
    if listener:
        flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER
    result: int = libc.syscall(
        ctypes.c_long(_SYS_SECCOMP),
        ctypes.c_long(SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(flags),
        ctypes.byref(program),
    )
    if result < 0:
        raise fail()
    return result if listener else -1

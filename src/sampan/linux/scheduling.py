"""Scheduling: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), personality(2), set_mempolicy(2)."""

import ctypes
import os

from sampan.linux.syscall import fail, libc, syscall

_MACHINE = os.uname().machine
# Numbers on x86-64 and on the architectures of the generic table.
_SYS_SCHED_SETATTR = 314 if _MACHINE == "x86_64" else 274
_SYS_IOPRIO_SET = 251 if _MACHINE == "x86_64" else 30
_SYS_SET_MEMPOLICY = 238 if _MACHINE == "x86_64" else 237

#: Names of the runtime specification -> numbers of include/uapi/linux/sched.h.
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}


class SchedAttr(ctypes.Structure):
    """``struct sched_attr``, as of Linux 5.3."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


def sched_setattr(
    policy: int,
    *,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> None:
    """Set the caller's scheduling policy and its parameters."""
    attr = SchedAttr(ctypes.sizeof(SchedAttr), policy, flags, nice, priority, runtime, deadline, period)
    syscall(_SYS_SCHED_SETATTR, 0, ctypes.byref(attr), 0)


def run_anywhere() -> None:
    """Let the caller run on every CPU that its cpuset has, now or later: sched_setaffinity(2) with all bits set."""
    # More bits than any kernel knows, which ignores the rest.
    if libc.sched_setaffinity(0, ctypes.c_size_t(1024), b"\xff" * 1024) != 0:
        raise fail()


def ioprio_set(kind: int, level: int) -> None:
    """Set the caller's i/o class and its level in it."""
    syscall(_SYS_IOPRIO_SET, 1, 0, kind << 13 | level)


def personality(domain: int) -> None:
    """Set the caller's execution domain."""
    if libc.personality(ctypes.c_ulong(domain)) < 0:
        raise fail()


def set_mempolicy(mode: int, nodes: set[int]) -> None:
    """Set the NUMA policy of the caller's memory."""
    if not nodes:
        syscall(_SYS_SET_MEMPOLICY, mode, None, 0)
        return
    words = max(nodes) // 64 + 1
    mask = (ctypes.c_uint64 * words)()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    syscall(_SYS_SET_MEMPOLICY, mode, ctypes.byref(mask), words * 64 + 1)

"""eBPF: assembling a program, loading it, and hanging it on a cgroup (bpf(2))."""

import ctypes
import os
import sys

from sampan.linux.syscall import fail, libc

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2

_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_PROG_QUERY = 16

_NUMBERS = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_SYS_BPF = _NUMBERS.get(os.uname().machine, 280)

# Operation codes (linux/bpf.h, linux/bpf_common.h): what this project's programs need.
LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
MOVE = 0xBF  # dst = src
MOVE_VALUE = 0xB7  # dst = value
AND_VALUE_32 = 0x54  # dst = (u32)dst & value
RIGHT_SHIFT_32 = 0x74  # dst = (u32)dst >> value
JUMP_EQUAL = 0x15
JUMP_NOT_EQUAL = 0x55
EXIT = 0x95


class _ProgLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_char_p),
        ("license", ctypes.c_char_p),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


class _Attach(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint32) for name in ("target_fd", "attach_bpf_fd", "attach_type", "flags", "replace_bpf_fd")
    )


class _Query(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("prog_cnt", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _ById(ctypes.Structure):
    _fields_ = (("prog_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


def _bpf(command: int, attributes: ctypes.Structure) -> int:
    result: int = libc.syscall(
        ctypes.c_long(_SYS_BPF),
        ctypes.c_long(command),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if result < 0:
        raise fail()
    return result


def instruction(code: int, *, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One ``struct bpf_insn``."""
    registers = dst | src << 4 if sys.byteorder == "little" else dst << 4 | src
    return (
        bytes((code, registers))
        + offset.to_bytes(2, sys.byteorder, signed=True)
        + (value & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
    )


def load(kind: int, program: bytes, name: str) -> int:
    """Have the kernel check a program; a descriptor of it, close-on-exec."""
    attributes = _ProgLoad(prog_type=kind, insn_cnt=len(program) // 8, insns=program, license=b"Apache")
    attributes.prog_name = name.encode()[:15]
    return _bpf(_PROG_LOAD, attributes)


def attach(cgroup_fd: int, program_fd: int, kind: int, flags: int = BPF_F_ALLOW_MULTI) -> None:
    """Run a program for a cgroup and those under it, after and together with those that are there."""
    _bpf(_PROG_ATTACH, _Attach(target_fd=cgroup_fd, attach_bpf_fd=program_fd, attach_type=kind, flags=flags))


def detach(cgroup_fd: int, program_fd: int, kind: int) -> None:
    """Take a program off a cgroup."""
    _bpf(_PROG_DETACH, _Attach(target_fd=cgroup_fd, attach_bpf_fd=program_fd, attach_type=kind))


def attached(cgroup_fd: int, kind: int) -> list[int]:
    """Ids of the programs on this very cgroup, at most 64 of them."""
    ids = (ctypes.c_uint32 * 64)()
    attributes = _Query(target_fd=cgroup_fd, attach_type=kind, prog_ids=ctypes.addressof(ids), prog_cnt=64)
    _bpf(_PROG_QUERY, attributes)
    return list(ids[: attributes.prog_cnt])


def open_program(program_id: int) -> int:
    """A descriptor of a loaded program, close-on-exec."""
    return _bpf(_PROG_GET_FD_BY_ID, _ById(prog_id=program_id))

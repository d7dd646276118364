"""The trampoline: 300 bytes of program between the runtime and the container's own.

Once a container is set up, its init does not execute the user's program but this one, from a file that nobody can
change. It waits for ``start`` where that is asked, executes the user's program, and reports why it could not. So:

- /proc/self/exe of a created container is a file that nobody can write, never the host's interpreter
  (CVE-2019-5736);
- a created container is one page of memory, not an interpreter, and its memory cgroup is not charged for one.

How it is called: ``argv = [PATH, FDS, ARGV0, ARGV1, ...]``, the environment as the program will have it. ``FDS``
are two characters: ``"0" + n`` for descriptor n, ``"/"`` for none. The first is a fifo, open for reading, that
delivers one byte when the program may run; the second takes four bytes, the errno, if execve(2) fails. Both are
made close-on-exec, so that who reads the second sees its end when the program runs.

A seccomp filter, where the process has no_new_privs, is part of the program and loaded right before execve(2): so
what a profile must allow for the runtime's own sake is execve(2) alone.

It exits with 127 if the program does not exist and with 126 if it can't be executed for another reason, as shells do.
"""

from __future__ import annotations

import ctypes
import os

from sampan.linux import readonly
from sampan.linux.syscall import X86_64, fail, libc

_BASE = 0x400000
#: Length of the headers: the program starts behind them.
_ENTRY = 64 + 2 * 56

# The program, x86-64. Registers kept: rbx = argv, r12 = fifo, r13 = report, r14 = envp.
# ruff: noqa: ERA001 -- the comments are the program
_WAIT = bytes.fromhex(
    # _start: the kernel leaves argc at [rsp], argv from [rsp+8], then a null, then envp
    "4c8b2424"      # mov r12, [rsp]            argc
    "488d5c2408"    # lea rbx, [rsp+8]          argv
    "4e8d74e308"    # lea r14, [rbx+r12*8+8]    envp
    "488b4b08"      # mov rcx, [rbx+8]          argv[1]: the descriptors
    "440fb621"      # movzx r12d, byte [rcx]
    "440fb66901"    # movzx r13d, byte [rcx+1]
    "4183ec30"      # sub r12d, '0'             -1 for '/': sets the sign flag
    "7823"          # js  no_fifo
    # fcntl(fifo, F_SETFD, FD_CLOEXEC)
    "4489e7"        # mov edi, r12d
    "6a025e"        # push 2; pop rsi
    "6a015a"        # push 1; pop rdx
    "6a4858"        # push 72; pop rax
    "0f05"          # syscall
    # again: read(fifo, rsp-8, 1)
    "4489e7"        # mov edi, r12d
    "488d7424f8"    # lea rsi, [rsp-8]
    "6a015a"        # push 1; pop rdx
    "31c0"          # xor eax, eax
    "0f05"          # syscall
    "4883f8fc"      # cmp rax, -4               EINTR
    "74eb"          # je  again
    # no_fifo:
    "4183ed30"      # sub r13d, '0'
    "780e"          # js  no_report
    # fcntl(report, F_SETFD, FD_CLOEXEC)
    "4489ef"        # mov edi, r13d
    "6a025e"        # push 2; pop rsi
    "6a015a"        # push 1; pop rdx
    "6a4858"        # push 72; pop rax
    "0f05"          # syscall
)  # fmt: skip
# no_report: only in a program with a filter:


def _load_filter(flags: int, program: int) -> bytes:
    return bytes.fromhex(
        # seccomp(SECCOMP_SET_MODE_FILTER, flags, &program)
        "6a015f"                                            # push 1; pop rdi
        f"be{flags.to_bytes(4, 'little').hex()}"            # mov esi, flags
        f"ba{program.to_bytes(4, 'little').hex()}"          # mov edx, program
        "b83d010000"                                        # mov eax, 317
        "0f05"                                              # syscall
        "85c0"                                              # test eax, eax
        "750f"                                              # jnz failed
    )  # fmt: skip


_EXECUTE = bytes.fromhex(
    # execve(argv[0], argv + 2, envp)
    "488b3b"        # mov rdi, [rbx]
    "488d7310"      # lea rsi, [rbx+16]
    "4c89f2"        # mov rdx, r14
    "6a3b58"        # push 59; pop rax
    "0f05"          # syscall
    # failed: write(report, &errno, 4); on descriptor -1 that does nothing
    "f7d8"          # neg eax
    "50"            # push rax
    "89c3"          # mov ebx, eax
    "4489ef"        # mov edi, r13d
    "4889e6"        # mov rsi, rsp
    "6a045a"        # push 4; pop rdx
    "6a0158"        # push 1; pop rax
    "0f05"          # syscall
    # exit_group(errno == ENOENT ? 127 : 126)
    "31ff"          # xor edi, edi
    "83fb02"        # cmp ebx, 2
    "400f94c7"      # sete dil
    "83c77e"        # add edi, 126
    "b8e7000000"    # mov eax, 231
    "0f05"          # syscall
)  # fmt: skip


def elf(code: bytes) -> bytes:
    """A static x86-64 executable of ``code``: ELF header, one loadable segment, a stack that is not executable."""
    size = _ENTRY + len(code)

    def words(*pairs: tuple[int, int]) -> bytes:
        return b"".join(value.to_bytes(width, "little") for value, width in pairs)

    header = b"\x7fELF\x02\x01\x01" + bytes(9) + words(
        (2, 2), (62, 2), (1, 4),         # ET_EXEC, EM_X86_64, EV_CURRENT
        (_BASE + _ENTRY, 8),             # entry
        (64, 8), (0, 8), (0, 4),         # program headers, no sections, flags
        (64, 2), (56, 2), (2, 2),        # sizes and count
        (0, 2), (0, 2), (0, 2),
    )  # fmt: skip
    load = words((1, 4), (5, 4), (0, 8), (_BASE, 8), (_BASE, 8), (size, 8), (size, 8), (0x1000, 8))  # PT_LOAD, r-x
    stack = words((0x6474E551, 4), (6, 4), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8), (16, 8))  # PT_GNU_STACK, rw-
    return header + load + stack + code


def build(bpf: bytes = b"", flags: int = 0) -> bytes:
    """The trampoline as an executable file; with a seccomp filter, one that loads it just before it executes."""
    if not bpf:
        return elf(_WAIT + _EXECUTE)
    code = len(_WAIT) + len(_load_filter(0, 0)) + len(_EXECUTE)
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; } and behind it the filter
    program = _BASE + _ENTRY + code
    header = (len(bpf) // 8).to_bytes(8, "little") + (program + 16).to_bytes(8, "little")
    return elf(_WAIT + _load_filter(flags, program) + _EXECUTE + header + bpf)


_programs: dict[tuple[bytes, int], int] = {}
_MOST_KEPT = 16


def available() -> bool:
    """Whether this machine's architecture has a trampoline."""
    return X86_64


def program(bpf: bytes = b"", flags: int = 0) -> int:
    """The trampoline, which nobody can change, made once for each filter; close-on-exec, shared by containers."""
    key = (bpf, flags)
    fd = _programs.get(key, -1)
    if fd < 0:
        while len(_programs) >= _MOST_KEPT:
            os.close(_programs.pop(next(iter(_programs))))
        fd = _programs[key] = readonly.program("sampan-init", build(bpf, flags))
    return fd


def made() -> list[int]:
    """The files that :func:`program` has made."""
    return list(_programs.values())


def arguments(path: str, argv: list[str], *, fifo: int = -1, report: int = -1) -> list[str]:
    """What the trampoline is to be called with in order to execute ``path`` with ``argv``."""
    return [path, os.fsdecode(bytes((48 + fifo, 48 + report))), *argv]


def execute(fd: int, argv: list[str] | list[bytes], environment: list[str] | list[bytes]) -> None:
    """Execute the program that ``fd`` is (fexecve(3)); raises OSError or does not return.

    The environment is passed as it is: it may hold a name twice, or an entry without ``=``.
    """
    libc.fexecve(fd, _array(argv), _array(environment))
    raise fail()


def execute_path(path: str, argv: list[str], environment: list[str]) -> None:
    """The same by path (execve(2))."""
    libc.execve(os.fsencode(path), _array(argv), _array(environment))
    raise fail(path)


def _array(texts: list[str] | list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*[os.fsencode(text) for text in texts], None)

"""The pause program: process 1 of a pod whose containers share a PID namespace. 73 bytes of code.

It does three things. Children that nobody waits for vanish at once (SIGCHLD is ignored, so the kernel reaps). SIGTERM
and SIGINT end it, and with it, by the kernel's rule for process 1, every process of the pod. Else it sleeps.
"""

from __future__ import annotations

from sampan.linux import readonly
from sampan.linux.syscall import X86_64
from sampan.runtime.stage2 import elf

# x86-64, position independent.
# ruff: noqa: ERA001 -- the comments are the program
_CODE = bytes.fromhex(
    # A struct kernel_sigaction on the stack, last field first
    "6a00"          # push 0                    sa_mask: none
    "6a00"          # push 0                    sa_restorer: none
    "6a02"          # push 2                    sa_flags: SA_NOCLDWAIT
    "6a01"          # push 1                    sa_handler: SIG_IGN
    # rt_sigaction(SIGCHLD, rsp, NULL, 8)
    "6a115f"        # push 17; pop rdi
    "4889e6"        # mov rsi, rsp
    "31d2"          # xor edx, edx
    "6a08415a"      # push 8; pop r10
    "6a0d58"        # push 13; pop rax
    "0f05"          # syscall
    # The set {SIGINT, SIGTERM}. Process 1 is not sent a signal that it neither handles nor blocks.
    "6802400000"    # push 0x4002
    # rt_sigprocmask(SIG_BLOCK, rsp, NULL, 8)
    "31ff"          # xor edi, edi
    "4889e6"        # mov rsi, rsp
    "31d2"          # xor edx, edx
    "6a0e58"        # push 14; pop rax
    "0f05"          # syscall
    # wait: rt_sigtimedwait(rsp, NULL, NULL, 8)
    "4889e7"        # mov rdi, rsp
    "31f6"          # xor esi, esi
    "31d2"          # xor edx, edx
    "6a08415a"      # push 8; pop r10
    "b880000000"    # mov eax, 128
    "0f05"          # syscall
    "85c0"          # test eax, eax
    "78ea"          # js wait                   EINTR: stopped and continued, or traced
    # exit_group(0)
    "31ff"          # xor edi, edi
    "b8e7000000"    # mov eax, 231
    "0f05"          # syscall
)  # fmt: skip

_program = -1


def available() -> bool:
    """Whether this machine's architecture has the program."""
    return X86_64


def program() -> int:
    """The program as a file that nobody can change, made once; close-on-exec."""
    global _program
    if _program < 0:
        _program = readonly.program("pause", elf(_CODE))
    return _program

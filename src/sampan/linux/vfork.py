"""A child that borrows its maker's memory until it executes a program: clone3(2) with CLONE_VM and CLONE_VFORK.

A fork copies the page tables of an interpreter, and then each page that either side touches: a thousand page faults,
most of a container's start. This child copies nothing. It runs a Python function on a stack of its own, in the same
interpreter, while its maker stands still; when the function has returned, a few instructions of machine code execute
the program. Then the maker goes on, its interpreter as the function left it.

What that means for the function:

- What it does to the *kernel's* idea of the process (descriptors, namespaces, ids, directory, signal mask) is the
  child's alone. What it does to *Python objects* is its maker's too: it must not close a socket object that the maker
  will close, nor cache what it sees.
- It returns; it neither exits nor executes. Nobody can answer it: the maker stands still.
- Killed half-way, it leaves the interpreter in a state that nobody can repair. Then the maker ends at once, with
  status :data:`ABANDONED`. So this is for processes that can be spared.

:func:`spawn_inside` is for a child that others could kill. The function runs outside of their PID namespace, where they
cannot see it; at its end a second child, their neighbour, is made, which runs nothing but those instructions: killed,
it leaves nothing unfinished. Nobody waits for that one but by his own choice, since they could stop it for ever.

All signals are blocked meanwhile, so that no handler of the maker runs in the child.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import os
import sys

from sampan.linux.process import CLONE_PARENT, CloneArgs
from sampan.linux.syscall import X86_64, held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Exit status of a maker whose child was killed while it borrowed.
ABANDONED = 137

_CLONE_VM = 0x100
_CLONE_VFORK = 0x4000
_SIGCHLD = 17
_STACK = 1 << 20
_PAGE = 4096
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS = 0x22

# long spawn(struct request *rdi): the pid or -errno. It is called with the interpreter lock held.
# ruff: noqa: ERA001 -- the comments are the program
_PROGRAM = bytes.fromhex(
    "53"                # push rbx
    "4889fb"            # mov rbx, rdi
    "488b33"            # mov rsi, [rbx]        size of struct clone_args
    "488d7b40"          # lea rdi, [rbx+64]     struct clone_args
    "b8b3010000"        # mov eax, 435          clone3
    "0f05"              # syscall
    "4885c0"            # test rax, rax
    "741a"              # jz child
    "4883f800"          # cmp rax, 0
    "7812"              # js out
    "837b3000"          # cmp dword [rbx+48], 0
    "750c"              # jne out
    # The child never came back from the function: don't touch the interpreter again.
    "bf89000000"        # mov edi, 137
    "b8e7000000"        # mov eax, 231          exit_group
    "0f05"              # syscall
    # out:
    "5b"                # pop rbx
    "c3"                # ret
    # child:
    "31ed"              # xor ebp, ebp
    "ff5308"            # call [rbx+8]          the function
    "ff4330"            # inc dword [rbx+48]    it returned
    "85c0"              # test eax, eax
    "7579"              # jnz end
    "837b3c00"          # cmp dword [rbx+60], 0 a second child?
    "7454"              # je execute
    "488b33"            # mov rsi, [rbx]
    "488dbba0000000"    # lea rdi, [rbx+160]    struct clone_args of the second
    "b8b3010000"        # mov eax, 435
    "0f05"              # syscall
    "85c0"              # test eax, eax
    "740c"              # jz second
    "894338"            # mov [rbx+56], eax     its pid, or -errno
    "31ff"              # xor edi, edi
    "b8e7000000"        # mov eax, 231          exit_group
    "0f05"              # syscall
    # second:
    "b870000000"        # mov eax, 112          setsid
    "0f05"              # syscall
    "4c8ba398000000"    # mov r12, [rbx+152]    the files to join by
    # next: write(*r12++, "0", 1), until one is -1
    "418b3c24"          # mov edi, [r12]
    "85ff"              # test edi, edi
    "781d"              # js execute
    "488db3f8000000"    # lea rsi, [rbx+248]
    "ba01000000"        # mov edx, 1
    "b801000000"        # mov eax, 1
    "0f05"              # syscall
    "85c0"              # test eax, eax
    "7822"              # js failed
    "4983c404"          # add r12, 4
    "ebdb"              # jmp next
    # execute: execveat(fd, "", argv, envp, AT_EMPTY_PATH)
    "8b7b10"            # mov edi, [rbx+16]
    "488b7328"          # mov rsi, [rbx+40]
    "488b5318"          # mov rdx, [rbx+24]
    "4c8b5320"          # mov r10, [rbx+32]
    "41b800100000"      # mov r8d, 0x1000
    "b842010000"        # mov eax, 322
    "0f05"              # syscall
    # failed:
    "894334"            # mov [rbx+52], eax     -errno
    # end:
    "bf01000000"        # mov edi, 1
    "b8e7000000"        # mov eax, 231
    "0f05"              # syscall
)  # fmt: skip


class _Request(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint64),
        ("function", ctypes.c_void_p),
        ("fd", ctypes.c_int64),
        ("argv", ctypes.c_void_p),
        ("environment", ctypes.c_void_p),
        ("empty", ctypes.c_char_p),
        ("returned", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("pid", ctypes.c_int32),
        ("twice", ctypes.c_int32),
        ("clone", CloneArgs),
        ("files", ctypes.c_void_p),
        ("second", CloneArgs),
        ("zero", ctypes.c_char),
    )


class Image:
    """What the child is to execute.

    Args:
        fd: The program, an open file.
        argv: Its arguments.
        environment: Its environment, passed as it is.
    """

    __slots__ = ("argv", "environment", "fd")

    def __init__(self, fd: int, argv: list[str], environment: list[str]) -> None:
        self.fd = fd
        # What can't be encoded is found out here, by who can still tell.
        self.argv = [os.fsencode(text) for text in argv]
        self.environment = [os.fsencode(text) for text in environment]


_call: Any = None
#: :func:`_enter` as C sees it.
_entry: Any = None
_stack = 0
#: The one request that can be under way, and what its child does.
_request = _Request()
_child: Callable[[], Image | None] | None = None
#: What the last child reads until it has executed.
_arrays: list[Any] = []
_signals: set[int] = set()


def available() -> bool:
    """Whether this machine and this interpreter allow it; prepares for it, once.

    CPython 3.14 looks at the stack pointer, and would not know the child's.
    """
    global _call, _entry, _stack
    if _call is None:
        _call = False
        if X86_64 and sys.version_info < (3, 14) and sys.implementation.name == "cpython":
            code = _map(_PAGE)
            _stack = _map(_STACK)
            if code and _stack:
                ctypes.memmove(code, _PROGRAM, len(_PROGRAM))
                if held.mprotect(ctypes.c_void_p(code), ctypes.c_size_t(_PAGE), _PROT_READ | _PROT_EXEC) == 0:
                    _request.size = ctypes.sizeof(CloneArgs)
                    _entry = ctypes.PYFUNCTYPE(ctypes.c_int)(_enter)
                    _request.function = ctypes.cast(_entry, ctypes.c_void_p)
                    _request.empty = b""
                    _request.zero = b"0"
                    # Not CLONE_VFORK: who may signal the child could hold its makers up by stopping it.
                    _request.second.flags = _CLONE_VM | CLONE_PARENT
                    _signals.update(_signal.valid_signals())
                    _call = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(code)
    return _call is not False


def _map(size: int) -> int:
    mapped: int = held.mmap(None, ctypes.c_size_t(size), _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    return 0 if mapped == _FAILED else mapped


held.mmap.restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value


def spawn(flags: int, child: Callable[[], Image | None]) -> tuple[int, int]:
    """Make a child that calls ``child`` and executes what that returns; with None it ends with status 1.

    To be called by a process with one thread, where :func:`available` says so.

    Args:
        flags: ``CLONE_NEW*``.
        child: See above. An exception ends the child, like None.

    Returns:
        The child's pid, and the errno with which it could not be executed, or 0.
    """
    _request.twice = 0
    pid = _spawn(flags, child)
    return pid, outcome()


def spawn_inside(files: list[int], child: Callable[[], Image | None]) -> int:
    """The same for a program in the PID namespace that ``child`` chooses by setns(2), for the process made last.

    Args:
        files: The process writes "0" to each before it executes: to join control groups. They are its maker's too.
        child: See :func:`spawn`. It is in the caller's PID namespace and control groups.

    Returns:
        The pid of the process, 0 if there is none since ``child`` gave nothing to execute. It is the caller's child,
        leads a session, and goes on by itself: once it has executed or ended, which a close-on-exec descriptor of its
        tells, :func:`outcome` says which, and not before that may another child be made.
    """
    numbers = (ctypes.c_int32 * (len(files) + 1))(*files, -1)
    _request.files = ctypes.addressof(numbers)
    _request.twice = 1
    _request.pid = 0
    first = _spawn(0, child)
    _arrays.append(numbers)  # the second child may read them still
    try:
        os.waitpid(first, 0)
    except ChildProcessError:
        pass  # the caller ignores SIGCHLD
    if _request.pid < 0:
        raise OSError(-_request.pid, os.strerror(-_request.pid))
    made: int = _request.pid
    return made


def outcome() -> int:
    """The errno with which the process that :func:`spawn_inside` made could not join or be executed, or 0."""
    _arrays.clear()
    number: int = -_request.error
    return number


def _spawn(flags: int, child: Callable[[], Image | None]) -> int:
    global _child
    _arrays.clear()
    clone = _request.clone
    clone.flags = flags | _CLONE_VM | _CLONE_VFORK
    clone.exit_signal = _SIGCHLD
    clone.stack = _stack
    clone.stack_size = _STACK
    _request.fd = -1
    _request.returned = _request.error = 0
    _child = child
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signals)
    try:
        pid: int = _call(ctypes.addressof(_request))
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        _child = None
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _enter() -> int:
    """In the child."""
    try:
        assert _child is not None
        image = _child()
        if image is None:
            return 1
        argv, environment = _array(image.argv), _array(image.environment)
        _arrays.extend((argv, environment))
        _request.argv = ctypes.addressof(argv)
        _request.environment = ctypes.addressof(environment)
        _request.fd = image.fd
    except BaseException:  # noqa: BLE001 -- there is nobody to raise it to
        return 1
    return 0


def _array(texts: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)

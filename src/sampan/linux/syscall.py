"""One libc, and one way to raise its errors.

Everything in :mod:`sampan.linux` calls the kernel through here. Calls through :data:`libc` release the
interpreter lock; those that must not (a raw clone) go through :data:`held`. Imports ctypes and os only: this
module is on the path of every container's start.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    _Argument = int | bytes | ctypes.c_void_p | object | None

libc = ctypes.CDLL(None, use_errno=True)
#: The same library without releasing the interpreter lock: for calls that return twice.
held = ctypes.PyDLL(None, use_errno=True)

libc.syscall.restype = ctypes.c_long
held.syscall.restype = ctypes.c_long

X86_64 = os.uname().machine == "x86_64"


def fail(path: str | bytes | None = None) -> OSError:
    """The calling thread's errno as an OSError that names ``path``; to be raised by the caller."""
    number = ctypes.get_errno()
    if path is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fsdecode(path))


# A function object of its own, so that its argument types can be fixed: without them each argument would have to be
# wrapped in an object, which costs three times as much as everything else. It is called 150 times for a container.
_syscall = libc["syscall"]
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, *(ctypes.c_void_p,) * 5)


def syscall(
    number: int,
    first: _Argument,
    second: _Argument = 0,
    third: _Argument = 0,
    fourth: _Argument = 0,
    fifth: _Argument = 0,
    *,
    path: str | bytes | None = None,
) -> int:
    """Call the kernel directly.

    Args:
        number: System call number on this architecture.
        first: Integers are passed as C longs, bytes and ctypes objects by reference, like the others.
        second: What a call does not take, it does not look at.
        third: See above.
        fourth: See above.
        fifth: See above.
        path: What to name in the error.

    Raises:
        OSError: The call returned -1.
    """
    result: int = _syscall(number, first, second, third, fourth, fifth)
    if result < 0:
        raise fail(path)
    return result

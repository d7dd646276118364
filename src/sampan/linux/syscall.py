"""One libc, and one way to raise its errors.

Everything in :mod:`sampan.linux` calls the kernel through here. Calls through :data:`libc` release the
interpreter lock; those that must not (a raw clone) go through :data:`held`. Imports ctypes and os only: this
module is on the path of every container's start.
"""

import ctypes
import os

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


def syscall(number: int, *args: int | bytes | ctypes.c_void_p | object | None, path: str | bytes | None = None) -> int:
    """Call the kernel directly.

    Args:
        number: System call number on this architecture.
        args: Integers are passed as C longs, bytes and ctypes objects by reference.
        path: What to name in the error.

    Raises:
        OSError: The call returned -1.
    """
    result: int = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        raise fail(path)
    return result

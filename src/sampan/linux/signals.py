"""Signals as messages: signalfd(2)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations
import ctypes
import os
import sys

from sampan.linux.syscall import fail, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_SFD_NONBLOCK, _SFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
#: A mask as the kernel has it, and the rest of what the C library takes.
_MASK, _SIGSET = 8, 128
#: ``struct signalfd_siginfo``: the number comes first, whose pid sent it fourth.
_INFO, _PID = 128, 12


def receive(numbers: AbstractSet[int]) -> int:
    """Block signals and have them told by a descriptor, which polls readable; the caller closes it.

    A fault of the caller's own ends it all the same, be it SIGSEGV or another: the kernel lets none be blocked.

    Args:
        numbers: Which.

    Raises:
        OSError: There are no descriptors.
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(_MASK, sys.byteorder)
    fd: int = libc.signalfd(-1, ctypes.c_char_p(mask.ljust(_SIGSET, b"\0")), _SFD_NONBLOCK | _SFD_CLOEXEC)
    if fd < 0:
        raise fail()
    return fd


def take(fd: int) -> list[tuple[int, int]]:
    """The signals that have come, each with the pid of its sender: 0 of the kernel, our own if we caused it."""
    try:
        data = os.read(fd, 32 * _INFO)
    except BlockingIOError:
        return []
    starts = range(0, len(data), _INFO)
    return [(_int(data, start), _int(data, start + _PID)) for start in starts]


def _int(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], sys.byteorder)

"""Capabilities: capset(2), the bounding set and the ambient set (capabilities(7))."""

import ctypes
import errno

from sampan.linux.process import PR_CAP_AMBIENT, PR_CAPBSET_DROP, PR_CAPBSET_READ, prctl
from sampan.linux.syscall import fail, libc

#: Names in the order of their numbers in include/uapi/linux/capability.h.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_last = -1


def last() -> int:
    """Number of the last capability that this kernel knows."""
    global _last
    if _last < 0:
        number = len(NAMES) - 1
        while number > 0:
            try:
                prctl(PR_CAPBSET_READ, number)
                break
            except OSError:
                number -= 1
        _last = number
    return _last


def mask(names: "list[str] | tuple[str, ...]") -> int:
    """A set of names as bits; a name that this kernel does not know is left out, as runc does."""
    bits = 0
    for name in names:
        number = NUMBERS.get(name, 64)
        if number <= last():
            bits |= 1 << number
    return bits


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_Pair = _Data * 2


def get() -> tuple[int, int, int]:
    """The caller's effective, permitted and inheritable sets."""
    data = _Pair()
    if libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(data)) != 0:
        raise fail()
    low, high = data[0], data[1]
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_sets(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) on the caller."""
    word = 0xFFFFFFFF
    data = _Pair(
        _Data(effective & word, permitted & word, inheritable & word),
        _Data(effective >> 32, permitted >> 32, inheritable >> 32),
    )
    if libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(data)) != 0:
        raise fail()


# For the one use of prctl(2) that comes forty times in a row, with no more arguments than it takes.
_drop = libc["prctl"]
_drop.argtypes = (ctypes.c_int, ctypes.c_ulong)


def limit_bounding(keep: int) -> None:
    """Drop from the bounding set all that ``keep`` lacks; needs CAP_SETPCAP where anything is dropped."""
    for number in range(last() + 1):
        if not keep >> number & 1 and _drop(PR_CAPBSET_DROP, number) < 0:
            error = fail()
            # Who lacks CAP_SETPCAP can drop nothing; of what is not there, nothing has to be.
            if error.errno != errno.EPERM or prctl(PR_CAPBSET_READ, number):
                raise error


def set_ambient(keep: int) -> None:
    """Make the ambient set exactly ``keep``; each must be permitted and inheritable."""
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(last() + 1):
        if keep >> number & 1:
            prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)

"""The few functions of libseccomp that turn rules into a BPF program (seccomp_init(3) and on).

Importing this module opens the library: import it only where a filter is to be compiled.
"""

import ctypes
import errno
import os

SCMP_ACT_KILL_PROCESS = 0x80000000
SCMP_ACT_KILL_THREAD = 0x00000000
SCMP_ACT_TRAP = 0x00030000
SCMP_ACT_NOTIFY = 0x7FC00000
SCMP_ACT_ERRNO = 0x00050000
SCMP_ACT_TRACE = 0x7FF00000
SCMP_ACT_LOG = 0x7FFC0000
SCMP_ACT_ALLOW = 0x7FFF0000

_FLTATR_CTL_NNP = 3
_FLTATR_CTL_OPTIMIZE = 8
_FLTATR_API_SYSRAWRC = 9

_NR_ERROR = -1

_lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
_lib.seccomp_init.restype = ctypes.c_void_p
_lib.seccomp_init.argtypes = (ctypes.c_uint32,)
_lib.seccomp_release.argtypes = (ctypes.c_void_p,)
_lib.seccomp_release.restype = None
_lib.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
_lib.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
_lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
_lib.seccomp_arch_native.restype = ctypes.c_uint32
_lib.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
_lib.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
_lib.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
_lib.seccomp_rule_add_array.argtypes = (
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_lib.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)


class ArgCmp(ctypes.Structure):
    """``struct scmp_arg_cmp``: a condition on one argument."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


_lib.seccomp_version.restype = ctypes.POINTER(_Version)


def version() -> tuple[int, int, int]:
    """The library's version."""
    found = _lib.seccomp_version().contents
    return found.major, found.minor, found.micro


def native() -> int:
    """The token of this machine's architecture."""
    token: int = _lib.seccomp_arch_native()
    return token


def architecture(name: str) -> int:
    """The token of an architecture by the library's name (``x86_64``); 0 if it knows none."""
    token: int = _lib.seccomp_arch_resolve_name(name.encode())
    return token


def number(name: str, arch: int = 0) -> int | None:
    """The number of a system call, negative where only other architectures have it; None if the library has none."""
    if arch:
        result: int = _lib.seccomp_syscall_resolve_name_arch(arch, name.encode())
    else:
        result = _lib.seccomp_syscall_resolve_name(name.encode())
    return None if result == _NR_ERROR else result


class Context:
    """A filter being made; release it, or use it in a with-block."""

    __slots__ = ("_handle",)

    def __init__(self, default: int) -> None:
        self._handle = _lib.seccomp_init(default)
        if not self._handle:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "seccomp_init")
        # Ours to set, in the order that the runtime specification wants.
        _check(_lib.seccomp_attr_set(self._handle, _FLTATR_CTL_NNP, 0))
        # A binary tree over the numbers instead of a list: ten comparisons for a system call, not hundreds. These
        # two attributes came with 2.5; without them the filter is slower and errors are vaguer, not wrong.
        _lib.seccomp_attr_set(self._handle, _FLTATR_CTL_OPTIMIZE, 2)
        _lib.seccomp_attr_set(self._handle, _FLTATR_API_SYSRAWRC, 1)

    def add_architecture(self, token: int) -> None:
        """Apply the rules to one more architecture; one that is there already is no error."""
        result = _lib.seccomp_arch_add(self._handle, token)
        if result != -17:  # EEXIST
            _check(result)

    def add_rule(self, action: int, syscall: int, conditions: list[ArgCmp]) -> None:
        """Answer ``syscall`` with ``action`` when all conditions hold."""
        array = (ArgCmp * len(conditions))(*conditions) if conditions else None
        _check(_lib.seccomp_rule_add_array(self._handle, action, syscall, len(conditions), array))

    def export(self) -> bytes:
        """The program."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(_lib.seccomp_export_bpf(self._handle, fd))
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def release(self) -> None:
        """Free the library's memory; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle:
            _lib.seccomp_release(handle)

    def __enter__(self) -> "Context":  # noqa: PYI034 - typing is 10 ms
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), "libseccomp")

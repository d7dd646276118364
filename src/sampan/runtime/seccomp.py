"""The ``linux.seccomp`` section of the runtime specification, made into a BPF program.

Compiling happens in the runtime's process, loading in the container's: libseccomp is opened only when a section was
not compiled before. A program depends on the section alone, so it is cached by the section's content: in the process,
and, where a directory is given, on disk for the command line, which starts anew each time.
"""

from __future__ import annotations

import errno
import os

from sampan.errors import InvalidInput, StageFailed, Unsupported
from sampan.linux import seccomp as kernel
from sampan.spec.runtime_schema import SECCOMP_ARCHITECTURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_ACT_ERRNO = 0x00050000
_ACT_TRACE = 0x7FF00000
_ACT_NOTIFY = 0x7FC00000
_ACT_ALLOW = 0x7FFF0000
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ACT_ERRNO,
    "SCMP_ACT_TRACE": _ACT_TRACE,
    "SCMP_ACT_ALLOW": _ACT_ALLOW,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": _ACT_NOTIFY,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
#: The filter's flags by their OCI names. A container's init has one thread, so TSYNC has nothing to do.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": kernel.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}
#: Changes when a program for the same section would: part of the cache's key.
_FORMAT = "1"

_compiled: dict[str, Filter] = {}


class Filter:
    """A compiled section.

    Args:
        bpf: For :func:`sampan.linux.seccomp.load`.
        flags: Likewise.
        notified: The system calls that it sends to a listener, whose descriptor must then be handed on.
    """

    __slots__ = ("bpf", "flags", "notified")

    def __init__(self, bpf: bytes, flags: int, notified: frozenset[str]) -> None:
        self.bpf = bpf
        self.flags = flags
        self.notified = notified

    @property
    def notify(self) -> bool:
        """Whether there is a listener."""
        return bool(self.notified)


def actions() -> list[str]:
    """The actions a section may name, for ``features``."""
    return list(_ACTIONS)


def operators() -> list[str]:
    """The comparison operators a section may name, for ``features``."""
    return list(_OPERATORS)


def architectures() -> list[str]:
    """The architectures a section may name, for ``features``."""
    return list(SECCOMP_ARCHITECTURES)


def known_flags() -> list[str]:
    """The flags a section may name, for ``features``."""
    return list(_FLAGS)


def compile_filter(section: dict[str, Any], *, cache: str = "") -> Filter:
    """Compile a section, or find it compiled.

    Args:
        section: ``linux.seccomp`` of a configuration.
        cache: Directory that keeps programs between processes; made if missing. It must be writable by root alone.

    Raises:
        InvalidInput: The section is wrong; names the field.
        Unsupported: There is no libseccomp, or it cannot do what is asked.
    """
    key = repr(section)
    found = _compiled.get(key)
    if found is None:
        flags, notified = _flags(section), _notified(section)
        bpf = _from_disk(cache, key) if cache else b""
        if not bpf:
            bpf = _build(section)
            if cache:
                _to_disk(cache, key, bpf)
        found = _compiled[key] = Filter(bpf, flags, notified)
    return found


def _flags(section: dict[str, Any]) -> int:
    names = section.get("flags")
    if names is None:
        # As runc: a filter should not slow the container down with the speculative store bypass mitigation.
        return kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW
    flags = 0
    for index, name in enumerate(names):
        if name not in _FLAGS:
            raise InvalidInput(f"unknown flag {name!r}", field=f"linux.seccomp.flags[{index}]")
        flags |= _FLAGS[name]
    if flags & kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV and not _notified(section):
        raise InvalidInput("WAIT_KILLABLE_RECV is for filters with SCMP_ACT_NOTIFY", field="linux.seccomp.flags")
    return flags


def _notified(section: dict[str, Any]) -> frozenset[str]:
    if section.get("defaultAction") == "SCMP_ACT_NOTIFY":
        raise InvalidInput("SCMP_ACT_NOTIFY cannot be the default", field="linux.seccomp.defaultAction")
    found: set[str] = set()
    for index, rule in enumerate(section.get("syscalls") or ()):
        if rule.get("action") == "SCMP_ACT_NOTIFY":
            found.update(rule.get("names", ()))
            # By a write the process tells of the listener: answering would need the listener that is not told of yet.
            if "write" in found:
                raise InvalidInput("SCMP_ACT_NOTIFY cannot be used for write", field=f"linux.seccomp.syscalls[{index}]")
    return frozenset(found)


def _build(section: dict[str, Any]) -> bytes:
    try:
        from sampan.linux import libseccomp
    except OSError as error:
        raise Unsupported(
            "linux.seccomp: libseccomp.so.2 cannot be loaded", hint="install the package libseccomp2"
        ) from error
    default = _action(section, "defaultAction", "defaultErrnoRet", "linux.seccomp")
    try:
        with libseccomp.Context(default) as context:
            tokens = _architectures(context, section)
            for index, rule in enumerate(section.get("syscalls") or ()):
                _add_rule(context, default, rule, f"linux.seccomp.syscalls[{index}]")
            program = context.export()
    except OSError as error:
        raise StageFailed("compile seccomp filter", error) from error
    if default & 0xFFFF0000 == _ACT_ERRNO and default != _ACT_ERRNO | errno.ENOSYS:
        program = _answer_newer_calls(program, _newest(section, tokens))
    if len(program) > kernel.MAX_INSTRUCTIONS * kernel.INSTRUCTION_SIZE:
        raise InvalidInput("the filter is longer than the kernel takes", field="linux.seccomp")
    return program


def _architectures(context: Any, section: dict[str, Any]) -> list[int]:
    from sampan.linux import libseccomp

    tokens = [libseccomp.native()]
    for index, name in enumerate(section.get("architectures") or ()):
        token = libseccomp.architecture(name.removeprefix("SCMP_ARCH_").lower())
        if not token:
            raise InvalidInput(f"unknown architecture {name!r}", field=f"linux.seccomp.architectures[{index}]")
        context.add_architecture(token)
        if token not in tokens:
            tokens.append(token)
    return tokens


def _action(entry: dict[str, Any], key: str, errno_key: str, field: str) -> int:
    name = entry.get(key)
    if name not in _ACTIONS:
        raise InvalidInput(f"unknown action {name!r}", field=f"{field}.{key}")
    value = _ACTIONS[name]
    number = entry.get(errno_key)
    if value in (_ACT_ERRNO, _ACT_TRACE):
        return value | (errno.EPERM if number is None else number & 0xFFFF)
    if number:
        raise InvalidInput(f"{name} takes no errno", field=f"{field}.{errno_key}")
    return value


def _add_rule(context: Any, default: int, rule: dict[str, Any], field: str) -> None:
    from sampan.linux import libseccomp

    action = _action(rule, "action", "errnoRet", field)
    if action == default:
        return  # says nothing; libseccomp would refuse it
    variants = list(_conditions(rule.get("args") or (), field))
    for name in rule.get("names") or ():
        number = libseccomp.number(name)
        if number is None:
            continue  # unknown here: a profile names calls of every kernel; the default action answers it
        for conditions in variants:
            try:
                context.add_rule(action, number, conditions)
            except FileExistsError:
                raise InvalidInput(
                    f"another rule has another action for the same calls of {name!r}", field=field
                ) from None


def _conditions(args: Any, field: str) -> Iterator[list[Any]]:
    """The rule's conditions; one list that must hold as a whole, or several of which one must.

    The conditions of a rule hold together. But libseccomp takes one condition for an argument, so conditions that
    share an argument become alternatives; runc reads such a rule so, and profiles count on it.
    """
    from sampan.linux.libseccomp import ArgCmp

    conditions = []
    for index, arg in enumerate(args):
        operator = _OPERATORS.get(arg.get("op"))
        if operator is None:
            raise InvalidInput(f"unknown operator {arg.get('op')!r}", field=f"{field}.args[{index}].op")
        position = arg.get("index", 0)
        if not 0 <= position <= 5:
            raise InvalidInput(f"{position} is not in 0 to 5", field=f"{field}.args[{index}].index")
        conditions.append(ArgCmp(position, operator, arg.get("value", 0), arg.get("valueTwo", 0)))
    if len({condition.arg for condition in conditions}) == len(conditions):
        yield conditions
    else:
        for condition in conditions:
            yield [condition]


def _newest(section: dict[str, Any], tokens: list[int]) -> dict[int, int]:
    """For each architecture the highest system call number that the section names."""
    from sampan.linux import libseccomp

    names = {name for rule in section.get("syscalls") or () for name in rule.get("names") or ()}
    newest = {}
    for token in tokens:
        numbers = [number for name in names if (number := libseccomp.number(name, token)) is not None and number >= 0]
        if numbers:
            newest[token] = max(numbers)
    return newest


_X86_64 = 0xC000003E
_X32 = 0x4000003E
_X32_BIT = 0x40000000


def _answer_newer_calls(program: bytes, newest: dict[int, int]) -> bytes:
    """Let calls newer than any that the profile's writer knew fail with ENOSYS, not with the default error.

    C libraries try the newest call first and fall back on ENOSYS only; EPERM for, say, clone3 or faccessat2 broke
    programs in containers whenever a kernel was newer than the profile. runc does the same since 1.0.0-rc93.
    """
    head = _instruction(0x20, 0, 0, 4)  # A = seccomp_data.arch
    for token, number in newest.items():
        if token == _X32:
            continue  # has x86_64's architecture number; treated with it
        block = _instruction(0x20, 0, 0, 0)  # A = seccomp_data.nr
        if token == _X86_64:
            # Numbers with the x32 bit are left to the program itself.
            block += _instruction(0x35, 2, 0, _X32_BIT)  # if A >= bit: over the two
        block += _instruction(0x25, 0, 1, number)  # unless A > number: over the return
        block += _instruction(0x06, 0, 0, _ACT_ERRNO | errno.ENOSYS)
        head += _instruction(0x15, 0, len(block) // kernel.INSTRUCTION_SIZE, token) + block
        head += _instruction(0x20, 0, 0, 4)  # the next test looks at A again
    return head + program


def _instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    import sys

    return code.to_bytes(2, sys.byteorder) + bytes((jump_true, jump_false)) + value.to_bytes(4, sys.byteorder)


def _entry(directory: str, key: str) -> str:
    from _blake2 import blake2b  # hashlib would load OpenSSL

    name = blake2b(f"{_FORMAT}\n{os.uname().machine}\n{key}".encode("utf-8", "surrogatepass"), digest_size=16)
    return f"{directory}/{name.hexdigest()}.bpf"


def _from_disk(directory: str, key: str) -> bytes:
    try:
        fd = os.open(_entry(directory, key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022 or status.st_size % kernel.INSTRUCTION_SIZE:
            return b""  # not written by us: a filter is a matter of trust
        return os.read(fd, status.st_size)
    finally:
        os.close(fd)


def _to_disk(directory: str, key: str, bpf: bytes) -> None:
    """Keep a program, whole or not at all; a cache that cannot be written costs time, nothing else."""
    entry = _entry(directory, key)
    temporary = f"{entry}.{os.getpid()}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        if os.write(fd, bpf) == len(bpf):
            os.rename(temporary, entry)
        else:
            os.unlink(temporary)  # the disk is full
    except OSError:
        os.unlink(temporary)
    finally:
        os.close(fd)

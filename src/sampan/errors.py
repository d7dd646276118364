"""The exception tree of the domain.

    SampanError                      exit 1    INTERNAL
    ├── InvalidInput                 exit 2    INVALID_ARGUMENT     a value from outside is wrong; names the field
    ├── NotFound                     exit 1    NOT_FOUND
    ├── AlreadyExists                exit 1    ALREADY_EXISTS
    ├── WrongState                   exit 1    FAILED_PRECONDITION  the object can't do this as it is now
    ├── Unsupported                  exit 1    UNIMPLEMENTED        this kernel, machine or build lacks it
    ├── Denied                       exit 1    PERMISSION_DENIED
    ├── Unauthenticated              exit 1    UNAUTHENTICATED
    ├── Exhausted                    exit 1    RESOURCE_EXHAUSTED   a bound of ours or of the machine was met
    ├── Unavailable                  exit 1    UNAVAILABLE          a peer is down; a retry may help
    ├── TimedOut                     exit 1    DEADLINE_EXCEEDED
    ├── Corrupt                      exit 1    DATA_LOSS            a digest or a size differs from what was promised
    └── StageFailed                  exit 1    INTERNAL             a system call failed: stage, call, path, errno
        ├── ProgramFailed            exit 1    INTERNAL             a container's program is not there, or can't run
        └── ValueRefused             exit 1    INVALID_ARGUMENT     the kernel takes no such value

Every error carries one line for a person: what object, which field or path, the cause; and, where there is one,
``hint``: the mend. Nothing below :mod:`sampan.cli` and :mod:`sampan.cri` catches them to print them.
"""

import errno as _errno
import os


class SampanError(Exception):
    """Root of the domain's errors.

    Args:
        message: One line that names the object, the field or path, and the cause.
        hint: What the reader can do about it, or an empty string.
    """

    exit_code = 1
    #: Name of the gRPC status code, kept as text so that this module imports nothing.
    grpc_code = "INTERNAL"
    #: Whether the same call may succeed later with nothing changed.
    retriable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(SampanError):
    """A value from outside is wrong.

    Args:
        message: What is wrong with the value.
        field: Path of the field, such as ``linux.namespaces[2].type``; put before the message.
    """

    exit_code = 2
    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message, hint=hint)
        self.field = field


class NotFound(SampanError):
    """The named object does not exist."""

    grpc_code = "NOT_FOUND"


class AlreadyExists(SampanError):
    """The name is taken by another object."""

    grpc_code = "ALREADY_EXISTS"


class WrongState(SampanError):
    """The object exists but cannot do this in its present state."""

    grpc_code = "FAILED_PRECONDITION"


class Unsupported(SampanError):
    """The kernel, the machine or this build lacks what was asked for."""

    grpc_code = "UNIMPLEMENTED"


class Denied(SampanError):
    """The caller may not do this."""

    grpc_code = "PERMISSION_DENIED"


class Unauthenticated(SampanError):
    """Credentials are missing or were refused."""

    grpc_code = "UNAUTHENTICATED"


class Exhausted(SampanError):
    """A bound was met: of a size, a count, a rate or a device."""

    grpc_code = "RESOURCE_EXHAUSTED"


class Unavailable(SampanError):
    """A peer could not be reached or gave up half-way."""

    grpc_code = "UNAVAILABLE"
    retriable = True


class TimedOut(SampanError):
    """A deadline passed."""

    grpc_code = "DEADLINE_EXCEEDED"
    retriable = True


class Corrupt(SampanError):
    """Content differs from its digest, its size or its declared form."""

    grpc_code = "DATA_LOSS"


class StageFailed(SampanError):
    """A system call failed at a stage of some work.

    Args:
        stage: What was being done, in the domain's words: ``mount "proc"``.
        cause: The error of the call.
        path: The path that the call was on, where the error does not say.
        hint: The mend.
    """

    def __init__(self, stage: str, cause: OSError, *, path: str = "", hint: str = "") -> None:
        name = f"{_errno.errorcode.get(cause.errno, 'error')}: " if cause.errno else ""
        where = path or (os.fsdecode(cause.filename) if cause.filename else "")
        text = cause.strerror or str(cause)
        super().__init__(f"{stage}{f' at {where}' if where else ''}: {name}{text}", hint=hint)
        self.stage = stage
        self.errno = cause.errno
        self.path = where


class ProgramFailed(StageFailed):
    """A container's program is not there (ENOENT), or can't be executed."""


class ValueRefused(StageFailed):
    """A value from outside is one that this kernel takes not at all, or not here; ``hint`` names its field."""

    grpc_code = "INVALID_ARGUMENT"


def write_failed(stage: str, cause: OSError, *, path: str = "") -> Exhausted | StageFailed:
    """The error for one of writing a file; a full disk is told apart. For the arguments see :class:`StageFailed`."""
    if cause.errno in (_errno.ENOSPC, _errno.EDQUOT):
        where = f" at {path}" if path else ""
        return Exhausted(f"{stage}{where}: {cause.strerror}", hint="free some space, or run `sampan gc`")
    return StageFailed(stage, cause, path=path)

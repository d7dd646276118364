"""The error tree's one line."""

import errno

from sampan import errors


def test_stage_failure_names_stage_path_and_errno() -> None:
    error = errors.StageFailed('mount "proc"', PermissionError(errno.EPERM, "Operation not permitted", "/proc"))
    assert str(error) == 'mount "proc" at /proc: EPERM: Operation not permitted'


def test_invalid_input_puts_the_field_first_and_the_mend_last() -> None:
    error = errors.InvalidInput("must be absolute", field="root.path", hint="write /rootfs")
    assert str(error) == "root.path: must be absolute (write /rootfs)"
    assert (error.exit_code, error.grpc_code) == (2, "INVALID_ARGUMENT")

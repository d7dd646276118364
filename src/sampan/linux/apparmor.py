"""AppArmor: whether this kernel runs it, which profiles it has, and getting one compiled and loaded.

The kernel takes compiled policy only; apparmor_parser(8) is the compiler. Profiles are taken on at an execve(2),
through /proc/PID/attr, which is the runtime's work.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: securityfs's folder of AppArmor (apparmor(7)); where it is not, policy can be neither read nor loaded.
POLICY = "/sys/kernel/security/apparmor"
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_PARSERS = ("/sbin/apparmor_parser", "/usr/sbin/apparmor_parser")
_MAX_MESSAGE = 4096


def enabled() -> bool:
    """Whether the kernel runs AppArmor."""
    try:
        with open(_ENABLED, "rb") as file:
            return file.read(1) == b"Y"
    except OSError:
        return False


def parser() -> str:
    """Path of apparmor_parser(8), or an empty string."""
    search = [f"{folder}/apparmor_parser" for folder in os.environ.get("PATH", "").split(":") if folder[:1] == "/"]
    return next((path for path in (*_PARSERS, *search) if os.access(path, os.X_OK)), "")


def loaded(name: str) -> bool:
    """Whether the kernel has a profile of this name.

    Raises:
        OSError: The list cannot be read: no AppArmor, no securityfs, or no CAP_MAC_ADMIN.
    """
    wanted = f"{name} (".encode()  # each line is "NAME (MODE)"
    with open(f"{POLICY}/profiles", "rb") as file:
        return any(line.startswith(wanted) for line in file)


def load(text: str) -> None:
    """Compile profiles and load them, over those of the same names.

    Raises:
        OSError: There is no parser, or it refused; ``strerror`` has its words, ``filename`` is its path.
    """
    program = parser()
    if not program:
        raise FileNotFoundError(2, "apparmor_parser is not installed", "apparmor_parser")
    status, message = _run([program, "--replace", "--skip-cache"], text.encode())
    if status != 0:
        raise OSError(errno.EIO, message or f"ended with status {status}", program)


def _run(command: Sequence[str], given: bytes) -> tuple[int, str]:
    """Run a program on some input; its exit status and what it said. Threads may run: nothing is forked by Python."""
    stdin, output = os.memfd_create("stdin"), os.memfd_create("output")
    try:
        os.write(stdin, given)
        os.lseek(stdin, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), *((os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2))]
        pid = os.posix_spawn(command[0], list(command), {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, os.pread(output, _MAX_MESSAGE, 0).decode(errors="replace").strip().replace("\n", "; ")
    finally:
        os.close(stdin)
        os.close(output)

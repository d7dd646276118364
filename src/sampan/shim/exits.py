"""How a process ended, and the record of it on disk.

``<pod folder>/<container id>/exit.json`` is written whole (a temporary file, fsync, rename) before anybody is told, so
whoever was told can find it again, and a reader never sees half of one.
"""

from __future__ import annotations

import os

from sampan.errors import Corrupt
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "exit.json"


class Exit:
    """The end of a process.

    Args:
        exit_code: As a shell has it: 128 and the signal's number of a process that was killed.
        signal: What killed it, or 0.
        finished_at: Nanoseconds since the epoch.
        oom_killed: Whether the kernel killed a process of the container for want of memory.
        timed_out: Whether it was killed because its time was up (exec only).
        started_at: When the program was let run; 0 if it never was.
        refusal: Why it could not be, or nothing.
    """

    __slots__ = ("exit_code", "finished_at", "oom_killed", "refusal", "signal", "started_at", "timed_out")

    def __init__(
        self,
        exit_code: int,
        signal: int = 0,
        finished_at: int = 0,
        oom_killed: bool = False,
        timed_out: bool = False,
        started_at: int = 0,
        refusal: str = "",
    ) -> None:
        self.exit_code = exit_code
        self.signal = signal
        self.finished_at = finished_at
        self.oom_killed = oom_killed
        self.timed_out = timed_out
        self.started_at = started_at
        self.refusal = refusal

    @classmethod
    def of_status(cls, status: int, finished_at: int) -> Exit:
        """From what waitpid(2) says."""
        if os.WIFSIGNALED(status):
            signal = os.WTERMSIG(status)
            return cls(128 + signal, signal, finished_at)
        return cls(os.WEXITSTATUS(status), 0, finished_at)

    @classmethod
    def of_dict(cls, body: dict[str, Any]) -> Exit:
        """From a message or a record; what is absent is as if it had not been."""
        return cls(
            int(body["exit_code"]),
            int(body.get("signal", 0)),
            int(body.get("finished_at", 0)),
            bool(body.get("oom_killed", False)),
            bool(body.get("timed_out", False)),
            int(body.get("started_at", 0)),
            str(body.get("refusal", "")),
        )

    def as_dict(self) -> dict[str, Any]:
        """For a message or a record."""
        return {
            "exit_code": self.exit_code,
            "signal": self.signal,
            "finished_at": self.finished_at,
            "oom_killed": self.oom_killed,
            "timed_out": self.timed_out,
            "started_at": self.started_at,
            "refusal": self.refusal,
        }

    def __repr__(self) -> str:
        return f"Exit({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items() if value)})"


def write_exit(directory: str, container_id: str, ended: Exit) -> None:
    """Record the end of a container, for good when this returns."""
    folder = f"{directory}/{container_id}"
    os.makedirs(folder, 0o711, exist_ok=True)
    write_document(f"{folder}/{NAME}", ended.as_dict())


def read_exit(directory: str, container_id: str) -> Exit | None:
    """What was recorded of a container, with or without its monitor; ``None`` if it has not ended.

    Raises:
        Corrupt: What is there is not a record.
    """
    path = f"{directory}/{container_id}/{NAME}"
    if not os.access(path, os.F_OK):  # asked of every container of every list: an exception costs three times as much
        return None
    try:
        with open(path, "rb") as file:
            return Exit.of_dict(jsontext.loads(file.read(65536)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is not the record of an exit: {error}") from None


def write_document(path: str, body: dict[str, Any], *, lasting: bool = True) -> None:
    """Put a JSON object at ``path``: all of it or nothing, and on the disk.

    Args:
        path: Where.
        body: The object.
        lasting: It is to be there after a power failure too; if not, nobody waits for the disk.
    """
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # One write may take a part of it: the next one says that the disk is full.
        left = memoryview(jsontext.dumps(body).encode())
        while left:
            left = left[os.write(fd, left) :]
        if lasting:
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    if not lasting:
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

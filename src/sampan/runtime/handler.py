"""What a container's life needs of an OCI runtime: the interface that every handler keeps.

Two implement it: :class:`sampan.runtime.native.NativeHandler`, our own runtime in the caller's process, and
``sampan.runtime.external.ExternalHandler``, which drives the command line of runc, crun or another.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object


class Stdio:
    """Three descriptors that become a process's standard streams; they stay the caller's to close.

    Args:
        stdin: For reading, or -1 for /dev/null.
        stdout: For writing, or -1 for /dev/null.
        stderr: For writing, or -1 for /dev/null.
    """

    __slots__ = ("stderr", "stdin", "stdout")

    def __init__(self, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    @classmethod
    def inherit(cls) -> Stdio:
        """The caller's own streams."""
        return cls(0, 1, 2)

    def given(self) -> dict[str, int]:
        """Those that are descriptors, by name."""
        streams = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}
        return {name: fd for name, fd in streams.items() if fd >= 0}


class Created:
    """A process that was made: its pid in the caller's namespace, and its terminal.

    Args:
        pid: A child of the calling process (or, of an external runtime, of the subreaper).
        console: Master side of the process's pty, the caller's to close; -1 without a terminal.
        warnings: What was done less well than asked, because the kernel refused: lines for a log.
        may_trace: It may trace processes of ours that it sees (see :func:`sampan.runtime.borrow.may_trace`).
    """

    __slots__ = ("console", "may_trace", "pid", "warnings")

    def __init__(self, pid: int, console: int = -1, warnings: tuple[str, ...] = (), *, may_trace: bool = False) -> None:
        self.pid = pid
        self.console = console
        self.warnings = warnings
        self.may_trace = may_trace


class Handler(Protocol):
    """An OCI runtime. Errors are of :mod:`sampan.errors`; a call that fails leaves nothing behind."""

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created:
        """Make the container of ``<bundle>/config.json`` up to the point where its program would run."""

    def start(self, container_id: str) -> None:
        """Let a created container's program run."""

    def exec(
        self, container_id: str, process: dict[str, Any], stdio: Stdio, *, watched: bool = False, bundle: str = ""
    ) -> Created:
        """Run one more process, an OCI ``process`` object, inside a running container.

        ``watched``: somebody in its PID namespace may trace processes, whom its configuration does not tell of.
        ``bundle``: The container's, for a handler that keeps no record of it.
        """

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """Signal the container's init, or with ``all`` each of its processes."""

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove what a stopped container left; ``force`` kills it first and forgives its absence."""

    def pause(self, container_id: str) -> None:
        """Freeze every process of the container."""

    def resume(self, container_id: str) -> None:
        """Undo :meth:`pause`."""

    def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Change limits of a running container: an OCI ``linux.resources`` object, of which absent fields stay."""

    def stats(self, container_id: str) -> dict[str, Any]:
        """Figures of the container in the form of the ``data`` of runc's ``events --stats``."""

    def pids(self, container_id: str) -> list[int]:
        """Pids, in the caller's namespace, of every process of the container."""

    def state(self, container_id: str) -> dict[str, Any]:
        """The OCI state document: ``ociVersion, id, status, pid, bundle, annotations``, and ours beside them."""

"""The file that a container's log is written to."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BUFFERS = 1024  # IOV_MAX


class LogFile:
    """Appends whole lines, and can be told to open its path anew after somebody renamed the file.

    A line is never torn: what can't be written whole, because the disk is full, is taken back and counted in
    :attr:`lost`; the container is not held up by it.

    Args:
        path: Absolute; its folder is made if missing. Empty: everything is dropped.
    """

    __slots__ = ("_fd", "lost", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.lost = 0
        self._fd = -1
        if path:
            self._fd = _open(path)

    def write(self, buffers: Sequence[bytes]) -> None:
        """Append lines that are given in pieces."""
        if self._fd < 0 or not buffers:
            return
        if len(buffers) > _MOST_BUFFERS:
            buffers = (b"".join(buffers),)
        size = sum(map(len, buffers))
        try:
            written = os.writev(self._fd, buffers)
        except OSError:
            self.lost += size
            return
        if written < size:
            self._finish(b"".join(buffers), written)

    def reopen(self) -> None:
        """Go on in the file that is now at the path; the old one has every line so far."""
        if self.path:
            new = _open(self.path)
            old, self._fd = self._fd, new
            if old >= 0:
                os.close(old)

    def close(self) -> None:
        """A second call does nothing; what is written after it is dropped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _finish(self, lines: bytes, written: int) -> None:
        """Write what a short write left, or take back the beginning of the line that has no room."""
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except OSError:
            whole = lines.rfind(b"\n", 0, written) + 1
            self.lost += len(lines) - whole
            try:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - whole))
            except OSError:
                pass  # not a regular file: nothing can be taken back


def _open(path: str) -> int:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    # Not through a link that somebody put there: the folder may be writable by others than root.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

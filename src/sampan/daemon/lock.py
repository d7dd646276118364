"""One daemon for one root and one state directory: flock(2) on a file in each, which a killed holder does not keep."""

import fcntl
import os

from sampan.errors import StageFailed, WrongState

NAME = "daemon.lock"


class Lock:
    """The lock on a directory, held from construction to :meth:`close`.

    Args:
        directory: Made if missing.
        mode: Mode of the directory when it is made.

    Raises:
        WrongState: Another daemon holds it; the message says its pid.
        StageFailed: The file can't be made.
    """

    def __init__(self, directory: str, mode: int) -> None:
        try:
            os.makedirs(directory, mode, exist_ok=True)
            self._fd = os.open(f"{directory}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StageFailed("lock the daemon's directory", error, path=directory) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise WrongState(
                f"another daemon{f' (pid {holder})' if holder else ''} holds {directory}",
                hint="stop it, or give this one another root and state",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go; a second call does nothing. The file stays: removing it would race with the next holder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

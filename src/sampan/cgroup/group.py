"""What a control group can do, whichever version of the kernel's interface serves it."""

from __future__ import annotations

import errno
import os

from sampan.cgroup import hierarchy
from sampan.errors import StageFailed, ValueRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup.oom import OomWatch
    from sampan.cgroup.usage import Meter

#: How the kernel refuses a value: it is none, there is no such device, it is too large.
_REFUSALS = frozenset((errno.EINVAL, errno.ENODEV, errno.ERANGE, errno.EOVERFLOW))
#: signal(7); the signal module makes enumerations, which take a millisecond.
SIGKILL = 9


class Joiner:
    """Open files by which a process can put itself into a group when it no longer sees the hierarchies.

    The kernel checks the rights of whoever opened the files. The owner closes it; :meth:`join` does so too.
    """

    __slots__ = ("_fds",)

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def join(self) -> None:
        """Move the calling process, which must be single-threaded, into the group; the files are closed."""
        try:
            self.enter()
        finally:
            self.close()

    def enter(self) -> None:
        """The same, and the files stay open: for a child that has borrowed them."""
        try:
            for fd in self._fds:
                os.write(fd, b"0")
        except OSError as error:
            raise StageFailed("join cgroup", error) from error

    def files(self) -> list[int]:
        """The files: a process that writes "0" to each is in the group."""
        return list(self._fds)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


class Group:
    """A control group. Making the object touches nothing.

    All methods are synchronous. Failures are :class:`~sampan.errors.StageFailed` with the file's path, or
    :class:`~sampan.errors.Unsupported` where a limit is asked for that this machine's controllers cannot hold.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def paths(self) -> dict[str, str]:
        """Controller -> directory; for cgroup v2 an empty name -> directory."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether the group is there."""
        return any(os.path.isdir(directory) for directory in self.paths().values())

    def create(self) -> None:
        """Make the group and its missing parents; no error if it is there. A failure leaves none of its directories."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what kept the group alive until a process is in it, or until it was given up."""

    def join(self, pid: int = 0) -> None:
        """Move a process into the group.

        Args:
            pid: The process; 0 is the caller, who must be single-threaded. A process that moves itself spares the
                kernel's global lock, and with it the milliseconds of a grace period.
        """
        raise NotImplementedError

    def joiner(self, below: dict[str, str] | None = None) -> Joiner:
        """Files for a child that will have lost sight of the hierarchies.

        Args:
            below: Controller -> path of a group below this one to be joined instead, which is there; an empty name
                stands for all controllers that are not named.

        Raises:
            InvalidInput: There is no such controller.
        """
        raise NotImplementedError

    def fd(self) -> int:
        """The directory in the unified hierarchy, for CLONE_INTO_CGROUP; -1 where there is none. The caller closes."""
        return -1

    def set(self, resources: dict[str, Any], *, undo: bool = False) -> None:
        """Set the limits named by ``linux.resources`` of the runtime specification; absent keys stay as they are.

        ``devices`` is not looked at: see :meth:`set_devices`.

        Args:
            resources: The limits.
            undo: If one is refused, give the others their former values back, as far as a file tells its value.
        """
        raise NotImplementedError

    def set_devices(self, rules: list[dict[str, Any]]) -> None:
        """Deny all devices but what ``rules`` (in order) and the default list allow. To be called once."""
        raise NotImplementedError

    def delegate(self, uid: int) -> None:
        """Let this user divide the group among its processes, not enlarge it; nothing on cgroup v1, which cannot."""

    def stats(self) -> dict[str, Any]:
        """Statistics in the form of the ``data`` of ``runc events --stats``."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop every process of the group and those under it; returns when all are stopped."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let the group go on."""
        raise NotImplementedError

    def frozen(self) -> bool:
        """Whether the group is frozen, or about to be."""
        raise NotImplementedError

    def freezer_file(self) -> tuple[str, str]:
        """The file that :meth:`frozen` reads, and its first line while the group is not frozen; empty without one."""
        raise NotImplementedError

    def kill(self, signal: int = SIGKILL) -> None:
        """Signal every process in the group and in the groups under it."""
        raise NotImplementedError

    def pids(self, all: bool = True) -> list[int]:
        """Processes in the group and, with ``all``, in the groups under it; a group that is gone has none."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove the group, the groups under it, and the parents that :meth:`create` made and that are now empty."""
        raise NotImplementedError

    def meter(self) -> Meter:
        """A reader of what of :meth:`stats` is asked for all the time."""
        raise NotImplementedError

    def oom_kills(self) -> int:
        """How many processes of the group, or below it, the kernel killed for want of memory."""
        raise NotImplementedError

    def oom_watch(self) -> OomWatch:
        """A descriptor that tells when the group runs out of memory."""
        raise NotImplementedError

    def memory_usage(self) -> int:
        """Bytes charged to the group, caches included."""
        raise NotImplementedError

    def memory_working_set(self) -> int:
        """Bytes that cannot be reclaimed easily: usage without inactive file pages, as the kubelet counts."""
        raise NotImplementedError


def write(stage: str, path: str, value: str, *, field: str = "") -> None:
    """Write a limit and name it in the error, with the field that asked for it.

    Raises:
        ValueRefused: Of a field's value, by the kernel.
        StageFailed: It can't be written for another reason.
    """
    try:
        hierarchy.write_file(path, value)
    except OSError as error:
        hint = f"asked for by linux.resources.{field}" if field else ""
        refused = error.errno in _REFUSALS
        if error.errno == errno.EACCES:  # said of processors outside the parent's too (cpuset(7))
            refused = os.access(path, os.W_OK)
        kind = ValueRefused if field and refused else StageFailed
        raise kind(f"set {stage} to {value!r}", error, path=path, hint=hint) from error


class Former:
    """What files of limits said before they were written."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: list[tuple[str, str]] = []

    def keep(self, path: str) -> None:
        """Keep what a file says; one that has a line for each device can't be put back, and isn't."""
        try:
            text = hierarchy.read_file(path).strip()
        except OSError:
            return
        if text and "\n" not in text:
            self._said.append((path, text))

    def restore(self) -> None:
        """Put all back, the last first: the kernel may have taken one for the sake of another."""
        for path, text in reversed(self._said):
            try:
                hierarchy.write_file(path, text)
            except OSError:
                continue


def write_each(stage: str, path: str, values: list[str]) -> None:
    """Write values into a file that takes them one by one; the one that is refused is named in the error."""
    value = ""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for value in values:
                os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise StageFailed(f"set {stage} to {value!r}", error, path=path) from error


def signal_pids(pids: list[int], signal: int) -> None:
    """Send a signal to each process; those that ended meanwhile are passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            pass

"""Where the hierarchies are mounted, and the reading, writing, making and removing of directories in them.

Intermediate directories that we make carry the extended attribute ``trusted.sampan.made``. So any later process, and
whoever removes the last container of a parent, knows which parents are ours to remove: no list has to be kept.
"""

from __future__ import annotations

import errno
import os
import select
import time

from sampan.errors import InvalidInput, StageFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARK = "trusted.sampan.made"
#: Links of a directory that holds no other.
_NO_CHILDREN = 2
#: Seconds that removal waits for the last processes of a group to be gone from it.
_REMOVAL_PATIENCE = 5.0
#: How a group that is not there any more answers; the second where its removal is under way (kernfs).
_VANISHED = (errno.ENOENT, errno.ENODEV)
_V1_CONTROLLERS = frozenset(
    (
        "cpuset",
        "devices",
        "memory",
        "cpu",
        "cpuacct",
        "pids",
        "blkio",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "freezer",
        "rdma",
        "misc",
    )
)


class Layout:
    """The machine's hierarchies.

    Args:
        controllers: v1 controller or named hierarchy (``name=systemd``) -> mount point.
        unified: Mount point of cgroup2, or an empty string.
    """

    __slots__ = ("controllers", "mode", "unified")

    def __init__(self, controllers: dict[str, str], unified: str) -> None:
        self.controllers = controllers
        self.unified = unified
        self.mode = "v2" if unified and not controllers else "hybrid" if unified else "v1"


_layout: Layout | None = None


def layout() -> Layout:
    """The layout of this machine; the mount table is read once in a process."""
    global _layout
    if _layout is None:
        _layout = parse_mountinfo(read_file("/proc/self/mountinfo"))
    return _layout


def parse_mountinfo(text: str) -> Layout:
    """Find the cgroup mounts in the text of proc_pid_mountinfo(5); the first mount of each hierarchy counts."""
    controllers: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        if not separator or not right.startswith("cgroup"):
            continue
        point = _unescape(left.split(" ", 5)[4])
        kind, _, rest = right.partition(" ")
        if kind == "cgroup2":
            unified = unified or point
        elif kind == "cgroup":
            for option in rest.rpartition(" ")[2].split(","):
                if option in _V1_CONTROLLERS or option.startswith("name="):
                    controllers.setdefault(option, point)
    return Layout(controllers, unified)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """``/proc/PID/cgroup`` as controller -> cgroup path; the unified hierarchy under an empty name (cgroups(7))."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            found[name] = path
    return found


def check_path(path: str) -> str:
    """Refuse a cgroup path that could lead out of where it is put; returns it without redundant slashes."""
    if not path or "\0" in path or "\n" in path:
        raise InvalidInput(f"{path!r} is no cgroup path", field="linux.cgroupsPath")
    if ".." in path.split("/"):
        # runc cleans such a path; a path that needs cleaning is a mistake or an attack, and is not guessed at here.
        raise InvalidInput(f"{path!r} contains a '..' component", field="linux.cgroupsPath")
    return os.path.normpath("/" + path.lstrip("/")) if path.startswith("/") else os.path.normpath(path)


def read_file(path: str) -> str:
    """A small kernel file's text."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode("utf-8", "surrogateescape")
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def read_int(path: str, default: int = 0) -> int:
    """A kernel file that holds one number; ``default`` where there is no such file, or ``max`` stands in it."""
    try:
        text = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return default
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return default
        raise
    try:
        return int(text)
    except ValueError:
        return default


def read_pairs(path: str) -> dict[str, int]:
    """A flat keyed file (``memory.stat``) as numbers; empty where there is no such file."""
    try:
        text = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def write_file(path: str, value: str) -> None:
    """Write a value into a kernel file with one write(2).

    Raises:
        OSError: With ``path``.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode("utf-8", "surrogateescape"))
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def make_directory(
    point: str, path: str, adopt: Callable[[str, bool], bool] | None = None, *, parents_first: bool = False
) -> bool:
    """Make the group ``path`` in the hierarchy mounted at ``point``, with its parents.

    Args:
        point: Mount point.
        path: Cgroup path under it.
        adopt: Called with a directory, and whether it is a parent that we made: with the group's own, if we made it;
            and where that returns False, with each on the way, topmost first.
        parents_first: Each on the way comes first in any case.

    Returns:
        Whether the group was made; False if it was there.
    """
    leaf = point + path
    made = False
    if not parents_first:
        # The common case, in one call: the parent is there and the group is not.
        try:
            os.mkdir(leaf, 0o755)
            made = True
            if adopt is None or adopt(leaf, False):
                return True
        except FileExistsError:
            if adopt is None:
                return False
        except OSError as error:
            if error.errno not in _VANISHED:
                raise StageFailed("make cgroup", error, path=leaf) from error
    # A parent may be removed by someone else's clean-up between its making and the making of its child.
    for _ in range(64):
        try:
            return _make_chain(point, path, adopt) or made
        except OSError as error:
            if error.errno not in _VANISHED:
                raise StageFailed("make cgroup", error, path=leaf) from error
    raise StageFailed("make cgroup", OSError(errno.ENOENT, "a parent keeps vanishing"), path=leaf)


def _make_chain(point: str, path: str, adopt: Callable[[str, bool], bool] | None) -> bool:
    here = point
    made = False
    parts = [part for part in path.split("/") if part]
    for index, part in enumerate(parts):
        here = f"{here}/{part}"
        try:
            os.mkdir(here, 0o755)
            made = True
            if index < len(parts) - 1:
                _mark(here)
        except FileExistsError:
            made = False
        if adopt is not None:
            adopt(here, made and index < len(parts) - 1)
    return made


def _mark(path: str) -> None:
    try:
        os.setxattr(path, _MARK, b"1")
    except OSError:
        pass  # without CAP_SYS_ADMIN there is no marking; the parent then stays, as it would with runc


def remove_directory(point: str, path: str) -> None:
    """Remove the group ``path`` with all groups under it, then the marked parents that this leaves empty.

    Waits, for a bounded time, for processes that were killed a moment ago to leave the group.
    """
    leaf = point + path
    deadline = 0.0
    pause = 0.0005
    while True:
        try:
            _remove_tree(leaf)
            break
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise StageFailed("remove cgroup", error, path=leaf) from error
            now = time.monotonic()
            deadline = deadline or now + _REMOVAL_PATIENCE
            if now > deadline:
                raise StageFailed("remove cgroup", error, path=leaf, hint=_occupants(leaf)) from error
            await_change(leaf, pause)
            pause = min(pause * 2, 0.1)
    _remove_parents(point, path)


def _remove_tree(directory: str) -> None:
    try:
        os.rmdir(directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    # Deepest first: os.walk would read the files of each group for nothing and follow the recursion limit.
    for group in reversed(list(descend(directory))):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            pass


def _remove_parents(point: str, path: str) -> None:
    parent = os.path.dirname(path)
    while parent not in ("/", ""):
        try:
            if os.stat(point + parent).st_nlink > _NO_CHILDREN:
                return
            os.getxattr(point + parent, _MARK)
            os.rmdir(point + parent)
        except OSError:
            return  # not ours, still in use, or gone already
        parent = os.path.dirname(parent)


def _occupants(directory: str) -> str:
    try:
        pids = read_file(f"{directory}/cgroup.procs").split()
    except OSError:
        return ""
    return f"still in it: {' '.join(pids[:8])}" if pids else ""


def await_change(directory: str, seconds: float) -> None:
    """Wait until the kernel says that the group's population changed, or for ``seconds`` where it says nothing."""
    try:
        fd = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        time.sleep(seconds)  # v1 has no such notification
        return
    try:
        os.read(fd, 256)  # arms the notification
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        poll.poll(seconds * 1000)
    except OSError:
        pass
    finally:
        os.close(fd)


def descend(directory: str) -> Iterator[str]:
    """The group's directory and those of all groups under it, parents first."""
    pending = [directory]
    while pending:
        here = pending.pop()
        yield here
        try:
            with os.scandir(here) as entries:
                pending.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            pass


def read_pids(directory: str, *, below: bool) -> list[int]:
    """Processes in a group and, with ``below``, in the groups under it; a group that is gone has none."""
    found: list[int] = []
    for group in descend(directory) if below else (directory,):
        try:
            text = read_file(f"{group}/cgroup.procs")
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a threaded group of cgroup v2
                text = "\n".join(_processes_of(read_file(f"{group}/cgroup.threads").split()))
            elif error.errno in _VANISHED:
                continue
            else:
                raise
        found.extend(int(word) for word in text.split())
    return list(dict.fromkeys(pid for pid in found if pid > 0))


def _processes_of(threads: list[str]) -> list[str]:
    found = []
    for thread in threads:
        try:
            status = read_file(f"/proc/{thread}/status")
        except OSError:
            continue
        found.append(status.partition("Tgid:")[2].split(None, 1)[0])
    return found

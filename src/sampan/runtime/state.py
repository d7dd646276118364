"""What the runtime keeps of a container on disk, so that any process can go on with it.

    <root>/<id>/            0711; made first, atomically: whoever makes it owns the name
        state.json          what is needed to find the container again; written whole, by rename
        config.json         the configuration it was made with
        exec.fifo           there until the program was started: a byte in it starts the program
        report.fifo         where the starter reads why the program could not be executed
        notify/             the folder of the socket to which the program says that it is ready, if it was asked for

A directory without state.json, or whose state says "creating" with no pid, is one whose creation was cut short; only
``delete --force`` touches it.
"""

from __future__ import annotations

import os
import time

from sampan.errors import AlreadyExists, Corrupt, InvalidInput, NotFound, StageFailed
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOTIFY_FOLDER = "notify"
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def dumps(document: Any) -> bytes:
    """JSON, small and in ASCII."""
    return jsontext.dumps(document).encode()


def loads(content: bytes) -> Any:
    """Parse JSON. Raises ValueError, of bad UTF-8 and of depth without bound too."""
    return jsontext.loads(content)


def check_id(container_id: str) -> None:
    """Refuse an id that is empty, too long, or could be more than one name in a directory."""
    if not container_id or container_id in (".", "..") or not set(container_id) <= _ID_CHARACTERS:
        raise InvalidInput(f"{container_id!r} is not a container id", hint="letters, digits and _ + - . only")
    if len(container_id) > 1024:
        raise InvalidInput("the container id is longer than 1024 characters")


class StateDir:
    """One container's directory."""

    __slots__ = ("container_id", "path")

    def __init__(self, root: str, container_id: str) -> None:
        check_id(container_id)
        self.container_id = container_id
        self.path = os.path.join(root, container_id)

    def make(self) -> None:
        """Claim the id."""
        try:
            os.mkdir(self.path, 0o711)
        except FileExistsError:
            raise AlreadyExists(f"container {self.container_id!r} exists already") from None
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), 0o711, exist_ok=True)
            os.mkdir(self.path, 0o711)

    def remove(self) -> None:
        """Give the id up; absent is fine."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        for name in names:
            if name == NOTIFY_FOLDER:
                from sampan.linux import tree

                tree.remove(self.file(name))  # a container that may mount can have made its mount writable
            else:
                self.unlink(name)
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass

    def file(self, name: str) -> str:
        """Path of a file in the directory."""
        return f"{self.path}/{name}"

    def unlink(self, name: str) -> None:
        """Remove a file; absent is fine."""
        try:
            os.unlink(self.file(name))
        except FileNotFoundError:
            pass

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole. Not synced: it is on a tmpfs, and a reboot ends the container anyway."""
        temporary = self.file(f".{name}.new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, self.file(name))

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            NotFound: There is no such container, or its creation was cut short.
        """
        try:
            fd = os.open(self.file(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"container {self.container_id!r} does not exist") from None
        try:
            # No more room than is needed: what a large buffer takes is mapped anew each time, and unmapped again.
            return os.read(fd, os.fstat(fd).st_size + 1)
        finally:
            os.close(fd)

    def load(self, name: str = "state.json") -> dict[str, Any]:
        """A file's content as JSON.

        Raises:
            NotFound: There is no such container.
            Corrupt: It is not JSON.
        """
        try:
            document = loads(self.read(name))
        except ValueError as error:
            raise Corrupt(f"{self.file(name)}: {error}") from None
        if not isinstance(document, dict):
            raise Corrupt(f"{self.file(name)}: not an object")
        return document

    def store(self, document: dict[str, Any]) -> None:
        """Write state.json."""
        self.write("state.json", dumps(document))


def document(record: dict[str, Any], status: str) -> dict[str, Any]:
    """The state document of the runtime specification, with what runc adds and without what it leaves out."""
    found = {
        "ociVersion": record["ociVersion"],
        "id": record["id"],
        "pid": 0 if status == "stopped" else record["pid"],
        "status": status,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": record["created"],
        "annotations": record["annotations"],
        "owner": "",
    }
    if not found["annotations"]:
        del found["annotations"]
    return found


def now() -> str:
    """The present in RFC 3339 with nanoseconds, as runc's state document has it."""
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09}Z"


def start_time(pid: int) -> int:
    """When process ``pid`` began, in clock ticks since boot; 0 if it is gone or a zombie.

    A pid and its start time name a process for ever; a pid alone does not (proc(5), /proc/PID/stat, field 22).
    """
    fields = _stat(pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return 0
    return int(fields[19])


def stopped(pid: int) -> bool:
    """Whether process ``pid`` was stopped by a signal or a tracer (field 3)."""
    return _stat(pid)[:1] in ([b"T"], [b"t"])


def stopped_at(stage: str) -> StageFailed:
    """The error for a process that was found stopped before it was the container's program."""
    hint = "a process that shares its PID namespace stops what it sees there"
    return StageFailed(stage, OSError(0, "the process was stopped on its way"), hint=hint)


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the third on; none if it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        content = os.read(fd, 4096)
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)
    # The name, in brackets, may hold anything: fields are counted from the last bracket.
    return content[content.rindex(b")") + 2 :].split()

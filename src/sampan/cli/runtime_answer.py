"""What the launcher answers `state` from, without Python.

An engine asks for a container's state again and again, and an interpreter takes longer to start than runc to answer.
So `create` leaves the answer of a running container beside its state, and what shows whether it still runs:

    pid; start time of the process; file of the freezer; its first line while not frozen; then the document

`launcher/sampan-runtime` reads it, and leaves to Python what is not plain: a created container, one whose state.json is
newer, another form of the command line.
"""

from __future__ import annotations

import os

from sampan.cli.runtime_output import indented, write_all
from sampan.runtime.state import StateDir, document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.runtime.native import NativeHandler

NAME = "answer"
#: Bytes: a shell reads one at a time, and takes longer for more than Python takes to start.
_LONGEST = 8192


def keep(handler: NativeHandler, name: str) -> None:
    """Leave the answer for the container ``name``; without one, Python answers."""
    directory = StateDir(handler.root, name)
    record = directory.load()
    freezer, thawed = handler.group(name).freezer_file()
    lines = [str(record["pid"]), str(record["start"]), freezer, thawed, indented(document(record, "running")), ""]
    answer = "\n".join(lines).encode("utf-8", "surrogateescape")
    if len(answer) > _LONGEST or any("\n" in line for line in lines[:4]):
        return
    try:
        fd = os.open(directory.file(NAME), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, answer)
        finally:
            os.close(fd)
    except OSError:
        return

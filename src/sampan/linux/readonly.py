"""Programs that nobody can change: files of a file system of their own that is read-only from then on.

A container has them as /proc/PID/exe, and owns them if its root is the machine's. The seals of a memory file keep their
content (fcntl(2), F_ADD_SEALS) and not their mode: chmod(2) would end every other container that is to start from them.
F_SEAL_EXEC, since Linux 6.3, does not stop an access control list from taking the permission to execute.
"""

from __future__ import annotations

import os

from sampan.linux import mount as m
from sampan.linux.process import sealed_memfd


def program(name: str, content: bytes) -> int:
    """An executable file, open for reading, close-on-exec; whoever may mount nothing gets a sealed memory file.

    Args:
        name: What /proc/PID/exe shows.
        content: The program.
    """
    try:
        mount = _file_system()
    except PermissionError:
        return sealed_memfd(name, content, executable=True)
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=mount)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, 0o555)  # whatever the umask is
        finally:
            os.close(fd)
        m.set_attributes(mount, set=m.MOUNT_ATTR_RDONLY)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _file_system() -> int:
    context = m.fsopen("tmpfs")
    try:
        m.fsconfig_create(context)
        return m.fsmount(context)
    finally:
        os.close(context)

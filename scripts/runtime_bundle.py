"""Bundles for tests of the OCI runtime: a busybox root, a configuration, and a container run in this process."""

from __future__ import annotations

import copy
import os
import select
import shutil
from pathlib import Path
from typing import Any

from sampan.runtime.handler import Created, Stdio
from sampan.runtime.native import NativeHandler
from sampan.runtime.options import Options

BUSYBOX = "/bin/busybox"
APPLETS = """
    cat chmod chown cut df dmesg echo env false find grep head hostname id kill ln ls mkdir mknod mount nsenter ps
    pwd readlink rm sed sh sleep sort stat stty tail test touch true tty umount unshare vi wc
""".split()

DEFAULT_CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD"]

_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]


def make_rootfs(path: Path) -> None:
    """A root file system of busybox and its applets as symlinks."""
    for directory in ("bin", "etc", "tmp", "root", "data"):
        (path / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv/web:/bin/sh\n")


def base_config() -> dict[str, Any]:
    """A configuration such as engines write, with every namespace new save the user's."""
    return {
        "ociVersion": "1.2.0",
        "process": {
            "args": ["true"],
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": {kind: list(DEFAULT_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": copy.deepcopy(_MOUNTS),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"],
        },
    }


class Ended:
    """How a container ended, and what it said."""

    def __init__(self, status: int, output: str, created: Created) -> None:
        self.status = status
        self.output = output
        self.created = created


class Box:
    """One bundle, and containers of it.

    Args:
        directory: Made where missing; must be searchable by all for containers in user namespaces.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / "bundle"
        self.rootfs = self.bundle / "rootfs"
        make_rootfs(self.rootfs)
        self.handler = NativeHandler(str(directory / "state"))
        self.config = base_config()
        self.container_id = f"test-{os.getpid()}-{directory.name[-24:]}"

    @property
    def process(self) -> dict[str, Any]:
        """The process of the configuration."""
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        """The linux part of the configuration."""
        linux: dict[str, Any] = self.config["linux"]
        return linux

    def create(self, *args: str, stdio: Stdio | None = None, options: Options | None = None) -> Created:
        """Create the container, to run ``args``."""
        if args:
            self.process["args"] = list(args)
        return self.handler.create(
            self.container_id, str(self.bundle), stdio or Stdio(), config=self.config, options=options
        )

    def run(self, *args: str, options: Options | None = None) -> Ended:
        """Run ``args`` in a container from its creation to its deletion."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                created = self.create(*args, stdio=Stdio(-1, writer, writer), options=options)
            finally:
                os.close(writer)
            try:
                self.handler.start(self.container_id)
                output = read_all(reader)
                status = os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1])
            except BaseException:
                self.discard(created)
                raise
            self.handler.delete(self.container_id)
        finally:
            os.close(reader)
        return Ended(status, output, created)

    def sh(self, script: str) -> str:
        """Run a shell script that must succeed; what it said."""
        ended = self.run("sh", "-euc", script)
        assert ended.status == 0, (ended.status, ended.output)
        return ended.output.strip()

    def exec(self, *args: str, process: dict[str, Any] | None = None) -> Ended:
        """Run ``args`` in the running container."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            document = {**copy.deepcopy(self.process), **(process or {}), "args": list(args)}
            try:
                created = self.handler.exec(self.container_id, document, Stdio(-1, writer, writer))
            finally:
                os.close(writer)
            output = read_all(reader)
            status = os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1])
        finally:
            os.close(reader)
        return Ended(status, output, created)

    def discard(self, created: Created | None = None) -> None:
        """Kill and remove the container, reap its init, close its terminal."""
        self.handler.delete(self.container_id, force=True)
        if created is not None:
            if created.console >= 0:
                os.close(created.console)
            try:
                os.waitpid(created.pid, 0)
            except ChildProcessError:
                pass


def read_all(fd: int, timeout: float = 30.0) -> str:
    """Everything from a pipe until its last writer is gone."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    chunks = []
    while poll.poll(int(timeout * 1000)):
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode("utf-8", "replace")


def read_terminal(master: int) -> str:
    """Everything from a pty until its last slave is gone, which the kernel reports as EIO."""
    output = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            return output.decode("utf-8", "replace")
        output += chunk

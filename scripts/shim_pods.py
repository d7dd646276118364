"""Pods for tests of the monitor: a folder, a zygote's monitor, bundles over a static busybox."""

from __future__ import annotations

import json
import os
import select
import shutil
from pathlib import Path
from typing import Any

from sampan.linux.process import pidfd_open
from sampan.shim.client import MonitorClient
from sampan.shim.zygote import Zygote

BUSYBOX = "/bin/busybox"
RUNC = shutil.which("runc", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin") or ""

_DEVICES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE")


class Pod:
    """A monitor with its folder.

    Args:
        path: The pod's folder.
        zygote: What forks the monitor.
        kind: ``native`` or ``external``.
        standby: Seconds that a fork stays for the first container.
    """

    def __init__(self, path: Path, zygote: Zygote, kind: str, *, standby: float = 3) -> None:
        self.path = path
        self.kind = kind
        self.cgroup = f"/sampan-test-shim-{os.getpid()}/{path.name}"
        self.handler = {"type": kind, "root": str(path / "runtime"), "binary": RUNC}
        options = {"handler": self.handler, "standby": standby}
        self.pid = zygote.fork_monitor(path.name, str(path / "pod"), options)
        self.client = MonitorClient(str(path / "pod/control.sock"))

    @property
    def directory(self) -> str:
        """The pod's folder."""
        return str(self.path / "pod")

    def log(self, name: str) -> Path:
        """A container's log file."""
        return self.path / f"{name}.log"

    def texts(self, name: str, stream: str = "stdout") -> list[str]:
        """The texts of a container's log lines of one stream."""
        lines = self.log(name).read_text().splitlines()
        return [line.split(" ", 3)[3] for line in lines if line.split(" ")[1] == stream]

    def bundle(self, name: str, script: str, **changes: Any) -> str:
        """A bundle that runs ``script`` in busybox's shell; ``changes`` go to the process."""
        path = self.path / name
        (path / "rootfs/bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(BUSYBOX, path / "rootfs/bin/busybox")
        for applet in ("sh", "cat", "echo", "sleep", "true", "head", "seq", "stty", "kill", "dd", "yes", "mkfifo"):
            (path / "rootfs/bin" / applet).symlink_to("busybox")
        config = configuration(["/bin/sh", "-c", script], f"{self.cgroup}/{name}")
        limits = changes.pop("resources", None)
        if limits is not None:
            config["linux"]["resources"] = limits
        config["linux"]["namespaces"] = changes.pop("namespaces", config["linux"]["namespaces"])
        if any("path" in one and one["type"] == "uts" for one in config["linux"]["namespaces"]):
            del config["hostname"]
        config["process"].update(changes)
        (path / "config.json").write_text(json.dumps(config))
        return str(path)

    def create(self, name: str, script: str, *, stdin: bool = False, stdin_once: bool = False, **changes: Any) -> int:
        """Make a container that logs."""
        return self.client.create(
            name,
            self.bundle(name, script, **changes),
            tty=bool(changes.get("terminal")),
            stdin=stdin,
            stdin_once=stdin_once,
            log_path=str(self.log(name)),
            cgroup=f"{self.cgroup}/{name}",
        )

    def run(self, name: str, script: str, **changes: Any) -> int:
        """Make and start one."""
        pid = self.create(name, script, **changes)
        self.client.start(name)
        return pid

    def close(self) -> None:
        """End the monitor and everything in it, and remove its cgroups."""
        self.client.shutdown(force=True)
        for top in {self.cgroup, os.path.dirname(self.cgroup)}:
            for found in sorted(Path("/sys/fs/cgroup").glob(f"*{top}/**/"), reverse=True):
                try:
                    found.rmdir()
                except OSError:
                    pass


def configuration(args: list[str], cgroup: str) -> dict[str, Any]:
    """A config.json as runc's ``spec`` writes it, smaller."""
    capabilities = list(_DEVICES)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }


def process(*args: str, **changes: Any) -> dict[str, Any]:
    """An OCI process object for an exec."""
    return {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, **changes}


def ended(pid: int, timeout: float = 10) -> bool:
    """Whether a process ends in time. When it is reaped is its parent's affair: an init may take seconds."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return ready(pidfd, timeout)
    finally:
        os.close(pidfd)


def ready(fd: int, timeout: float = 10) -> bool:
    """Whether a descriptor can be read in time; a pidfd can when its process has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))

"""The command line of the OCI runtime for tests: on a root of its own, with one bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).parents[1] / "src/sampan/cli/runtime_launch.py"


class Runtime:
    """The command on a root of its own, with one bundle."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root"
        self.bundle = path / "bundle"
        (self.bundle / "rootfs/bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", self.bundle / "rootfs/bin/busybox")
        (self.bundle / "rootfs/bin/sh").symlink_to("busybox")
        self.run("spec", "--bundle", str(self.bundle))
        self.config: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        self.config["linux"]["cgroupsPath"] = f"/sampan-test-cli-{os.getpid()}/{path.name}"
        self.configure("sleep", "1000")

    def configure(self, *args: str, terminal: bool = False, shell: str = "") -> None:
        """Write the configuration, of a program or of a shell script."""
        self.config["process"]["args"] = ["/bin/sh", "-c", shell] if shell else ["/bin/busybox", *args]
        self.config["process"]["terminal"] = terminal
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def command(self, *args: str) -> list[str]:
        """The words of a command line."""
        return [sys.executable, "-I", "-S", str(LAUNCH), "--root", str(self.root), *args]

    def run(self, *args: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command, which must end with ``code``."""
        more.setdefault("stdin", subprocess.DEVNULL)
        ended = subprocess.run(
            self.command(*args), check=False, cwd=self.bundle, capture_output=True, text=True, **more
        )
        assert ended.returncode == code, (args, ended)
        return ended

    def state(self, name: str) -> dict[str, Any]:
        """The state document."""
        document: dict[str, Any] = json.loads(self.run("state", name).stdout)
        return document

    def start(self, name: str) -> None:
        """Create and start a container."""
        # Not captured: the container would hold the pipes open.
        subprocess.run(self.command("create", name), cwd=self.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
        self.run("start", name)


@contextmanager
def private_runtime(path: Path) -> Iterator[Runtime]:
    """A runtime whose containers and groups are gone afterwards."""
    made = Runtime(path)
    yield made
    for state in json.loads(made.run("list", "--format", "json").stdout) or []:
        made.run("delete", "--force", state["id"])
    assert not list(Path("/sys/fs/cgroup").glob(f"*/sampan-test-cli-{os.getpid()}"))
    assert not made.root.exists() or not os.listdir(made.root)

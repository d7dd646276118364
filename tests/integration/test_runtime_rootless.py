"""Containers of a user without rights: one id mapped, no control group of their own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_bundle import make_rootfs
from seccomp_agent import agent

import readable_checkout

pytestmark = pytest.mark.root

RUNTIME = Path(sys.executable).parent / "sampan-runtime"
NOBODY = 65534


class Rootless:
    """A bundle of user nobody's, and the runtime as that user runs it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / "bundle"
        make_rootfs(self.bundle / "rootfs")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        self.run("spec", "--rootless", "--bundle", str(self.bundle))

    def configure(self, **more: Any) -> None:
        """Change the configuration: the process's fields, and ``linux`` of the whole."""
        path = self.bundle / "config.json"
        config = json.loads(path.read_text())
        config["linux"].update(more.pop("linux", {}))
        config["process"].update({"terminal": False, **more})
        path.write_text(json.dumps(config))

    def run(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the runtime, which must end with ``code``."""
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
        command += [str(RUNTIME), "--root", str(self.directory / "state"), *args]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=self.directory,
            preexec_fn=readable_checkout.enter,
        )
        assert done.returncode == code, done
        return done


@pytest.fixture
def rootless() -> Iterator[Rootless]:
    with tempfile.TemporaryDirectory(prefix="sampan-rootless-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        made = Rootless(directory)
        yield made
        made.run("delete", "--force", "c1")
        shutil.rmtree(directory / "state", ignore_errors=True)


def test_a_user_without_rights_runs_a_container(rootless: Rootless) -> None:
    rootless.configure(args=["sh", "-c", "id -u; id -g; hostname; cat /proc/self/uid_map; ls /"])
    said = rootless.run("run", "--bundle", str(rootless.bundle), "c1").stdout.split()
    assert said[:6] == ["0", "0", "sampan", "0", str(NOBODY), "1"]
    assert "bin" in said
    assert "home" not in said


def test_a_filter_may_notify_of_what_hands_its_listener_on(rootless: Rootless) -> None:
    """Taken out of the process by a runtime that may trace nothing but its own container."""
    path = str(rootless.directory / "agent")
    rule = {"names": ["connect", "sendmsg", "recvmsg", "close", "prctl"], "action": "SCMP_ACT_NOTIFY"}
    filter_ = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "syscalls": [rule]}
    rootless.configure(args=["echo", "well"], linux={"seccomp": filter_})
    with agent(path) as seen:
        assert rootless.run("run", "--bundle", str(rootless.bundle), "c1").stdout == "well\n"
        with open(seen) as file:
            assert file.readline() == "listener\n"


def test_its_life_step_by_step(rootless: Rootless) -> None:
    # It gives up the test's pipes, whose end is waited for.
    rootless.configure(args=["sh", "-c", "exec sleep 100 > /dev/null 2>&1"])
    bundle = str(rootless.bundle)
    rootless.run("run", "--detach", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1")
    state = json.loads(rootless.run("state", "c1").stdout)
    assert state["status"] == "running"
    pid = int((rootless.bundle / "pid").read_text())
    assert f"Uid:\t{NOBODY}\t" in Path(f"/proc/{pid}/status").read_text()
    assert rootless.run("exec", "c1", "id", "-u").stdout.strip() == "0"
    rootless.run("kill", "c1", "KILL")
    rootless.run("delete", "--force", "c1")
    assert os.listdir(rootless.directory / "state") == []


def test_limits_that_it_may_not_set_are_refused(rootless: Rootless) -> None:
    rootless.configure(args=["true"], linux={"resources": {"memory": {"limit": 64 << 20}}})
    said = rootless.run("run", "--bundle", str(rootless.bundle), "c1", code=1).stderr
    assert "make cgroup" in said
    assert "EACCES" in said
    assert os.listdir(rootless.directory / "state") == []

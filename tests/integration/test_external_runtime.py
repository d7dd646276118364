"""Containers by Debian's runc, driven through its command line."""

import errno
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.errors import AlreadyExists, NotFound, ProgramFailed, SampanError, WrongState
from sampan.linux.process import PR_SET_CHILD_SUBREAPER, become_subreaper, prctl
from sampan.runtime.external import ExternalHandler
from sampan.runtime.handler import Stdio

RUNC = shutil.which("runc") or shutil.which("runc", path="/usr/sbin:/usr/bin")

pytestmark = [pytest.mark.root, pytest.mark.skipif(RUNC is None, reason="runc is not installed")]


class Bundle:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "rootfs/bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", path / "rootfs/bin/busybox")
        assert RUNC is not None
        subprocess.run([RUNC, "spec"], cwd=path, check=True)
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["linux"]["cgroupsPath"] = f"/sampan-test-external-{os.getpid()}/{path.name}"

    def write(self, *args: str, terminal: bool = False) -> str:
        self.config["process"].update(args=["/bin/busybox", *args], terminal=terminal)
        (self.path / "config.json").write_text(json.dumps(self.config))
        return str(self.path)


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """The caller of an external runtime adopts its containers: while a test of it runs, and no orphan after."""
    before = children()
    become_subreaper()
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0)
    for pid in children() - before:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path)


@pytest.fixture
def runc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalHandler]:
    root = tmp_path_factory.mktemp("runc")
    assert RUNC is not None
    handler = ExternalHandler(RUNC, str(root))
    yield handler
    for name in os.listdir(root):
        handler.delete(name, force=True)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    assert not os.path.exists(f"{root}.files")
    for found in Path("/sys/fs/cgroup").glob(f"*/sampan-test-external-{os.getpid()}"):
        found.rmdir()


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_a_life(runc: ExternalHandler, bundle: Bundle) -> None:
    out, into = os.pipe()
    created = runc.create("one", bundle.write("echo", "hello"), Stdio(-1, into, -1))
    os.close(into)
    assert created.console == -1
    assert runc.state("one")["status"] == "created"
    assert runc.state("one")["pid"] == created.pid
    runc.start("one")
    assert os.waitpid(created.pid, 0)[1] == 0
    assert read_all(out) == b"hello\n"
    assert runc.state("one")["status"] == "stopped"
    runc.delete("one")
    with pytest.raises(NotFound, match=r"runc state: .*does not exist"):
        runc.state("one")
    runc.delete("one", force=True)


def test_exec_kill_pause_update_and_stats(runc: ExternalHandler, bundle: Bundle) -> None:
    created = runc.create("two", bundle.write("sleep", "1000"), Stdio())
    runc.start("two")
    out, into = os.pipe()
    process = {"cwd": "/", "args": ["/bin/busybox", "pwd"], "env": ["PATH=/bin"]}
    ran = runc.exec("two", process, Stdio(-1, into, into))
    os.close(into)
    assert os.waitpid(ran.pid, 0)[1] == 0
    assert read_all(out) == b"/\n"
    assert runc.pids("two") == [created.pid]
    runc.update("two", {"pids": {"limit": 77}})
    assert runc.stats("two")["pids"]["limit"] == 77
    runc.pause("two")
    assert runc.state("two")["status"] == "paused"
    runc.resume("two")
    with pytest.raises(WrongState):
        runc.delete("two")
    runc.kill("two", signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(created.pid, 0)[1]) == signal.SIGKILL
    with pytest.raises(WrongState):
        runc.kill("two", signal.SIGKILL)
    runc.delete("two")


@pytest.mark.parametrize(
    ("program", "number"), [("no-such", errno.ENOENT), ("/no/such", errno.ENOENT), ("/bin", errno.EACCES)]
)
def test_a_program_that_can_not_run(runc: ExternalHandler, bundle: Bundle, program: str, number: int) -> None:
    folder = bundle.write()
    config = Path(folder) / "config.json"
    document = json.loads(config.read_text())
    document["process"]["args"] = [program]
    config.write_text(json.dumps(document))
    with pytest.raises(ProgramFailed, match=program) as failure:
        runc.create("none", folder, Stdio())
    assert failure.value.errno == number


def test_terminals(runc: ExternalHandler, bundle: Bundle) -> None:
    created = runc.create("tty", bundle.write("tty", terminal=True), Stdio())
    assert not os.get_inheritable(created.console)
    runc.start("tty")
    select.select([created.console], [], [], 10)
    assert os.read(created.console, 100) == b"/dev/pts/0\r\n"
    os.waitpid(created.pid, 0)
    os.close(created.console)


def test_failures_say_why(runc: ExternalHandler, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["args"] = ["/no-such-program"]
    (bundle.path / "config.json").write_text(json.dumps(bundle.config))
    with pytest.raises(SampanError, match=r"runc create: .*no-such-program"):
        runc.create("bad", str(bundle.path), Stdio())
    with pytest.raises(SampanError, match=r"read configuration at .*/nowhere/config\.json: ENOENT"):
        runc.create("bad", str(tmp_path / "nowhere"), Stdio())
    runc.create("twice", bundle.write("true"), Stdio())
    with pytest.raises(AlreadyExists):
        runc.create("twice", str(bundle.path), Stdio())
    with pytest.raises(NotFound):
        runc.start("nobody")
    with pytest.raises(NotFound, match="not installed"):
        ExternalHandler("/no/such/runtime", "/tmp/x").state("one")

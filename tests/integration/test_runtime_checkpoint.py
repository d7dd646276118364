"""Checkpoint and restore: through criu where one works on this kernel, and what is said where none does."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box
from runtime_command import private_runtime

from sampan.errors import InvalidInput, StageFailed, Unsupported, WrongState
from sampan.runtime.checkpoint import Options
from sampan.runtime.handler import Stdio

pytestmark = pytest.mark.root

WORK = Path(__file__).resolve().parents[2] / ".work"
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


@pytest.fixture
def criu() -> str:
    """A criu that works here: the later release's that the setup fetches, or the machine's."""
    for path in (str(WORK / "bin" / "criu"), shutil.which("criu") or ""):
        if os.path.exists(path) and subprocess.run([path, "check"], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip("there is no criu that works with this kernel")


def _add_mounts(box: Box, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    box.config["mounts"].append({"destination": "/data", "type": "bind", "source": str(data), "options": ["bind"]})
    box.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )


def test_a_container_goes_on_where_it_was(box: Box, tmp_path: Path, criu: str) -> None:
    _add_mounts(box, tmp_path)
    options = Options(str(tmp_path / "image"), criu=criu)
    reader, writer = os.pipe()
    with open(reader) as said, open(writer, "w"):
        streams = Stdio(-1, writer, writer)
        created = box.create("sh", "-c", COUNT, stdio=streams)
        box.handler.start(box.container_id)
        before = [said.readline() for _ in range(3)]
        box.handler.checkpoint(box.container_id, options)
        os.waitpid(created.pid, 0)
        assert box.handler.state(box.container_id)["status"] == "stopped"
        box.handler.delete(box.container_id)
        again = box.handler.restore(box.container_id, str(box.bundle), streams, options, config=box.config)
        try:
            # What was in the pipe when it stopped, and then what follows.
            numbers = [int(line) for line in (*before, *(said.readline() for _ in range(60)))]
            assert numbers == list(range(1, 64))
            assert box.handler.state(box.container_id)["status"] == "running"
            assert again.pid in box.handler.pids(box.container_id)
            assert box.exec("hostname").output.strip() == "box"
            assert box.exec("ls", "/data").status == 0
        finally:
            box.discard(again)
    assert os.listdir(box.handler.root) == []


def test_a_container_may_run_on(box: Box, tmp_path: Path, criu: str) -> None:
    _add_mounts(box, tmp_path)
    created = box.create("sh", "-c", COUNT)
    box.handler.start(box.container_id)
    box.handler.checkpoint(box.container_id, Options(str(tmp_path / "image"), leave_running=True, criu=criu))
    assert box.handler.state(box.container_id)["status"] == "running"
    assert (tmp_path / "image" / "dump.log").exists()
    box.discard(created)


def test_a_restore_that_fails_says_why_and_leaves_nothing(box: Box, tmp_path: Path, criu: str) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(StageFailed, match=r"restore at .*restore\.log: .*criu"):
        box.handler.restore(
            box.container_id, str(box.bundle), Stdio(), Options(str(tmp_path / "image"), criu=criu), config=box.config
        )
    assert os.listdir(box.handler.root) == []


def test_without_criu_it_is_said_so(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="criu, which is not installed"):
        box.handler.checkpoint(box.container_id, Options(str(tmp_path / "image")))
    with pytest.raises(Unsupported, match="criu does not work on this machine"):
        box.handler.checkpoint(box.container_id, Options(str(tmp_path / "image"), criu="/bin/false"))
    assert box.handler.state(box.container_id)["status"] == "running"
    assert not (tmp_path / "image").exists()
    box.discard(created)
    with pytest.raises(Unsupported, match="criu"):
        box.handler.restore("other", str(box.bundle), Stdio(), Options(str(tmp_path)), config=box.config)
    assert os.listdir(box.handler.root) == []


def test_a_restore_into_the_group_of_others_ends_nobody(box: Box, tmp_path: Path) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    config = {**box.config, "linux": {**box.linux, "cgroupsPath": f"/sampan/{box.container_id}"}}
    with pytest.raises(WrongState, match="has processes already"):
        box.handler.restore("other", str(box.bundle), Stdio(), Options(str(tmp_path)), config=config)
    assert box.handler.state(box.container_id)["status"] == "running"
    assert os.listdir(box.handler.root) == [box.container_id]
    box.discard(created)


def test_what_does_not_run_is_not_checkpointed(box: Box, tmp_path: Path) -> None:
    created = box.create("true")
    box.handler.start(box.container_id)
    os.waitpid(created.pid, 0)
    with pytest.raises(WrongState, match="is not running"):
        box.handler.checkpoint(box.container_id, Options(str(tmp_path / "image")))


def test_what_is_to_be_done_with_connections_and_files_is_told_to_criu(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (criu := tmp_path / "criu").write_text(f'#!/bin/sh\n[ "$1" = check ] || echo "$@" > {told}\n')
    criu.chmod(0o755)
    with private_runtime(tmp_path) as runtime:
        runtime.start("c1")
        dump = ("--criu", str(criu), "checkpoint", "--leave-running", "--image-path", str(tmp_path / "image"))
        runtime.run(*dump, "--tcp-skip-in-flight", "--link-remap", "c1")
        assert {"dump", "--skip-in-flight", "--link-remap"} <= set(told.read_text().split())
        runtime.run(*dump, "c1")
        assert not {"--skip-in-flight", "--link-remap"} & set(told.read_text().split())


def test_options_that_criu_does_not_know_are_refused() -> None:
    with pytest.raises(InvalidInput, match="manage-cgroups-mode"):
        Options("x", manage_cgroups="loose")
    with pytest.raises(InvalidInput, match="empty-ns"):
        Options("x", empty_ns=("uts",))

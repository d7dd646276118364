"""Hooks: which run when, where, with what, and what their failures do."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_bundle import Box

from sampan.errors import StageFailed

pytestmark = pytest.mark.root

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


def _hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], **more}


def test_all_hooks_run_in_order_with_the_state(box: Box, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir(mode=0o777)
    box.config["mounts"].append({"destination": "/log", "type": "bind", "source": str(log), "options": ["bind"]})
    box.config["hooks"] = {
        kind: [
            _hook(
                f"cat > {'/log' if kind == 'startContainer' else log}/{number}-{kind};"
                f"readlink /proc/self/ns/mnt > {'/log' if kind == 'startContainer' else log}/ns-{kind}"
            )
        ]
        for number, kind in enumerate(KINDS)
    }
    created = box.create("sleep", "100")
    assert sorted(p.name for p in log.glob("[0-9]*")) == ["0-prestart", "1-createRuntime", "2-createContainer"]
    box.handler.start(box.container_id)
    box.handler.kill(box.container_id, 9)
    os.waitpid(created.pid, 0)
    box.handler.delete(box.container_id)
    states = [json.loads((log / f"{number}-{kind}").read_text()) for number, kind in enumerate(KINDS)]
    assert [state["status"] for state in states] == [
        "created", "creating", "creating", "created", "running", "stopped",
    ]  # fmt: skip
    assert all(state["id"] == box.container_id and state["bundle"] == str(box.bundle) for state in states)
    assert [state["pid"] for state in states] == [created.pid, created.pid, 1, 1, created.pid, 0]
    here = os.readlink("/proc/self/ns/mnt")
    inside = [(log / f"ns-{kind}").read_text().strip() != here for kind in KINDS]
    assert inside == [False, False, True, True, False, False]


def test_a_hook_without_an_environment_has_that_of_who_runs_it(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's on the machine, the program's in the container, and never the runtime's in there."""
    monkeypatch.setenv("RUNTIMES", "runtime's")
    box.process["env"] = ["PATH=/usr/bin:/bin", "PROGRAMS=program's"]
    (log := tmp_path / "log").mkdir(mode=0o777)
    box.config["mounts"].append({"destination": "/log", "type": "bind", "source": str(log), "options": ["bind"]})
    variants: tuple[dict[str, Any], ...] = ({}, {"env": None}, {"env": []}, {"env": ["HOOKS=hook's"]})
    for kind in KINDS:
        said = f'echo "$RUNTIMES$PROGRAMS$HOOKS" >> {"/log" if kind == "startContainer" else log}/{kind}'
        hooks = [{"path": "/bin/sh", "args": ["sh", "-c", said], **variant} for variant in variants]
        box.config.setdefault("hooks", {})[kind] = hooks
    created = box.create("true")
    box.handler.start(box.container_id)
    os.waitpid(created.pid, 0)
    box.handler.delete(box.container_id)
    default = {"createContainer": "", "startContainer": "program's"}
    for kind in KINDS:
        absent = default.get(kind, "runtime's")
        assert (log / kind).read_text().splitlines() == [absent, absent, "", "hook's"], kind


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_fails_the_create(box: Box, kind: str) -> None:
    box.config["hooks"] = {kind: [_hook("echo so it goes >&2; exit 3")]}
    with pytest.raises(StageFailed, match=f"{kind} hook 0.*exit status 3: so it goes"):
        box.create("true")
    assert os.listdir(box.handler.root) == []


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
@pytest.mark.parametrize("fails", ["hook", "program"])
def test_poststop_hooks_run_when_a_creation_fails_after_hooks(
    box: Box, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, fails: str
) -> None:
    box.config["hooks"] = {
        kind: [_hook("exit 3" if fails == "hook" else "exit 0")],
        "poststop": [_hook("echo no luck; exit 4"), _hook(f"cat > {tmp_path}/said")],
    }
    with pytest.raises(StageFailed) as caught:
        box.create("no-such-program")
    assert (f"{kind} hook 0" if fails == "hook" else "no-such-program") in str(caught.value)
    state = json.loads((tmp_path / "said").read_text())
    assert (state["id"], state["status"], state["pid"]) == (box.container_id, "stopped", 0)
    assert "exit status 4: no luck" in capfd.readouterr().err
    assert os.listdir(box.handler.root) == []


def test_poststop_hooks_do_not_run_when_a_creation_fails_before_hooks(box: Box, tmp_path: Path) -> None:
    box.config["hooks"] = {"createRuntime": [_hook("exit 0")], "poststop": [_hook(f"touch {tmp_path}/ran")]}
    box.config["mounts"].append({"destination": "/x", "type": "nothing", "source": "none", "options": []})
    with pytest.raises(StageFailed):
        box.create("true")
    assert not (tmp_path / "ran").exists()


def test_a_start_container_hook_that_fails_fails_the_start(box: Box) -> None:
    box.config["hooks"] = {"startContainer": [_hook("exit 3")]}
    created = box.create("true")
    with pytest.raises(StageFailed, match="exit status 3"):
        box.handler.start(box.container_id)
    os.waitpid(created.pid, 0)


@pytest.mark.parametrize("script", ["exec sleep 60", "exec yes"])
def test_a_hook_is_held_to_its_timeout(box: Box, script: str) -> None:
    box.config["hooks"] = {"createRuntime": [_hook(script, timeout=1)]}
    with pytest.raises(StageFailed, match="still running after 1 s"):
        box.create("true")


def test_a_hook_gets_the_whole_of_a_large_state_and_need_not_read_it(box: Box, tmp_path: Path) -> None:
    box.config["annotations"] = {"large": "x" * 300_000}
    box.config["hooks"] = {"createRuntime": [_hook("exit 0"), _hook(f"cat > {tmp_path}/seen")]}
    box.discard(box.create("sleep", "100"))
    assert json.loads((tmp_path / "seen").read_text())["annotations"] == box.config["annotations"]


def test_what_a_hook_makes_is_not_for_everybody_to_write(box: Box, tmp_path: Path) -> None:
    (log := tmp_path / "log").mkdir(mode=0o777)
    box.config["mounts"].append({"destination": "/log", "type": "bind", "source": str(log), "options": ["bind"]})
    for kind in KINDS:
        made = f"{'/log' if kind == 'startContainer' else log}/{kind}"
        box.config.setdefault("hooks", {})[kind] = [_hook(f"mkdir {made}")]
    assert box.run("true").status == 0
    assert {kind: stat.S_IMODE((log / kind).stat().st_mode) for kind in KINDS} == dict.fromkeys(KINDS, 0o755)


def test_a_hook_that_does_not_exist_is_named(box: Box) -> None:
    box.config["hooks"] = {"createRuntime": [{"path": "/no/such/hook"}]}
    with pytest.raises(StageFailed, match="createRuntime hook 0 at /no/such/hook: ENOENT"):
        box.create("true")


def test_a_create_container_hook_sees_the_containers_mounts_at_the_root_path(box: Box) -> None:
    box.config["hooks"] = {"createContainer": [_hook(f"mkdir {box.rootfs}/dev/made; test -e {box.rootfs}/proc/self")]}
    assert box.sh("ls -d /dev/made") == "/dev/made"


def test_a_poststop_hook_that_fails_does_not_keep_the_container(box: Box) -> None:
    box.config["hooks"] = {"poststop": [_hook("exit 3")]}
    assert box.run("true").status == 0
    assert os.listdir(box.handler.root) == []


def test_a_poststart_hook_that_fails_is_the_error_of_a_container_that_has_ended(box: Box) -> None:
    box.config["ociVersion"] = "1.3.0"
    box.config["hooks"] = {"poststart": [_hook(f"while [ -e {box.rootfs}/alive ]; do :; done; sleep 0.2; exit 3")]}
    (box.rootfs / "alive").touch()
    created = box.create("sh", "-c", "rm /alive")
    with pytest.raises(StageFailed, match=r"poststart hook 0.*exit status 3"):
        box.handler.start(box.container_id)
    os.waitpid(created.pid, 0)
    box.handler.delete(box.container_id)


@pytest.mark.parametrize(("version", "stops"), [("1.2.0", False), ("1.3.0", True)])
def test_a_poststart_hook_that_fails_stops_the_container_since_version_1_3(
    box: Box, tmp_path: Path, version: str, stops: bool
) -> None:
    box.config["ociVersion"] = version
    box.config["hooks"] = {"poststart": [_hook("exit 3"), _hook(f"touch {tmp_path}/second")]}
    created = box.create("sleep", "100")
    if stops:
        with pytest.raises(StageFailed, match="poststart hook 0"):
            box.handler.start(box.container_id)
        assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) == -9
    else:
        box.handler.start(box.container_id)
        assert box.handler.state(box.container_id)["status"] == "running"
        box.discard(created)
    assert (tmp_path / "second").exists() != stops

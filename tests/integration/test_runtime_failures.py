"""A creation that fails, at whatever step, leaves nothing: no cgroup, mount, directory, process or descriptor."""

import ctypes
import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_bundle import Box

from runtime_failures import FailAt, children, everything
from sampan.errors import StageFailed, Unavailable
from sampan.linux import vfork
from sampan.runtime import trace
from sampan.runtime.handler import Stdio
from sampan.runtime.native import NativeHandler
from sampan.runtime.options import Options
from sampan.runtime.sandbox import create_sandbox, destroy_sandbox
from sampan.shim import helper
from sampan.shim.podns import PodNamespaces

pytestmark = pytest.mark.root


#: The init is a fork of the runtime, or borrows its memory.
ways = pytest.mark.parametrize("borrows", [False, True])


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    trace.hook = None
    made.discard()


def _steps(box: Box) -> list[str]:
    """Names of the steps of a creation that goes well."""
    trace.start()
    try:
        box.discard(box.create("sleep", "100"))
        names = [name for _, name, _, _, _ in trace.spans()]
    finally:
        trace._rows = None
    # What follows belongs to the deletion.
    names = names[names.index("make state directory") : names.index("container is created")]
    return [name for name in dict.fromkeys(names) if name != "container is set up"]


def _prepare(box: Box) -> None:
    # Descriptors in cycles that other tests left would be closed at some later time.
    gc.collect()
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    box.config["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(box.directory), "options": ["rbind", "ro"]}
    )
    box.process["terminal"] = True
    box.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    box.process["oomScoreAdj"] = 100
    box.config["root"]["readonly"] = True


@ways
def test_a_failure_at_any_step_of_create_leaves_nothing(box: Box, borrows: bool) -> None:
    _prepare(box)
    box.handler = NativeHandler(box.handler.root, expendable=borrows)
    steps = _steps(box)
    assert len(steps) > 40
    before = everything(box)
    for name in steps:
        trace.hook = FailAt(name)
        with pytest.raises(StageFailed, match="injected") as caught:
            box.create("sleep", "100")
        trace.hook = None
        assert caught.value.stage == name
        assert everything(box) == before, name
    # And none of it stands in the way of the next.
    box.discard(box.create("sleep", "100"))
    assert everything(box) == before


@pytest.mark.parametrize("way", ["forks", "borrows", "steps inside", "stays outside"])
def test_a_failure_at_any_step_of_exec_leaves_the_container_as_it_was(box: Box, way: str) -> None:
    _prepare(box)
    if way == "steps inside":
        box.process["terminal"] = False
    if way == "stays outside":
        box.process["capabilities"]["bounding"].append("CAP_SYS_PTRACE")
    options = Options(expendable=way == "borrows")
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    process = {**box.process, "args": ["true"]}
    trace.start()
    try:
        one = box.handler.exec(box.container_id, process, Stdio(), options=options)
        steps = list(dict.fromkeys(name for _, name, _, _, _ in trace.spans()))
    finally:
        trace._rows = None
    os.waitpid(one.pid, 0)
    if one.console >= 0:
        os.close(one.console)
    before = everything(box)
    for name in steps:
        if name == "container is set up":
            continue
        trace.hook = FailAt(name)
        with pytest.raises(StageFailed, match="injected"):
            box.handler.exec(box.container_id, process, Stdio(), options=options)
        trace.hook = None
        assert everything(box) == before, name
    assert box.handler.pids(box.container_id) == [created.pid]
    box.discard(created)


def test_who_execs_survives_a_container_that_kills_whatever_comes(box: Box) -> None:
    created = box.create("sh", "-c", "while :; do kill -9 -1; done")
    box.handler.start(box.container_id)
    process = {**box.process, "args": ["sleep", "0.01"]}
    ends = set()
    for _ in range(200):
        made = box.handler.exec(box.container_id, process, Stdio())
        ends.add(os.waitstatus_to_exitcode(os.waitpid(made.pid, 0)[1]))
    assert ends <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in ends
    box.discard(created)


class _KillAt:
    """A trace hook that kills the process that comes to a step: by a fault, as the first of a PID namespace can't
    kill itself by a signal.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, name: str) -> None:
        if name == self._name:
            ctypes.string_at(0)


@pytest.mark.skipif(not vfork.available(), reason="needs x86-64 and CPython before 3.14")
@pytest.mark.parametrize("stays", [False, True])
def test_an_init_that_is_killed_takes_a_borrowed_helper_along_and_the_monitor_cleans_up(box: Box, stays: bool) -> None:
    before = everything(box)
    handler = helper.ForkingHandler(NativeHandler(box.handler.root, expendable=True), light=True)
    box.process["args"] = ["sleep", "100"]
    (box.bundle / "config.json").write_text(json.dumps(box.config))
    trace.hook = _KillAt("isolate child")
    if stays:
        handler.run_and_stay(lambda: ({}, []), lambda: None)
    with pytest.raises(Unavailable):
        handler.create(box.container_id, str(box.bundle), Stdio())
    trace.hook = None
    while children() != before["children"]:
        os.wait()
    assert everything(box) == before


@pytest.mark.skipif(not vfork.available(), reason="needs x86-64 and CPython before 3.14")
@pytest.mark.parametrize("step", ["isolate child", "execute pause"])
def test_a_pause_that_is_killed_takes_a_borrowed_helper_along_and_the_monitor_cleans_up(box: Box, step: str) -> None:
    before = everything(box)
    handler = helper.ForkingHandler(NativeHandler(box.handler.root, expendable=True), light=True)
    options = {"pause": True, "pause_cgroup": f"/sampan/{box.container_id}"}
    trace.hook = _KillAt(step)
    with pytest.raises(Unavailable):
        PodNamespaces(str(box.directory / "ns"), ["network"], options, handler)
    trace.hook = None
    while children() != before["children"]:
        os.wait()
    assert everything(box) == before
    assert not (box.directory / "ns").exists()


def test_a_failure_at_any_step_of_a_sandbox_leaves_nothing(box: Box) -> None:
    directory = str(box.directory / "ns")
    mapping = [{"containerID": 0, "hostID": 200000, "size": 65536}]

    def make() -> None:
        sandbox = create_sandbox(
            directory,
            ["network", "ipc", "uts", "user"],
            hostname="pod",
            sysctls={"net.ipv4.ip_forward": "1"},
            uid_mappings=mapping,  # type: ignore[arg-type]
            gid_mappings=mapping,  # type: ignore[arg-type]
            pause=True,
            pause_cgroup=f"/sampan/{box.container_id}",
        )
        os.close(sandbox.pidfd)
        destroy_sandbox(directory, pause_pid=sandbox.pause_pid, pause_cgroup=f"/sampan/{box.container_id}")

    trace.start()
    try:
        make()
        names = [name for _, name, _, _, _ in trace.spans()]
    finally:
        trace._rows = None
    steps = list(dict.fromkeys(names[: names.index("sandbox is made")]))
    before = everything(box)
    for name in steps:
        trace.hook = FailAt(name)
        with pytest.raises(StageFailed, match="injected"):
            make()
        trace.hook = None
        assert everything(box) == before, name
        assert not os.path.exists(directory), name


class _Helped:
    """A pod's namespaces, made in a helper as a monitor has them made."""

    def __init__(self, box: Box, *, pause: bool) -> None:
        self.directory = str(box.directory / "ns")
        self._pause = pause
        self._group = f"/sampan/{box.container_id}" if pause else ""
        self._pause_pid = 0

    def make(self) -> list[str]:
        """Make them; the steps that it took."""
        others = children()
        try:
            body, _ = helper.run(self._work)
        finally:
            for pid in children() - others:
                os.waitpid(pid, 0)  # the helper; its maker's event loop reaps it otherwise
        self._pause_pid = body["pause"]
        steps: list[str] = body["steps"]
        return steps

    def _work(self) -> tuple[dict[str, Any], list[int]]:
        trace.start()
        made = create_sandbox(
            self.directory,
            ["network", "ipc", "uts"],
            hostname="pod",
            sysctls={"net.ipv4.ip_forward": "1"},
            pause=self._pause,
            pause_cgroup=self._group,
            enter=True,
        )
        return {"steps": [name for _, name, _, _ in trace.take()], "pause": made.pause_pid}, []

    def end(self) -> None:
        destroy_sandbox(self.directory, pause_pid=self._pause_pid, pause_cgroup=self._group)


@pytest.mark.parametrize("pause", [False, True])
def test_a_failure_at_any_step_of_a_sandbox_made_in_a_helper_leaves_nothing(box: Box, pause: bool) -> None:
    helped = _Helped(box, pause=pause)
    directory = helped.directory
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts")}
    before = everything(box)
    steps = helped.make()
    for kind, mine in own.items():
        assert os.readlink(f"/proc/self/ns/{kind}") == mine
        assert f"{kind}:[{os.stat(f'{directory}/{kind}').st_ino}]" != mine
    helped.end()
    assert everything(box) == before
    assert ("execute pause" in steps) is (pause and vfork.available())
    for name in dict.fromkeys(steps[: steps.index("sandbox is made")]):
        trace.hook = FailAt(name)
        with pytest.raises(StageFailed, match="injected"):
            helped.make()
        trace.hook = None
        assert everything(box) == before, name
        assert not os.path.exists(directory), name


def test_an_init_that_is_killed_while_it_is_set_up_fails_the_create(box: Box) -> None:
    parent = os.getpid()

    def die(name: str) -> None:
        if name == "pivot root" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    box.discard(box.create("true"))  # What is made once and kept, is made.
    before = everything(box)
    box.linux["namespaces"] = [one for one in box.linux["namespaces"] if one["type"] != "pid"]
    trace.hook = die
    with pytest.raises(StageFailed, match="without a word"):
        box.create("true")
    trace.hook = None
    assert everything(box) == before

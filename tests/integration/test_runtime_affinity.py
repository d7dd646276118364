"""The CPUs that a container's processes may run on are not those that the runtime was bound to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box

from sampan.runtime.handler import Stdio
from sampan.runtime.options import Options

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only"),
]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    before = os.sched_getaffinity(0)
    made = Box(tmp_path)
    os.sched_setaffinity(0, {min(before)})
    yield made
    os.sched_setaffinity(0, before)
    made.discard()


def _cpuset() -> set[int]:
    """What a process may run on that nobody bound."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, range(1024))
        os.write(writer, ",".join(map(str, os.sched_getaffinity(0))).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    said = os.read(reader, 1 << 16)
    os.close(reader)
    return set(map(int, said.split(b",")))


@pytest.mark.parametrize("expendable", [False, True])
def test_a_container_is_not_bound_as_the_runtime_is(box: Box, expendable: bool) -> None:
    created = box.create("sleep", "100", options=Options(expendable=expendable))
    assert os.sched_getaffinity(created.pid) == _cpuset()
    assert len(os.sched_getaffinity(0)) == 1
    box.discard(created)


@pytest.mark.parametrize("kind", ["step inside", "stay outside", "expendable", "fork"])
def test_nor_is_an_exec(box: Box, kind: str) -> None:
    if kind == "stay outside":  # for the container may trace
        for names in box.process["capabilities"].values():
            names.append("CAP_SYS_PTRACE")
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    # A terminal takes a fork.
    process = {**box.process, "args": ["sleep", "100"], "terminal": kind == "fork"}
    options = Options(expendable=kind == "expendable")
    inside = box.handler.exec(box.container_id, process, Stdio(), options=options)
    if inside.console >= 0:
        os.close(inside.console)
    found = os.sched_getaffinity(inside.pid)
    os.kill(inside.pid, 9)
    os.waitpid(inside.pid, 0)
    assert found == _cpuset()
    box.discard(created)


def test_an_execs_own_cpus_count(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    last = max(_cpuset())
    ended = box.exec(
        "grep", "Cpus_allowed_list", "/proc/self/status", process={"execCPUAffinity": {"final": str(last)}}
    )
    assert ended.output.split()[-1] == str(last)
    box.discard(created)

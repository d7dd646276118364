"""Execs where somebody else in the container's PID namespace may trace what he sees there (CVE-2016-9962)."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tracers
from shim_pods import Pod, process

from sampan.linux.syscall import X86_64
from sampan.shim.zygote import Zygote

pytestmark = pytest.mark.root

#: How often the memory of one process is opened.
_LOOKS = 8
#: How the right to trace came into the PID namespace of container "one": another container joined it, "one" joined the
#: other's, or the right was given to an exec.
WAYS = ("joined", "joins", "exec")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Zygote.start() as zygote:
        made = Pod(tmp_path, zygote, "native")
        yield made
        made.close()
    assert not os.path.exists(f"{made.directory}/crash.txt")


@contextmanager
def spy(pid: int) -> Iterator[int]:
    """A process in the namespaces of ``pid`` that may trace: it opens the memory of each process that comes, and tells
    at its end of which of them the memory is still alive though the process has become another program or has ended:
    that was somebody else's.
    """
    stop, end = os.pipe()
    os.set_blocking(stop, False)
    child, reader = tracers.start(pid, lambda tell, writer: _watch(tell, stop, writer))
    try:
        yield reader
    finally:
        os.write(end, b".")
        os.waitpid(child, 0)
        os.close(stop)
        os.close(end)


def _watch(tell: Callable[[], None], stop: int, writer: int) -> None:
    # Not once alone: a process that has just come is still the runtime, and soon another program.
    left = Counter(dict.fromkeys(os.listdir("/proc"), _LOOKS))
    held: list[tuple[int, int]] = []
    tell()
    number = 0
    while True:
        number += 1
        if number % 64 == 0:
            try:
                os.read(stop, 1)
                break
            except BlockingIOError:
                pass
        for name in os.listdir("/proc"):
            if left[name] >= _LOOKS or not name.isdigit():
                continue
            left[name] += 1
            try:
                memory = os.open(f"/proc/{name}/mem", os.O_RDWR)
                with open(f"/proc/{name}/maps", "rb") as maps:
                    held.append((memory, int(maps.readline().partition(b"-")[0] or b"0", 16)))
            except OSError:
                continue
    alive = 0
    for memory, address in held:
        try:
            alive += len(os.pread(memory, 1, address))
        except OSError:
            pass
    os.write(writer, b"%d %d\n" % (len(held), alive))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_tracer_gets_hold_of_the_monitors_memory(pod: Pod, way: str) -> None:
    if not X86_64:
        pytest.skip("nothing borrows memory here")
    rights = {kind: [tracers.RIGHT] for kind in ("bounding", "effective", "permitted")}

    def run(name: str, space: dict[str, Any], **changes: Any) -> int:
        spaces = [{"type": "pid", **space}, *({"type": kind} for kind in ("ipc", "uts", "mount", "network"))]
        return pod.run(name, "while :; do sleep 1000; done", namespaces=spaces, **changes)

    if way == "joins":
        two = run("two", {}, capabilities=rights)
        one = run("one", {"path": f"/proc/{two}/ns/pid"})
    else:
        one = run("one", {})
        if way == "joined":
            run("two", {"path": f"/proc/{one}/ns/pid"}, capabilities=rights)
        else:
            assert pod.client.exec_wait("one", process("/bin/true", capabilities=rights)).exit_code == 0
    with spy(one) as reader:
        for _ in range(60):
            assert pod.client.exec_wait("one", process("/bin/sleep", "0.01")).exit_code == 0
    with open(reader) as file:
        opened, alive = map(int, file.read().split())
    assert opened > 0
    assert alive == 0
    for name in ("one", *(("two",) if way != "exec" else ())):
        pod.client.stop(name, signal.SIGKILL, timeout=10)

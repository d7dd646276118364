"""Container logs: a gigabyte of 100-byte lines from one container, until the last of them is in its log."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cri import IMAGE, Contestant, contestants
from cri_client import container_config, pod_config
from measure import Budget, Row

from sampan.cri import api_pb2 as pb

if TYPE_CHECKING:
    from run import Options

LINE = "x" * 99
#: Lines of the file that the container writes again and again, so that it is not its own speed that is measured.
_BLOCK_LINES = 320_000
_TIMES = 32
_MOST_SECONDS = 300


def rows(options: Options) -> list[Row]:
    """Median seconds over turns, the servers alternating."""
    times: dict[str, list[float]] = {}
    with contestants(options) as servers:
        for turn in range(3):
            for name, server in servers.items():
                times.setdefault(name, []).append(write(server, turn))
    middle = {name: statistics.median(values) for name, values in times.items()}
    size = _BLOCK_LINES * _TIMES * (len(LINE) + 1) / 1e9
    work = f"log {size:.2g} GB of 100-byte lines"
    return [Row(work, "s", middle.pop("sampan"), middle, Budget("containerd", 1.0))]


def write(server: Contestant, turn: int) -> float:
    """Seconds from the first line to the last in the log; every line must be there."""
    client = server.client
    pod = pod_config(f"logs{turn}", server.logs)
    pod_id = client.run_pod(pod)
    script = (
        f"yes {LINE} | head -n {_BLOCK_LINES} >/tmp/lines; echo begin; "
        f"for i in $(seq {_TIMES}); do cat /tmp/lines; done; echo end"
    )
    container_id = client.create(pod_id, container_config("one", IMAGE, command=["sh", "-c", script]), pod)
    log = Path(server.logs) / "one.log"
    client.start(container_id)
    _wait(lambda: log.exists() and log.stat().st_size > 0)
    began = time.perf_counter()
    _wait(lambda: client.container(container_id).state == pb.ContainerState.CONTAINER_EXITED)
    _wait(lambda: _tail(log).endswith(b" stdout F end\n"))
    elapsed = time.perf_counter() - began
    wanted = _BLOCK_LINES * _TIMES + 2
    if _lines(log) != wanted:
        raise RuntimeError(f"{server.server.name} logged {_lines(log)} lines, not {wanted}")
    server.end_pod(pod_id)
    log.unlink(missing_ok=True)
    return elapsed


def _lines(log: Path) -> int:
    with open(log, "rb", buffering=0) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _tail(log: Path) -> bytes:
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 512))
        return file.read()


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _MOST_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"a container's log was not complete after {_MOST_SECONDS} s")
        time.sleep(0.005)

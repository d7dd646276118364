"""Logs over CRI: lines that are too long, files that are taken away under a writer, a disk that stalls."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon
from cri_servers import SLOWNESS

from sampan.cri import api_pb2 as pb
from sampan.wire import crilog

pytestmark = pytest.mark.root

LIMIT = 2048
#: Seconds: more than any call that waits for nothing takes, less than a stalled disk is waited for.
SOON = 4.5 * SLOWNESS


class World(Daemon):
    """A daemon with a line limit of its own."""

    settings = f"cri.max_log_line = {LIMIT}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(World, folder, "sampancri12", "10.89.97.0/24") as made:
        yield made


@pytest.fixture
def daemon(shared: World) -> Iterator[World]:
    yield shared
    shared.remove_pods()


@pytest.fixture
def disk(daemon: World, tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, which a test can freeze."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with open(tmp_path / "image", "wb") as image:
        image.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image.name], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image.name, str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no loop device: {mounted.stderr.decode()}")
    yield folder
    daemon.remove_pods()  # their monitors have logs open on it
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def stall(disk: Path) -> Iterator[Callable[[str], None]]:
    """``stall("-f")`` has every write to the disk wait, ``stall("-u")`` lets them go on; at the end they do."""

    def turn(way: str) -> None:
        subprocess.run(["fsfreeze", way, str(disk)], check=True)

    yield turn
    subprocess.run(["fsfreeze", "-u", str(disk)], check=False, capture_output=True)


def run_pod(daemon: World, logs: Path, name: str = "p") -> str:
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"), log_directory=str(logs)
    )
    return str(daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def run(daemon: World, pod: str, script: str, **more: Any) -> str:
    command = ["sh", "-c", script]
    metadata = pb.ContainerMetadata(name="c")
    config = pb.ContainerConfig(metadata=metadata, image=daemon.image, command=command, log_path="c.log", **more)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def state(daemon: World, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container)
    return int(daemon.runtime.ContainerStatus(request).status.state)


def until(condition: Callable[[], Any], seconds: float = 20 * SLOWNESS) -> None:
    """For what only looking again can show."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def ended(daemon: World, container: str) -> None:
    until(lambda: state(daemon, container) == pb.CONTAINER_EXITED)


def lines(*files: Path) -> list[crilog.Line]:
    text = b"".join(file.read_bytes() for file in files)
    assert text.endswith(b"\n")
    return [crilog.parse(line) for line in text.splitlines()]


def test_lines_over_the_limit_are_cut_and_none_is_made_up(daemon: World, tmp_path: Path) -> None:
    wanted = [("a", 10), ("b", LIMIT), ("c", LIMIT + 1), ("d", 5 * LIMIT), ("e", 0), ("f", 100_000)]
    numbers = " ".join(f"{letter}:{size}" for letter, size in wanted)
    script = (
        f"for each in {numbers}; do head -c ${{each#*:}} /dev/zero | tr '\\0' ${{each%:*}}; echo; done; "
        "head -c 5000 /dev/zero | tr '\\0' g; echo other >&2"
    )
    ended(daemon, run(daemon, run_pod(daemon, tmp_path), script))
    found = lines(tmp_path / "c.log")
    out = [line for line in found if line.stream == "stdout"]
    assert max(len(line.text) for line in out) == LIMIT
    assert b"".join(line.content for line in out) == (
        b"".join(letter.encode() * size + b"\n" for letter, size in wanted) + b"g" * 5000
    )
    # Of a line's pieces all but the last are partial, and full; of the line that has no end the last is partial too.
    for letter, size in [*wanted, ("g", 5000)]:
        pieces = [line for line in out if line.text.startswith(letter.encode())]
        assert [line.partial for line in pieces[:-1]] == [True] * (max(size - 1, 0) // LIMIT)
        assert all(len(line.text) == LIMIT for line in pieces[:-1])
        if pieces:
            assert pieces[-1].partial == (letter == "g")
    assert [(line.text, line.partial) for line in found if line.stream == "stderr"] == [(b"other", False)]


def test_no_line_is_lost_when_the_log_is_taken_away_under_two_writers(daemon: World, tmp_path: Path) -> None:
    script = "i=0; while [ ! -e /enough ]; do i=$((i+1)); echo $i; echo $i >&2; done; echo last; echo last >&2"
    container = run(daemon, run_pod(daemon, tmp_path), script)
    log = tmp_path / "c.log"
    parts = []
    for number in range(40):
        until(lambda: log.exists() and log.stat().st_size > 4096)
        parts.append(log.rename(tmp_path / f"part{number:02}"))
        daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["touch", "/enough"]))
    ended(daemon, container)
    found = lines(*parts, log)
    for stream in ("stdout", "stderr"):
        texts = [line.text for line in found if line.stream == stream]
        assert texts == [*(b"%d" % n for n in range(1, len(texts))), b"last"]
    with pytest.raises(grpc.RpcError) as refusal:
        daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def monitor_of(daemon: World, pod: str) -> int:
    return int(json.loads((daemon.folder / "state" / "pods" / pod / "monitor.json").read_text())["pid"])


def memory(pid: int) -> int:
    """Bytes of its own that a process has."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def waits_for_the_disk(pid: int) -> bool:
    return process_state(pid) == "D"


def serves_others(daemon: World, logs: Path) -> None:
    """Lists, statuses, figures and another pod's whole life take no notice."""
    began = time.monotonic()
    runtime = daemon.runtime
    for container in runtime.ListContainers(pb.ListContainersRequest()).containers:
        assert state(daemon, container.id) == pb.CONTAINER_RUNNING
    for pod in runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items:
        runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert len(runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats) == 1
    other = run_pod(daemon, logs, "other")
    run(daemon, other, "exec sleep 1000")
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=other))
    assert time.monotonic() - began < SOON


def stalled(daemon: World, disk: Path, stall: Callable[[str], None], word: Path) -> tuple[str, str]:
    """A pod and its container, which at a word writes 20 MB to a log on a disk that takes none."""
    pod = run_pod(daemon, disk)
    word.mkdir()
    mounts = [pb.Mount(container_path="/word", host_path=str(word))]
    container = run(daemon, pod, "while [ ! -e /word/go ]; do sleep 0.02; done; seq 400000; echo last", mounts=mounts)
    stall("-f")
    (word / "go").touch()
    until(lambda: waits_for_the_disk(monitor_of(daemon, pod)))
    return pod, container


def test_a_disk_that_stalls_holds_up_its_writer_alone_and_piles_up_nothing(
    daemon: World, disk: Path, stall: Callable[[str], None], tmp_path: Path
) -> None:
    pod, container = stalled(daemon, disk, stall, tmp_path / "word")
    monitor = monitor_of(daemon, pod)
    before = memory(monitor)
    for _ in range(3):
        serves_others(daemon, tmp_path / "others")
        assert waits_for_the_disk(monitor)
        assert memory(monitor) <= before
    stall("-u")
    ended(daemon, container)
    assert memory(monitor) - before < 1 << 20
    texts = [line.text for line in lines(disk / "c.log")]
    assert texts == [*(b"%d" % n for n in range(1, 400_001)), b"last"]


def test_a_container_ends_though_the_disk_of_its_log_stalls(
    daemon: World, disk: Path, stall: Callable[[str], None], tmp_path: Path
) -> None:
    _, container = stalled(daemon, disk, stall, tmp_path / "word")
    verbose = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container, verbose=True))
    pid = int(json.loads(verbose.info["info"])["pid"])
    with ThreadPoolExecutor(1) as pool:
        request = pb.StopContainerRequest(container_id=container, timeout=0)
        stopping = pool.submit(daemon.runtime.StopContainer, request)
        until(lambda: process_state(pid) == "Z")  # its monitor, which would reap it, waits for the disk
        stall("-u")
        stopping.result(timeout=20 * SLOWNESS)
    assert state(daemon, container) == pb.CONTAINER_EXITED

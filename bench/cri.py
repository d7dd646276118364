"""A pod's life over CRI, each call timed; many clients at once; memory: Sampan and containerd with runc, in one run."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cri_servers
import go_programs
import test_images
from cri_client import CriClient, container_config, pod_config
from local_registry import LocalRegistry, write_mirrors
from measure import Budget, Row, medians, pss

from sampan.cri import api_pb2 as pb

if TYPE_CHECKING:
    from run import Options

Result = TypeVar("Result")

#: What the servers' pods run: the one image, which sleeps.
IMAGE = "registry.k8s.io/demo/busybox:1"
SLEEP = ["sleep", "1000000"]

STARTING = ("RunPodSandbox", "CreateContainer", "StartContainer")
EXEC = "ExecSync /bin/true"
ENDING = ("StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox")


class Contestant:
    """One server with the image in it, and a client."""

    def __init__(self, server: cri_servers.Server) -> None:
        self.server = server
        #: MB (PSS) of the server and its helpers when they have started and nothing was asked of them yet.
        self.fresh = settled(lambda: _server_processes(self))
        self.client = CriClient(server.endpoint)
        self.client.pull(IMAGE)
        self.logs = server.folder / "logs"
        self._number = 0

    def life(self, times: dict[str, list[float]], *, share_pids: bool = False) -> None:
        """One pod from RunPodSandbox to RemovePodSandbox; adds each call's milliseconds to ``times``."""
        self._number += 1
        pod = pod_config(f"life{self._number}", self.logs, share_pids=share_pids)
        container = sleeper("one", share_pids=share_pids)
        clock = Clock(times)
        client = self.client
        pod_id = clock.time("RunPodSandbox", lambda: client.run_pod(pod))
        container_id = clock.time("CreateContainer", lambda: client.create(pod_id, container, pod))
        clock.time("StartContainer", lambda: client.start(container_id))
        clock.time(EXEC, lambda: client.exec_sync(container_id, ["/bin/true"]))
        clock.time("StopContainer", lambda: client.stop(container_id, 0))
        clock.time("StopPodSandbox", lambda: client.stop_pod(pod_id))
        clock.time("RemoveContainer", lambda: client.remove(container_id))
        clock.time("RemovePodSandbox", lambda: client.remove_pod(pod_id))

    def start_pod(self, name: str) -> str:
        """A pod with one sleeping container."""
        pod = pod_config(name, self.logs, share_pids=False)
        pod_id = self.client.run_pod(pod)
        self.client.start(self.client.create(pod_id, sleeper("one"), pod))
        return pod_id

    def end_pod(self, pod_id: str) -> None:
        """Stops and removes a pod with what is in it."""
        self.client.stop_pod(pod_id)
        self.client.remove_pod(pod_id)

    def parallel(self, clients: int, each: int) -> float:
        """Milliseconds for one pod when ``clients`` start and end pods at once."""

        def work(number: int) -> None:
            for turn in range(each):
                self.end_pod(self.start_pod(f"parallel-{number}-{turn}"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1000 * (time.perf_counter() - began) / (clients * each)

    def close(self) -> None:
        """Removes every pod."""
        for pod in self.client.pods():
            self.end_pod(pod.id)
        self.client.close()


class Clock:
    """Times calls into lists by name."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self._times = times

    def time(self, name: str, call: Callable[[], Result]) -> Result:
        """Calls, and notes how long it took."""
        began = time.perf_counter()
        result = call()
        self._times.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return result


def sleeper(name: str, *, share_pids: bool = False) -> pb.ContainerConfig:
    """A container that sleeps, with the namespaces that a kubelet gives it, unless its pod shares PIDs."""
    return container_config(name, IMAGE, command=SLEEP, share_pids=share_pids)


@contextmanager
def contestants(options: Options) -> Iterator[dict[str, Contestant]]:
    """Sampan and containerd on private directories, with one registry; everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sampan-bench-"))
    folder.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(cri_servers.discard, folder)
        registry = stack.enter_context(LocalRegistry(folder / "registry"))
        images = {"demo/busybox:1": test_images.demo_images()["demo/busybox:1"], "pause:3.9": test_images.pause_image()}
        test_images.push_all(images, registry.address)
        write_mirrors(folder / "certs.d", ["registry.k8s.io"], registry.address)
        sampan = cri_servers.Sampan(folder / "s", folder / "certs.d", bridge="sampanbench0", subnet="10.89.80.0/24")
        servers: list[cri_servers.Server] = [sampan]
        for number, (name, programs) in enumerate(_containerds(options).items(), 1):
            subnet = f"10.89.{80 + number}.0/24"
            peer = cri_servers.Containerd(folder / name, folder / "certs.d", bridge=f"spbench{number}", subnet=subnet)
            peer.name = name
            if programs:
                peer.use_programs(*programs)
            servers.append(peer)
        found = {}
        for server in servers:
            stack.callback(server.clean)
            stack.enter_context(server)
            found[server.name] = Contestant(server)
            stack.callback(found[server.name].close)
        yield found


def _containerds(options: Options) -> dict[str, tuple[Path, str] | None]:
    """Debian's; and the newest where it can be built, with the newest runc or, where that can't be built, Debian's."""
    found: dict[str, tuple[Path, str] | None] = {"containerd": None}
    if not (options.newest or go_programs.have_go()):
        return found
    try:
        programs = go_programs.build("containerd")
    except SystemExit as error:
        print(f"left out: the newest containerd: {error}", file=sys.stderr)
        return found
    try:
        runc = str(go_programs.build("runc") / "runc")
    except SystemExit as error:
        print(f"with Debian's runc: {error}", file=sys.stderr)
        runc = shutil.which("runc", path=os.environ["PATH"] + ":/usr/sbin") or "runc"
    found[f"containerd-{go_programs.versions()['CONTAINERD']}"] = (programs, runc)
    return found


def rows(options: Options) -> list[Row]:
    """Calls one after another, calls in parallel, memory."""
    with contestants(options) as servers:
        fresh = {name: server.fresh for name, server in servers.items()}
        start = Row(
            "idle server, started (PSS; sampan with its zygote)", "MB", fresh.pop("sampan"), fresh, Budget(limit=42)
        )
        found = [*_lives(servers, options.rounds), _parallel(servers), start]
        return [*found, *_monitors(servers), _worked(servers)]


def _lives(servers: dict[str, Contestant], rounds: int) -> list[Row]:
    """Every call's median; start and end summed as the budgets have them; then those of pods that share PIDs."""
    middle = _medians_of_lives(servers, rounds, share_pids=False)
    shared = _medians_of_lives(servers, rounds, share_pids=True)
    quarter, third = Budget("containerd", 1 / 4), Budget("containerd", 1 / 3)
    return [
        *(_row(work, middle, (work,)) for work in (*STARTING, *ENDING)),
        _row("= start a pod (first three)", middle, STARTING, quarter),
        _row("= stop and remove it (other four)", middle, ENDING, third),
        _row(EXEC, middle, (EXEC,), quarter),
        _row("start a pod that shares PIDs", shared, STARTING, quarter),
        _row("stop and remove it", shared, ENDING, third),
        _row(f"{EXEC} in it", shared, (EXEC,), quarter),
    ]


def _medians_of_lives(servers: dict[str, Contestant], rounds: int, *, share_pids: bool) -> dict[str, dict[str, float]]:
    times: dict[str, dict[str, list[float]]] = {name: {} for name in servers}
    for server in servers.values():
        for _ in range(2):
            server.life({}, share_pids=share_pids)
    for _ in range(rounds):
        for name, server in servers.items():
            server.life(times[name], share_pids=share_pids)
    return {name: medians(values) for name, values in times.items()}


def _row(work: str, middle: dict[str, dict[str, float]], calls: tuple[str, ...], budget: Budget = Budget()) -> Row:  # noqa: B008
    sums = {name: sum(values[call] for call in calls) for name, values in middle.items()}
    return Row(work, "ms", sums.pop("sampan"), sums, budget)


def _parallel(servers: dict[str, Contestant], clients: int = 10, turns: int = 3) -> Row:
    """Median over turns, the servers alternating."""
    times: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(turns):
        for name, server in servers.items():
            times[name].append(server.parallel(clients, 3))
    middle = medians(times)
    work = f"one pod's life, {clients} clients at once"
    return Row(work, "ms", middle.pop("sampan"), middle, Budget("containerd", 1 / 3))


def settled(find: Callable[[], list[int]], pause: float = 1.0, most: int = 10) -> float:
    """MB of processes once none of them has used the processor for a while; of some, one always has."""
    before: list[str] = []
    for _ in range(most):
        processes = find()
        now = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13] for pid in processes]
        used = [" ".join(times) for times in now]
        if used == before:
            break
        before = used
        time.sleep(pause)
    return sum(pss(pid) for pid in processes)


def _worked(servers: dict[str, Contestant]) -> Row:
    """The same after pods have come and gone; Sampan gives back what it can after ten quiet seconds."""
    time.sleep(21)
    worked = {name: sum(pss(pid) for pid in _server_processes(server)) for name, server in servers.items()}
    return Row("idle server, after a pull and many pods (PSS)", "MB", worked.pop("sampan"), worked)


def _monitors(servers: dict[str, Contestant], pods: int = 20) -> list[Row]:
    """The processes that each pod adds beside its container and its pause process; then after a probe in each."""
    monitors = {}
    probed = {}
    for name, server in servers.items():
        before = set(_server_processes(server))
        ids = [server.start_pod(f"memory-{number}") for number in range(pods)]
        containers = [container.id for container in server.client.containers()]
        added = [pid for pid in _server_processes(server) if pid not in before]
        monitors[name] = settled(added.copy) / pods
        for container_id in containers:
            server.client.exec_sync(container_id, ["/bin/true"])
        probed[name] = settled(added.copy) / pods
        for pod_id in ids:
            server.end_pod(pod_id)
    return [
        Row(f"one pod's monitor, of {pods} (PSS)", "MB", monitors.pop("sampan"), monitors, Budget(limit=2)),
        Row("the same after one ExecSync in each", "MB", probed.pop("sampan"), probed),
    ]


def _server_processes(server: Contestant) -> list[int]:
    """The server, and those of its helpers that aren't containers: by name, as they are below it or name its folder."""
    process = server.server.process
    if process is None:
        return []
    found = [process.pid]
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            comm = Path(f"/proc/{name}/comm").read_text()
            if comm.startswith("containerd-shim"):
                if str(server.server.folder).encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            elif comm.startswith("sampan-") and process.pid in _ancestors(int(name)):
                found.append(int(name))
    return found


def _ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        found.add(pid)
    return found

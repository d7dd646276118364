"""Lists over CRI with 500 pods on the machine, each with a running container: what a kubelet asks every second.

Figures of usage are measured twice: where every cgroup must be read, as for a kubelet that asks every ten seconds, and
where they were read within the last second, which the daemon tells again. The containers sleep, as most do most of the
time: memory.stat is not taken apart again for them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import cri_servers
import test_images
from cri import IMAGE, SLEEP, Contestant
from cri_client import container_config, pod_config
from local_registry import LocalRegistry, write_mirrors
from measure import Budget, Row

from sampan.cri import api_pb2 as pb

if TYPE_CHECKING:
    from run import Options

PODS = 500
#: Seconds after which the daemon reads cgroups anew.
_OLD = 1.1


def rows(options: Options, pods: int = PODS) -> list[Row]:
    """Median milliseconds of each list. Sampan alone: a peer's 500 shims would take 3 GB."""
    folder = Path(tempfile.mkdtemp(prefix="sampan-bench-"))
    folder.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(cri_servers.discard, folder)
        registry = stack.enter_context(LocalRegistry(folder / "registry"))
        test_images.push_all({"demo/busybox:1": test_images.demo_images()["demo/busybox:1"]}, registry.address)
        write_mirrors(folder / "certs.d", ["registry.k8s.io"], registry.address)
        server = cri_servers.Sampan(folder / "s", folder / "certs.d", bridge="sampanbench2", subnet="10.89.82.0/24")
        stack.callback(server.clean)
        stack.enter_context(server)
        contestant = Contestant(server)
        stack.callback(contestant.close)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: _start(contestant, number), range(pods)))
        return _measure(contestant, options.rounds, pods)


def _start(contestant: Contestant, number: int) -> None:
    """A pod on the machine's own network: 500 on a bridge are the kernel's business, not a list's."""
    client = contestant.client
    pod = pod_config(f"list{number}", contestant.logs / str(number))
    options = pod.linux.security_context.namespace_options
    options.network = pb.NamespaceMode.NODE
    pod_id = client.run_pod(pod)
    config = container_config("one", IMAGE, command=SLEEP)
    config.linux.security_context.namespace_options.network = pb.NamespaceMode.NODE
    client.start(client.create(pod_id, config, pod))


def _measure(contestant: Contestant, rounds: int, pods: int) -> list[Row]:
    runtime = contestant.client.runtime
    calls: dict[str, Callable[[], Sequence[object]]] = {
        "ListPodSandbox": lambda: runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items,
        "ListContainers": lambda: runtime.ListContainers(pb.ListContainersRequest()).containers,
        "ListContainerStats": lambda: runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats,
        "ListPodSandboxStats": lambda: runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats,
    }
    found = []
    for name, call in calls.items():
        pause = _OLD if name.endswith("Stats") else 0
        found.append(Row(f"{name} of {pods} pods", "ms", _time(name, call, rounds, pods, pause), {}, Budget(limit=20)))
        if pause:
            found.append(Row("  the same within a second", "ms", _time(name, call, rounds, pods, 0)))
    return found


def _time(name: str, call: Callable[[], Sequence[object]], rounds: int, pods: int, pause: float) -> float:
    """Median milliseconds of a call; the daemon rests before each."""
    times = []
    for _ in range(rounds):
        time.sleep(pause)
        began = time.perf_counter()
        count = len(call())
        times.append(1000 * (time.perf_counter() - began))
        if count != pods:
            raise RuntimeError(f"{name} told of {count} of {pods}")
    return median(times)

"""Joining a pod to a bridge network and leaving it, against the Go plugins run by the same caller.

Everything happens in a network namespace of its own. Both sides get the same conflist: bridge, host-local, portmap.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from measure import Budget, Row, take_turns

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from network_world import Machine, Place, machine
from sampan import network
from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.network import Attachment, Networks, PortMapping

GO = "/usr/lib/cni"
_MANY = 500
_SAMPLE = 30
_SCALE, _WORKERS = 250, 10


class Options(Protocol):
    """What a benchmark is told."""

    rounds: int


def conflist(folder: Path, name: str, *, external: bool) -> dict[str, Any]:
    how = {"sampan": "external"} if external else {}
    bridge = {
        "type": "bridge",
        "bridge": f"br-{name}",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.50.0.0/16" if external else "10.51.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(folder / "leases"),
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{**bridge, **how}, {**portmap, **how}]}


def networks(folder: Path, name: str, *, external: bool, binaries: str = GO) -> Networks:
    conf = folder / f"{name}.d"
    conf.mkdir()
    (conf / "10.conflist").write_bytes(msgspec.json.encode(conflist(folder, name, external=external)))
    return network.load(str(conf), state_dir=str(folder / f"{name}.state"), bin_dirs=(binaries,))


class Pods:
    """Pods come and go; each has a namespace of its own, made before the clock starts."""

    def __init__(self, nets: Networks, here: Machine, first_port: int) -> None:
        self.nets = nets
        self.here = here
        self.ports = itertools.count(first_port)

    def add(self, place: Place) -> str:
        port = next(self.ports)
        attachment = Attachment(container_id=f"pod{port}", netns=place.path, port_mappings=(PortMapping(80, port),))
        network.attach(self.nets, attachment)
        return attachment.container_id

    def life(self, *, netns_ends: bool) -> None:
        """ADD and DEL; the Go plugins delete the veth pair, which ours leave to the namespace's end."""
        place = Place()
        network.detach(self.nets, self.add(place), netns_ends=netns_ends)
        place.close()


@contextmanager
def world() -> Iterator[tuple[Machine, Path]]:
    with tempfile.TemporaryDirectory() as folder, machine() as here:
        yield here, Path(folder)


def rows(options: Options) -> list[Row]:
    """The table's lines."""
    if not os.access(f"{GO}/bridge", os.X_OK):
        print("network: containernetworking-plugins is not installed; no peer to measure against")
        return []
    return [_life(options), _growth(), _scale()]


def _life(options: Options) -> Row:
    with world() as (here, folder):
        ours = Pods(networks(folder, "ours", external=False), here, 10000)
        theirs = Pods(networks(folder, "go", external=True), here, 20000)
        times = take_turns(
            {
                "ours": lambda: ours.life(netns_ends=True),
                "theirs": lambda: theirs.life(netns_ends=False),
            },
            min(options.rounds, 30),
        )
    return Row(
        "CNI ADD + DEL, bridge + host-local + portmap",
        "ms",
        times["ours"],
        {"Go plugins": times["theirs"]},
        Budget("Go plugins", 0.25),
    )


def _growth() -> Row:
    """Whether an ADD gets slower with the number of pods: on two machines, with one pod and with many, in turns.

    Each machine has a thread of its own, which stays in it, as a daemon's threads do.
    """
    lanes: dict[str, tuple[ThreadPoolExecutor, Pods]] = {}
    times: dict[str, list[float]] = {"few": [], "many": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        for name, count in (("few", 1), ("many", _MANY)):
            thread = undo.enter_context(ThreadPoolExecutor(1))
            here = machine()
            place = thread.submit(here.__enter__).result()
            undo.callback(lambda thread, here: thread.submit(here.__exit__, None, None, None).result(), thread, here)
            lanes[name] = thread, Pods(networks(Path(folder), name, external=False), place, 10000)
            for _ in range(count):
                thread.submit(lambda pods: pods.add(pods.here.place()), lanes[name][1]).result()
        for _ in range(_SAMPLE):
            for name, (thread, pods) in lanes.items():
                times[name].append(thread.submit(_one_more, pods).result())
    few, many = statistics.median(times["few"]), statistics.median(times["many"])
    return Row(f"CNI ADD with {_MANY} pods present", "ms", many, {"with 1": few}, Budget("with 1", 1.5))


def _one_more(pods: Pods) -> float:
    """Milliseconds that one more pod's ADD takes; it leaves again, and nobody is measured while the kernel ends it."""
    place = Place()
    present = _interfaces()
    began = time.perf_counter()
    container = pods.add(place)
    taken = 1000 * (time.perf_counter() - began)
    network.detach(pods.nets, container)
    place.close()
    while _interfaces() > present:
        time.sleep(0.001)
    return taken


def _interfaces() -> int:
    """How many interfaces the calling thread's namespace has."""
    with open("/proc/thread-self/net/dev", encoding="ascii") as table:
        return len(table.readlines())


def _scale() -> Row:
    """Workers at once; the peer does a fifth of the pods, or it would take minutes."""
    with world() as (here, folder):
        ours = _together(networks(folder, "ours", external=False), here, 10000, _SCALE)
        theirs = _together(networks(folder, "go", external=True), here, 20000, _SCALE // 5)
    return Row(f"CNI ADD, {_SCALE} pods by {_WORKERS} workers, for each pod", "ms", ours, {"Go plugins": theirs})


def _together(nets: Networks, here: Machine, first_port: int, count: int) -> float:
    pods = Pods(nets, here, first_port)
    places = [here.place() for _ in range(count)]
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            setns(here.fd, CLONE_NEWNET)
            for place in places[start::_WORKERS]:
                pods.add(place)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(_WORKERS)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = 1000 * (time.perf_counter() - began)
    if errors:
        raise errors[0]
    return taken / count

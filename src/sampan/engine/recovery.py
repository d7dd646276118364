"""After a crash or a reboot: what the records say and what the machine has are brought together.

A pod whose monitor answers is adopted as it is. A pod whose monitor is gone has lost its containers' ends: they are
ended, and recorded as ended with an unknown exit code. A pod still being made when its maker died gives its name back.

All that is done before the first call is served, and waits for no program of others. What dead pods have on the machine
is freed by threads: a network plugin may take its time to let go, or hang. A thread holds the lock of the pod that it
takes down, so that a call for this very pod waits for it, and none for another; addresses and host ports stay recorded
as the dead pod's until they are free, so that no new pod gets them before.
"""

import glob
import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sampan import network
from sampan.cgroup import open_group
from sampan.engine.containers import UNKNOWN_EXIT
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.errors import NotFound, SampanError, TimedOut, Unavailable
from sampan.linux import tree

if TYPE_CHECKING:
    from sampan.engine.engine import Engine

_LOG = logging.getLogger("sampan.network")

#: Seconds for a monitor to answer at a daemon's start. One that waits for a runtime that hangs is adopted later.
PATIENCE = 3.0
#: Seconds for dead pods to be freed, and for network plugins to collect garbage, before the daemon serves all the same.
_NETWORK_PATIENCE = 3.0
#: Pods that are taken down at a time: a plugin that hangs at one keeps the others from nothing.
_THREADS = 8

#: Ids of containers, as :func:`sampan.engine.records.new_id` makes them.
_ID = re.compile(r"[0-9a-f]{64}")

Work = Callable[[], None]


class Recovery:
    """The taking down of what dead pods have left, under way.

    Args:
        work: What is to be done, by the id of the pod that it is done for.
    """

    def __init__(self, work: dict[str, Work]) -> None:
        self._closed = False
        self._under_way: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(_THREADS, "recovery") if work else None
        if self._pool is not None:
            self._under_way = [self._pool.submit(self._do, pod_id, job) for pod_id, job in work.items()]
            self._pool.shutdown(wait=False)  # its threads end when they have nothing left to do

    def _do(self, pod_id: str, job: Work) -> None:
        try:
            job()
        except NotFound:
            pass  # somebody removed it meanwhile
        except (SampanError, OSError) as error:
            if not self._closed:
                _LOG.warning("left to a later reconcile: pod %s: %s", pod_id[:12], error)

    def wait(self, seconds: float) -> bool:
        """Wait until all is done; whether it is."""
        return not wait(self._under_way, seconds).not_done

    def close(self) -> None:
        """Wait for what is under way, whose plugins have been told to end; what is left, the next start finds."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def recover(engine: "Engine") -> Recovery:
    """Reconcile one namespace; one pod's trouble never keeps the others from it.

    Returns:
        What is still under way.
    """
    for container in engine.container_records.list():
        if container.state == "creating" and engine.locks.free(container.id):
            engine.containers.discard(container)
    _collect_state(engine)
    live, work = set(), dict[str, Work]()
    for pod in engine.pod_records.list():
        if pod.state == "creating":
            if engine.locks.free(pod.id):
                work[pod.id] = _give_up(engine, pod)
        elif pod.state == "ready" and _adopt(engine, pod):
            live.add(pod.id)
        elif pod.state == "ready" or pod.lost:
            work[pod.id] = partial(engine.pods.stop, pod.id)
    until = time.monotonic() + _NETWORK_PATIENCE
    for pod_id in network.dead(engine.networks, lambda: _owners(engine, {*live, *work})):
        work[pod_id] = partial(network.free, engine.networks, pod_id)
    recovery = Recovery(work)
    for error in network.mend(engine.networks, _NETWORK_PATIENCE).errors:
        _LOG.warning("left to a later reconcile: %s", error)
    if not recovery.wait(until - time.monotonic()):
        _LOG.warning("dead pods are still being freed: the daemon serves meanwhile")
    return recovery


def _collect_state(engine: "Engine") -> None:
    """Remove what our own runtime keeps of containers that nobody knows any more.

    That is what lies in the engine's own folder: one that is configured may be a command line's too.
    """
    for name, handler in engine.config.handlers.items():
        if handler.type != "native" or handler.root:
            continue
        folder = engine.runtime_root(name)
        # Listed before the records are: a container has its record before it has state.
        found = _listed(folder)
        for container_id in found - _known(engine) if found else ():
            with suppress(OSError):  # the next start tries again
                tree.remove(f"{folder}/{container_id}")


def _listed(folder: str) -> set[str]:
    try:
        return set(filter(_ID.fullmatch, os.listdir(folder)))
    except FileNotFoundError:
        return set()


def _known(engine: "Engine") -> set[str]:
    """Ids of the containers of every namespace, and of another store's that has its state here too."""
    store = engine.store
    recorded = {found for name in store.namespaces() for found, _ in store.records(name, "containers").list()}
    bundles = glob.iglob("*/*", root_dir=f"{engine.config.state}/pods")
    return recorded.union(map(os.path.basename, bundles))


def _owners(engine: "Engine", known: set[str]) -> set[str]:
    """Pods of every namespace that may own addresses and rules: the network is the machine's."""
    return known.union(os.listdir(f"{engine.config.state}/ns"))


def _give_up(engine: "Engine", pod: PodRecord) -> Work:
    """Let a pod that was never finished give its name back; what takes it down."""
    engine.pod_records.put(pod.id, pod, name=pod.id)

    def unmake() -> None:
        with engine.locks.hold(pod.id):
            engine.pods.unmake(pod)

    return unmake


def _adopt(engine: "Engine", pod: PodRecord) -> bool:
    """Whether the pod lives; if its monitor is gone, its containers are ended and it is not ready any more."""
    try:
        told = engine.monitor(pod.id).info(PATIENCE)
    except TimedOut:
        return True  # it lives; the watch adopts its containers when it answers
    except Unavailable:
        end_orphans(engine, pod.id)
        engine.pods.lose(pod.id)
        return False
    adopt_containers(engine, pod.id, told)
    return True


def adopt_containers(engine: "Engine", pod_id: str, told: "dict[str, Any]") -> None:
    """Fold in ends that happened meanwhile; a start that was never recorded is recorded now, with its event.

    Args:
        engine: Whose.
        pod_id: The pod.
        told: What its monitor said of itself.
    """
    running = {c["id"]: c for c in told["containers"] if c["state"] in ("running", "paused")}
    for record in engine.container_records.list():
        if record.pod_id != pod_id or record.state not in ("created", "running"):
            continue
        settled = engine.containers.settle(record)
        if settled.state == "created" and record.id in running:
            engine.containers.note_start(record.id, int(running[record.id].get("started_at") or time.time_ns()))


def end_orphans(engine: "Engine", pod_id: str) -> None:
    """End what is left of a pod's containers, whose monitor is gone, and record it."""
    for record in engine.container_records.list():
        if record.pod_id == pod_id and record.state in ("created", "running"):
            end_orphan(engine, record)


def end_orphan(engine: "Engine", record: ContainerRecord) -> None:
    """End what is left of a container whose monitor is gone, and record it."""
    systemd = engine.config.cgroup_driver == "systemd"
    if record.cgroup_path:
        group = open_group(record.cgroup_path, systemd=systemd)
        if group.exists():
            group.kill()
            group.remove()
    engine.containers.forget_state(record)
    settled = engine.containers.settle(record)
    if settled.state in ("created", "running"):
        try:
            engine.containers.finish(record.id, UNKNOWN_EXIT, "Unknown", time.time_ns())
        except NotFound:
            return

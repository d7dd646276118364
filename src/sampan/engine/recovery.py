"""After a crash or a reboot: what the records say and what the machine has are brought together.

A pod whose monitor answers is adopted as it is. A pod still being made when its maker died is removed. A pod whose
monitor is gone has lost its containers' ends: they are ended, and recorded as ended with an unknown exit code.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from sampan import network
from sampan.cgroup import open_group
from sampan.engine.containers import UNKNOWN_EXIT
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.errors import NotFound, SampanError, TimedOut, Unavailable

if TYPE_CHECKING:
    from sampan.engine.engine import Engine


#: Seconds for a monitor to answer at a daemon's start. One that waits for a runtime that hangs is adopted later.
PATIENCE = 3.0


def recover(engine: "Engine") -> None:
    """Reconcile one namespace; one pod's trouble never keeps the others from it."""
    containers = engine.container_records.list()
    for record in containers:
        if record.state == "creating":
            engine.containers.discard(record)
    live = set()
    for pod in engine.pod_records.list():
        if pod.state == "creating":
            engine.pods.discard(pod)
        elif pod.state == "ready" and _adopt(engine, pod):
            live.add(pod.id)
    for error in network.reconcile(engine.networks, lambda: _owners(engine, live)).errors:
        logging.getLogger("sampan.network").warning("left to a later reconcile: %s", error)


def _owners(engine: "Engine", live: set[str]) -> set[str]:
    """Pods of every namespace that may own addresses and rules: the network is the machine's."""
    return live.union(os.listdir(f"{engine.config.state}/ns"))


def _adopt(engine: "Engine", pod: PodRecord) -> bool:
    """Whether the pod lives; if its monitor is gone, its containers are ended and it is left not ready."""
    try:
        told = engine.monitor(pod.id).info(PATIENCE)
    except TimedOut:
        return True  # it lives; the watch adopts its containers when it answers
    except Unavailable:
        for record in engine.container_records.list():
            if record.pod_id == pod.id and record.state in ("created", "running"):
                end_orphan(engine, record)
        try:
            engine.pods.stop(pod.id)
        except SampanError:
            return True  # not taken down whole: keep its addresses until that works
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


def end_orphan(engine: "Engine", record: ContainerRecord) -> None:
    """End what is left of a container whose monitor is gone, and record it."""
    systemd = engine.config.cgroup_driver == "systemd"
    if record.cgroup_path:
        group = open_group(record.cgroup_path, systemd=systemd)
        if group.exists():
            group.kill()
            group.remove()
    settled = engine.containers.settle(record)
    if settled.state in ("created", "running"):
        try:
            engine.containers.finish(record.id, UNKNOWN_EXIT, "Unknown", time.time_ns())
        except NotFound:
            return

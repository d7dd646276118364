"""What tests of the CRI look at: whether states are true, what is left on the machine, which events are told."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import grpc
from cri_daemon import Daemon

from sampan.cri import api_pb2 as pb
from sampan.runtime.state import start_time

CREATED, STARTED = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
STOPPED, DELETED = pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT


def told_truly(daemon: Daemon) -> None:
    """Every container's state is what the kernel says of its process."""
    runtime = daemon.runtime
    for container in runtime.ListContainers(pb.ListContainersRequest()).containers:
        answer = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container.id, verbose=True))
        pid = json.loads(answer.info["info"])["pid"]
        lives = pid > 0 and start_time(pid) > 0
        assert lives == (answer.status.state in (pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING)), answer.status
        assert answer.status.state != pb.CONTAINER_UNKNOWN


def left(daemon: Daemon) -> list[str]:
    """What is still on the machine of pods that are gone."""
    state = daemon.folder / "state"
    found = [str(path) for name in ("pods", "ns", "runtime/sampan") for path in (state / name).glob("*")]
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        found += [line.split()[1] for line in mounts if str(state) in line]
    # A monitor that forgot to end still listens, on a path that is gone.
    with open("/proc/net/unix", encoding="utf-8") as sockets:
        found += [line.split()[-1] for line in sockets if f"{state}/pods" in line]
    found += [link for link in os.listdir("/sys/class/net") if _master(link) == daemon.bridge]
    cgroups = Path("/sys/fs/cgroup")
    ids = set(daemon.seen)  # type: ignore[attr-defined]
    found += [str(path) for path in cgroups.glob("*/sampan/k8s.io/*") if path.name in ids]
    return found


def left_at_last(daemon: Daemon) -> list[str]:
    """The same after a while: the kernel takes a network namespace's devices in its own time."""
    deadline = time.monotonic() + 5
    while (found := left(daemon)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _master(link: str) -> str:
    try:
        return os.path.basename(os.readlink(f"/sys/class/net/{link}/master"))
    except OSError:
        return ""


class Follower:
    """A client that follows events from a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self.events: list[pb.ContainerEventResponse] = []
        self._more = threading.Condition()
        self._stream = daemon.runtime.GetContainerEvents(pb.GetEventsRequest())
        self._stream.initial_metadata()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                with self._more:
                    self.events.append(event)
                    self._more.notify_all()
        except grpc.RpcError:
            return

    def until(self, object_id: str, kind: int) -> list[tuple[str, int]]:
        """All events so far, once that one is among them."""
        with self._more:
            assert self._more.wait_for(lambda: (object_id, kind) in self.kinds(), timeout=15), self.kinds()
            return self.kinds()

    def kinds(self) -> list[tuple[str, int]]:
        """All events so far."""
        return [(event.container_id, event.container_event_type) for event in self.events]

    def leave(self) -> None:
        """End the stream."""
        self._stream.cancel()
        self._thread.join(timeout=10)


def holds_in_sequence(found: list[tuple[str, int]], wanted: list[tuple[str, int]]) -> bool:
    """Whether all of ``wanted`` is in ``found``, in that order."""
    rest = iter(found)
    return all(each in rest for each in wanted)

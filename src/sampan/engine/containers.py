"""Containers: made in a pod, started, stopped, removed, listed, waited for.

A container's end is recorded on disk by its monitor before anyone is told. ``settle`` folds that into the record, once,
with its event; whoever looks first does it: the daemon's watch, a list, a command line.
"""

import copy
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sampan.cgroup import open_group
from sampan.engine import checks, limits, oci, volumes
from sampan.engine.model import ContainerRecord, ContainerSpec, PodRecord, Resources
from sampan.engine.pods import unique_name
from sampan.engine.records import Flights, new_id
from sampan.engine.stats import ContainerStats
from sampan.errors import (
    AlreadyExists,
    Exhausted,
    InvalidInput,
    NotFound,
    SampanError,
    StageFailed,
    TimedOut,
    Unavailable,
    WrongState,
)
from sampan.linux import tree
from sampan.shim.exits import Exit, read_exit
from sampan.storage import mount as snapshot_mount

if TYPE_CHECKING:
    from sampan.engine.engine import Engine
    from sampan.engine.execs import AttachSession, ExecResult, ExecSession
    from sampan.engine.processes import ProcessFigures
    from sampan.engine.usage import ContainerReading
    from sampan.shim.cancellation import Cancellation

_LOG = logging.getLogger(__name__)

#: Exit code of a container whose end nobody saw, as containerd gives it.
UNKNOWN_EXIT = 255
#: Exit code of a container whose program could not be run, as containerd gives it.
START_FAILED = 128
#: Seconds for a monitor to let go of a container that was never finished: a new attempt, or a start, waits for it.
_DISCARD = 5.0
#: Seconds for a monitor to tell of an end that is due, before the container's processes are killed without it.
_STUCK = 10.0


class Containers:
    """The containers of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._flights = Flights()

    def create(self, pod_id: str, spec: ContainerSpec) -> ContainerRecord:
        """Make a container up to where its program would run. The same request again gets the same container.

        Raises:
            NotFound: No such pod, or no such image.
            InvalidInput: A field of the request is wrong.
            WrongState: The pod is not ready.
        """
        checks.container(spec)
        pod = self._engine.pods.get(pod_id)
        checks.user_namespace(spec.namespaces, pod.spec.namespaces)
        name = f"{pod.id}/{unique_name(spec.metadata)}"
        return self._flights.do(name, lambda: self._create(name, pod, spec))

    def _create(self, name: str, pod: PodRecord, spec: ContainerSpec) -> ContainerRecord:
        from sampan.engine.creation import Creation

        self._check_ready(pod)
        existing = self._engine.container_records.named(name)
        if existing is not None and existing.state == "creating" and self._engine.locks.free(existing.id):
            # Whoever made it is gone, and it could not be taken down then.
            self.discard(existing)
            existing = self._engine.container_records.named(name)
        if existing is not None and existing.state == "created":
            return self.settle(existing)
        if existing is not None:
            raise AlreadyExists(
                f'container "{spec.metadata.name}" of this attempt exists: {existing.id[:12]}, {existing.state}',
                hint="remove it, or count metadata.attempt up",
            )
        record = ContainerRecord(id=new_id(), pod_id=pod.id, spec=spec, created_at=time.time_ns())
        record.resources = spec.resources
        with self._in_pod(pod.id), self._engine.locks.hold(record.id):
            return Creation(self._engine, pod, record, name).run()

    @contextmanager
    def _in_pod(self, pod_id: str) -> Iterator[None]:
        """A failure of what is done meanwhile is the pod's end, if that comes just then.

        Raises:
            NotFound: The pod has been removed.
            WrongState: It is not ready any more.
        """
        try:
            yield
        except (OSError, StageFailed, Unavailable):
            # Whoever takes it down holds it until that is known.
            with self._engine.locks.hold(pod_id):
                self._check_ready(self._living_pod(pod_id))
            raise

    def _living_pod(self, pod_id: str) -> PodRecord:
        try:
            return self._engine.pods.get(pod_id)
        except NotFound:
            # What was made in its folder since would be nobody's.
            shutil.rmtree(self._engine.layout.pod(pod_id), ignore_errors=True)
            raise

    def _check_ready(self, pod: PodRecord) -> None:
        if pod.state != "ready":
            raise WrongState(f"pod {pod.id[:12]} is {pod.state}")

    def start(self, container_id: str) -> None:
        """Let a created container's program run.

        Raises:
            WrongState: It is not in state created.
            StageFailed: Its program could not be executed.
        """
        engine = self._engine
        record = self.get(container_id)
        with self._in_pod(record.pod_id), engine.locks.hold(record.id):
            record = self.get(container_id)
            if record.state != "created":
                raise WrongState(f"container {record.id[:12]} is {record.state}, not created")
            # Taken before: a short program may have ended by the time that start() returns.
            started_at = time.time_ns()
            try:
                engine.monitor(record.pod_id).start(record.id)
            except StageFailed:
                # It has ended of that, or is of no use: whoever asks next is told so.
                with suppress(SampanError):
                    self._end(record, 9, 0)
                    self.settle(record)
                raise
            self.note_start(record.id, started_at)

    def note_start(self, container_id: str, started_at: int) -> None:
        """Record that a container's program runs, with its event; one whose end is recorded already stays ended."""
        engine = self._engine
        with engine.store.transaction():
            record = engine.container_records.get(container_id)
            if record.state != "created":
                return
            record.state = "running"
            record.started_at = started_at
            engine.container_records.put(record.id, record)
            engine.events.append("started", container_id=record.id, pod_id=record.pod_id)

    def stop(self, container_id: str, timeout: float) -> None:
        """Ask the container to end, and end it after ``timeout`` seconds; one that has ended is no error."""
        record = self.get(container_id)
        if record.state not in ("running", "created"):
            return
        config = self._engine.images.config_of(record)
        try:
            number = oci.stop_signal(record.spec.stop_signal, config.stop_signal or "")
        except InvalidInput as error:  # the image's: nobody can mend it now
            _LOG.warning("container %s is stopped with SIGTERM: %s", record.id[:12], error)
            number = oci.stop_signal()
        try:
            self._end(record, 9 if record.state == "created" else number, timeout)
        except Unavailable:
            self._abandon(record)
        except NotFound:
            pass  # it was removed meanwhile
        self.settle(record)

    def halt(self, container_id: str) -> None:
        """End the container now, and let its runtime forget it; its record stays until :meth:`remove`."""
        record = self.get(container_id)
        monitor = self._engine.monitor(record.pod_id)
        try:
            if record.state in ("running", "created"):
                self._end(record, 9, 0)
            monitor.delete(record.id, force=True)
        except NotFound:
            pass  # the monitor has forgotten it: a second try
        except Unavailable:
            self._abandon(record)
        self.settle(record)

    def _end(self, record: ContainerRecord, signal: int, timeout: float) -> None:
        """Have the monitor end the container; one that doesn't answer does not keep the container alive.

        Raises:
            TimedOut: The container's processes were killed, but its end is not recorded yet.
        """
        monitor = self._engine.monitor(record.pod_id)
        try:
            monitor.stop(record.id, signal, timeout, patience=_STUCK)
        except TimedOut:
            # It waits for a runtime, or for a disk that stalls under a log.
            self._end_processes(record)
            monitor.stop(record.id, 9, 0)

    def _abandon(self, record: ContainerRecord) -> None:
        """Do what the monitor of a container would have done, had it lived: end what is left of it."""
        from sampan.engine.recovery import end_orphan

        end_orphan(self._engine, record)

    def remove(self, container_id: str) -> None:
        """End the container if it runs and remove all of it but the log file.

        Raises:
            NotFound: There is no such container.
        """
        engine = self._engine
        record = self.get(container_id)
        self.halt(record.id)
        with engine.locks.hold(record.id):
            self.take_down(record)
            with engine.store.transaction():
                engine.container_records.delete(record.id)
                engine.events.append("deleted", container_id=record.id, pod_id=record.pod_id)

    def take_down(self, record: ContainerRecord) -> None:
        """Remove what a container has on disk and in the kernel besides its record; repeated calls are harmless."""
        engine = self._engine
        bundle = engine.layout.bundle(record.pod_id, record.id)
        for name in ("rootfs", *_image_volumes(bundle)):
            snapshot_mount.detach(f"{bundle}/{name}")
        engine.disk.forget(record.snapshot_key)
        engine.readings.forget(record.cgroup_path)
        for key in (record.snapshot_key, *(f"{record.id}-{name}" for name in _image_volumes(bundle))):
            if key:
                _forgive_absence(engine.store.snapshots.remove, key)
        shutil.rmtree(bundle, ignore_errors=True)
        volumes.remove(engine.config.root, record.id)
        self.forget_state(record)
        if record.cgroup_path and engine.config.cgroup_driver == "cgroupfs":
            open_group(record.cgroup_path).remove()

    def forget_state(self, record: ContainerRecord) -> None:
        """Remove what the runtime keeps of a container that has ended: its monitor does that, unless it was killed.

        No runtime is called for it, not even another's: one that hangs would hold up the daemon's start.
        """
        engine = self._engine
        with suppress(NotFound, OSError):
            handler = engine.pod_records.get(record.pod_id).handler
            tree.remove(f"{engine.runtime_root(handler)}/{record.id}")

    def get(self, container_id: str) -> ContainerRecord:
        """The container whose id is or begins with ``container_id``, as it is now.

        Raises:
            NotFound: There is none.
        """
        return self.settle(self._engine.container_records.find(container_id))

    def list(
        self,
        *,
        id: str = "",
        pod_id: str = "",
        state: str = "",
        labels: dict[str, str] | None = None,
        settled: bool = True,
    ) -> list[ContainerRecord]:
        """Containers that match every filter given, newest first; those still being made are not among them.

        Args:
            id: Its beginning.
            pod_id: The same of the pod's.
            state: What they are in.
            labels: What they have.
            settled: See for each whether it has ended meanwhile; otherwise those are told as they were.
        """
        wanted = (labels or {}).items()
        found = [
            record
            for record in self._engine.container_records.list()
            if record.state != "creating"
            and record.id.startswith(id)
            and record.pod_id.startswith(pod_id)
            and wanted <= record.spec.labels.items()
        ]
        if settled:
            found = _each(self.settle, found)
        return sorted((c for c in found if not state or c.state == state), key=lambda c: -c.created_at)

    def settle(self, record: ContainerRecord) -> ContainerRecord:
        """The record with the container's end folded in, if it has ended."""
        if record.state not in ("created", "running"):
            return record
        engine = self._engine
        folder = engine.layout.pod(record.pod_id)
        end = read_exit(folder, record.id)
        if end is None and os.access(folder, os.F_OK):
            return record
        if end is None:
            # The machine was started anew, and what lived in memory with it.
            end = Exit(exit_code=UNKNOWN_EXIT, finished_at=time.time_ns())
            reason = "Unknown"
        elif end.refusal:
            reason = "StartError"
        else:
            reason = "OOMKilled" if end.oom_killed else "Completed" if end.exit_code == 0 else "Error"
        exit_code = START_FAILED if end.refusal else end.exit_code
        told: dict[str, Any] = {"started_at": end.started_at, "refusal": end.refusal}
        try:
            return self.finish(record.id, exit_code, reason, end.finished_at, **told)
        except Exhausted:
            # Who lists and asks learns it all the same; it is written down when the disk has room again.
            record = copy.copy(record)
            _end(record, exit_code, reason, end.finished_at, **told)
            return record

    def finish(
        self,
        container_id: str,
        exit_code: int,
        reason: str,
        finished_at: int,
        *,
        started_at: int = 0,
        refusal: str = "",
    ) -> ContainerRecord:
        """Record a container's end, once, with its event; later calls change nothing.

        Args:
            container_id: Whose.
            exit_code: How it ended.
            reason: The same in a word.
            finished_at: When.
            started_at: When its program began, as its monitor saw it; 0: never, or nobody knows.
            refusal: Why its program never ran.
        """
        engine = self._engine
        with engine.store.transaction():
            record = engine.container_records.get(container_id)
            if record.state not in ("created", "running"):
                return record
            if record.state == "created" and started_at:
                engine.events.append("started", container_id=record.id, pod_id=record.pod_id)
            _end(record, exit_code, reason, finished_at, started_at=started_at, refusal=refusal)
            engine.container_records.put(record.id, record)
            if reason == "OOMKilled":
                engine.events.append("oom", container_id=record.id, pod_id=record.pod_id)
            engine.events.append("stopped", container_id=record.id, pod_id=record.pod_id, exit_code=exit_code)
        return record

    def wait(self, container_id: str, timeout: float | None = None) -> int:
        """The container's exit code, as soon as it has ended.

        Raises:
            TimedOut: It runs on after ``timeout`` seconds.
        """
        record = self.get(container_id)
        if record.state == "exited":
            return record.exit_code
        try:
            self._engine.monitor(record.pod_id).wait(record.id, timeout=timeout)
        except Unavailable:
            self._abandon(record)
        return self.get(record.id).exit_code

    def running(self, container_id: str) -> ContainerRecord:
        """The container, which must be running.

        Raises:
            WrongState: It is not.
        """
        record = self.get(container_id)
        if record.state != "running":
            raise WrongState(f"container {record.id[:12]} is {record.state}, not running")
        return record

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """Signal the container's init, or all its processes.

        Raises:
            WrongState: The container has ended.
        """
        # Whether it has begun only the monitor knows: a program runs before start() has written that it does.
        record = self.get(container_id)
        if record.state not in ("created", "running"):
            raise WrongState(f"container {record.id[:12]} is {record.state}, not running")
        self._engine.monitor(record.pod_id).signal(record.id, signal, all=all)

    def pause(self, container_id: str) -> None:
        """Freeze the container."""
        record = self.running(container_id)
        self._engine.monitor(record.pod_id).pause(record.id)

    def resume(self, container_id: str) -> None:
        """Thaw the container."""
        record = self.running(container_id)
        self._engine.monitor(record.pod_id).resume(record.id)

    def pids(self, container_id: str) -> tuple[int, ...]:
        """Pids of the container's processes, as the machine numbers them."""
        record = self.running(container_id)
        return tuple(self._engine.monitor(record.pod_id).pids(record.id))

    def reopen_log(self, container_id: str) -> None:
        """Go on logging into a new file of the same name, after someone moved the old one away."""
        record = self.running(container_id)
        with self._in_pod(record.pod_id):
            self._engine.monitor(record.pod_id).reopen_log(record.id)

    def update(self, container_id: str, wanted: Resources) -> None:
        """Change limits; those that ``wanted`` leaves out stay as they are."""
        engine = self._engine
        record = self.get(container_id)
        with self._in_pod(record.pod_id), engine.locks.hold(record.id):
            record = self.get(container_id)
            if record.state not in ("created", "running"):
                raise WrongState(f"container {record.id[:12]} is {record.state}")
            section = limits.section(wanted)
            if "memory" in section:
                # A limit under what is in use is refused, rather than met by killing.
                section["memory"]["checkBeforeUpdate"] = True
            engine.monitor(record.pod_id).update(record.id, section)
            record.resources = _merged(record.resources, wanted)
            engine.container_records.put(record.id, record)

    def stats(self, container_id: str) -> ContainerStats:
        """Usage of the container, and all that its cgroup tells."""
        from sampan.engine.usage import container_usage

        return container_usage(self._engine, self.get(container_id))

    def readings(self, records: Sequence[ContainerRecord]) -> "tuple[int, Sequence[ContainerReading]]":
        """Usage of many containers, as far as it is soon told, and its time, which may be a second ago."""
        from sampan.engine.usage import read_containers

        return read_containers(self._engine, records)

    def processes(self, record: ContainerRecord) -> "ProcessFigures":
        """Open files, sockets and threads of the container's processes; of one that has ended there are none."""
        from sampan.engine.processes import look

        if record.state not in ("created", "running"):
            return look(())
        group = open_group(record.cgroup_path, systemd=self._engine.config.cgroup_driver == "systemd")
        return look(group.pids())

    def checkpoint(self, container_id: str, location: str, timeout: float = 0) -> None:
        """Write a checkpoint of a running container, which runs on, to a file; see :mod:`sampan.engine.checkpoints`."""
        from sampan.engine.checkpoints import checkpoint

        checkpoint(self._engine, self.running(container_id), location, timeout)

    def exec_sync(
        self,
        container_id: str,
        command: Sequence[str],
        timeout: float = 0,
        cancellation: "Cancellation | None" = None,
    ) -> "ExecResult":
        """Run a command in the container and collect what it prints.

        Args:
            container_id: A running container.
            command: Program and arguments.
            timeout: Seconds after which the command and its children are killed; 0: never.
            cancellation: Ends them, too.

        Raises:
            TimedOut: It was killed for its time.
            Unavailable: It was cancelled.
        """
        from sampan.engine.execs import exec_sync

        record = self.running(container_id)
        with self._in_pod(record.pod_id):
            return exec_sync(self._engine, record, command, timeout, cancellation)

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        env: tuple[str, ...] = (),
        user: str = "",
        cwd: str = "",
        privileged: bool = False,
    ) -> "ExecSession":
        """Start a command in the container on the descriptors given, or on a pty."""
        from sampan.engine.execs import start_exec

        record = self.running(container_id)
        return start_exec(
            self._engine,
            record,
            command,
            tty=tty,
            stdio=(stdin, stdout, stderr),
            env=env,
            user=user,
            cwd=cwd,
            privileged=privileged,
        )

    def attach(
        self, container_id: str, *, stdin: int = -1, stdout: int = -1, stderr: int = -1, patient: bool = False
    ) -> "AttachSession":
        """Connect descriptors to the streams of the container's first process, even before it is started.

        Args:
            container_id: The container.
            stdin: What it reads.
            stdout: Where its output goes; a terminal's too.
            stderr: Where the other output goes.
            patient: Have the container wait for a slow reader as long as it takes, rather than let go of it.

        Raises:
            WrongState: The container has ended.
        """
        from sampan.engine.execs import AttachSession

        record = self.get(container_id)
        if record.state not in ("created", "running"):
            raise WrongState(f"container {record.id[:12]} is {record.state}")
        return AttachSession(self._engine, record, stdin=stdin, stdout=stdout, stderr=stderr, patient=patient)

    def discard(self, record: ContainerRecord) -> None:
        """Remove a container that was never finished, and all that was made for it."""
        try:
            self._engine.monitor(record.pod_id).delete(record.id, force=True, patience=_DISCARD)
        except (NotFound, Unavailable):
            pass
        except SampanError:
            return
        try:
            self._end_processes(record)
            self.take_down(record)
        except SampanError:
            return  # its record stays, so that the next start tries again
        self._engine.container_records.delete(record.id)

    def _end_processes(self, record: ContainerRecord) -> None:
        """End what a runtime that failed or hung may have started."""
        if not record.cgroup_path:
            return
        group = open_group(record.cgroup_path, systemd=self._engine.config.cgroup_driver == "systemd")
        if group.exists():
            group.kill()


def _each(
    settle: Callable[[ContainerRecord], ContainerRecord], records: list[ContainerRecord]
) -> list[ContainerRecord]:
    found = []
    for record in records:
        try:
            found.append(settle(record))
        except NotFound:
            continue  # removed meanwhile
    return found


def _image_volumes(bundle: str) -> list[str]:
    try:
        return [name for name in os.listdir(bundle) if name.startswith("image-")]
    except FileNotFoundError:
        return []


def _forgive_absence(call: Callable[[str], object], key: str) -> None:
    try:
        call(key)
    except NotFound:
        pass


def _end(
    record: ContainerRecord, exit_code: int, reason: str, finished_at: int, *, started_at: int, refusal: str
) -> None:
    if record.state == "created" and started_at:
        # It ended before its start was recorded: the starter was slower, or was killed.
        record.started_at = min(started_at, finished_at)
    record.state = "exited"
    record.exit_code = exit_code
    record.reason = reason
    record.message = refusal
    record.finished_at = finished_at
    record.pid = 0


def _merged(old: Resources, new: Resources) -> Resources:
    values = {
        name: getattr(new, name) if getattr(new, name) not in (None, "", {}) else getattr(old, name)
        for name in Resources.__struct_fields__
    }
    values["oom_score_adj"] = old.oom_score_adj  # a process's own, which is given to it at its start
    if new.memory_limit and not new.memory_swap_limit and old.memory_swap_limit:
        values["memory_swap_limit"] = new.memory_limit  # see limits.section
    return Resources(**values)

"""Pods: made, stopped, removed, listed.

``run`` writes an intent record first and the outcome last, and undoes what it did when a step fails; what a killed
process leaves half-made is found by its record in state ``creating`` (see :mod:`sampan.engine.recovery`).
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import msgspec

from sampan import network
from sampan.cgroup import open_group
from sampan.engine import checks, interface_sysctls, joining, podfiles, selinux
from sampan.engine.model import Metadata, PodRecord, PodSpec, Resources
from sampan.engine.mounts import oci_mappings
from sampan.engine.records import Flights
from sampan.engine.stats import PodStats
from sampan.errors import AlreadyExists, InvalidInput, NotFound, SampanError, WrongState
from sampan.runtime.sandbox import destroy_sandbox

if TYPE_CHECKING:
    from sampan.engine.engine import Engine
    from sampan.engine.usage import PodReading, PodUsage


def unique_name(metadata: Metadata) -> str:
    """What makes a pod (or, in its pod, a container) the same as an earlier one: all four parts."""
    return "_".join((metadata.name, metadata.namespace, metadata.uid, str(metadata.attempt)))


def cgroup_path(driver: str, parent: str, leaf: str) -> str:
    """A cgroup's path below ``parent`` in the form of the driver: a path, or systemd's ``slice:prefix:name``.

    With systemd ``parent`` is a slice, by its name or by its path; another name gets a slice of that name.
    """
    if driver == "systemd":
        name = os.path.basename(parent.rstrip("/")) or "system.slice"
        return f"{name if name.endswith('.slice') else f'{name}.slice'}:sampan:{leaf}"
    return f"{parent.rstrip('/')}/{leaf}"


def own_group(driver: str, pod: PodRecord) -> str:
    """The path of the cgroup, among directories, that is for one pod; empty where it shares one with others."""
    if driver != "systemd":
        return pod.cgroup_path.rstrip("/")
    if not pod.spec.cgroup_parent:
        return ""
    from sampan.cgroup.systemd import expand_slice

    try:
        return expand_slice(cgroup_path(driver, pod.cgroup_path, "").partition(":")[0]).rstrip("/")
    except InvalidInput:  # nothing runs there, then
        return ""


class Pods:
    """The pods of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._flights = Flights()

    def run(self, spec: PodSpec, *, exclusive: bool = False) -> PodRecord:
        """Make a pod and start it. The same request again, under way or done, gets the same pod.

        Args:
            spec: The request.
            exclusive: Refuse a name that a ready pod has, too: for callers who never retry.

        Raises:
            InvalidInput: A field of the request is wrong.
            AlreadyExists: A stopped pod has the name; or, with ``exclusive``, any pod.
        """
        checks.pod(spec)
        handler, _ = self._engine.handler(spec.handler)
        name = unique_name(spec.metadata)
        return self._flights.do(name, lambda: self._run(name, spec, handler, exclusive=exclusive))

    def _run(self, name: str, spec: PodSpec, handler: str, *, exclusive: bool) -> PodRecord:
        engine = self._engine
        existing = engine.pod_records.named(name)
        if existing is not None and existing.state == "creating" and engine.locks.free(existing.id):
            # Whoever made it is gone, and it could not be taken down then.
            self.discard(existing)
            existing = engine.pod_records.named(name)
        if existing is not None and existing.state == "ready" and not exclusive:
            return existing
        if existing is not None:
            raise AlreadyExists(
                f'pod "{spec.metadata.name}" of this attempt exists as {existing.id[:12]} and is {existing.state}',
                hint="remove it, or count metadata.attempt up",
            )
        others = [pod.id for pod in engine.pod_records.list()] if selinux.enabled() else []
        pod = PodRecord(id=selinux.new_pod_id(others), spec=spec, handler=handler, created_at=time.time_ns())
        driver = engine.config.cgroup_driver
        parent = spec.cgroup_parent or self._own_cgroup(driver, pod.id)
        pod.cgroup_path = parent
        with engine.locks.hold(pod.id), ExitStack() as undo:
            engine.pod_records.add(pod.id, pod, name=name)
            undo.callback(self.discard, pod)
            if not spec.cgroup_parent and driver == "cgroupfs" and engine.config.handlers[handler].type == "external":
                # Another runtime would make the parents without the mark by which the last pod takes them along.
                open_group(parent).create()
            monitor = engine.start_monitor(pod.id, handler)
            hostname = podfiles.hostname_of(spec, pod.id)
            at_once, of_interfaces = interface_sysctls.split(spec.sysctls)
            made = monitor.sandbox(
                engine.layout.namespaces(pod.id),
                _kinds(spec),
                # Without a uts namespace of its own the pod has the machine's name.
                hostname=hostname if "uts" in _kinds(spec) else "",
                sysctls=at_once,
                uid_mappings=oci_mappings(spec.namespaces.uid_mappings),
                gid_mappings=oci_mappings(spec.namespaces.gid_mappings),
                pause=spec.namespaces.pid == "pod",
                pause_cgroup=cgroup_path(driver, parent, pod.id) if spec.namespaces.pid == "pod" else "",
                systemd=driver == "systemd",
            )
            pod.namespace_paths = dict(made["paths"])
            pod.pause_pid = int(made["pause_pid"])
            attached = self._attach(pod)
            interface_sysctls.apply(pod.namespace_paths.get("network", ""), of_interfaces)
            files = engine.layout.files(pod.id)
            podfiles.write(files, spec, hostname, pod.ips, spec.dns)
            self._publish(pod, f"{files}/hosts", attached)
            if spec.namespaces.ipc != "node":
                podfiles.mount_shm(files, engine.config.shm_size)
            pod.state = "ready"
            with engine.store.transaction():
                engine.pod_records.put(pod.id, pod)
                engine.events.append("pod-created", pod_id=pod.id)
            undo.pop_all()
        engine.watch_pod(pod.id)
        return pod

    def _attach(self, pod: PodRecord) -> network.Attached | None:
        """Give the pod its network: addresses, and ports of the machine."""
        spec = pod.spec
        if spec.namespaces.network != "pod" or spec.network == "none":
            return None
        metadata = spec.metadata
        result = network.attach(
            self._engine.networks,
            network.Attachment(
                container_id=pod.id,
                netns=pod.namespace_paths["network"],
                networks=joining.names(spec),
                bandwidth=joining.bandwidth(spec.annotations),
                args={
                    "K8S_POD_NAMESPACE": metadata.namespace,
                    "K8S_POD_NAME": metadata.name,
                    "K8S_POD_INFRA_CONTAINER_ID": pod.id,
                    "K8S_POD_UID": metadata.uid,
                },
                port_mappings=tuple(
                    network.PortMapping(
                        container_port=port.container_port,
                        host_port=port.host_port,
                        protocol=port.protocol,
                        host_ip=port.host_ip,
                    )
                    for port in spec.ports
                    if port.host_port
                ),
                dns=network.Dns(servers=spec.dns.servers, searches=spec.dns.searches, options=spec.dns.options)
                if spec.dns
                else None,
                cgroup_path=pod.cgroup_path,
            ),
        )
        pod.ips = tuple(result.addresses)
        pod.network_result = dict(result.as_dict())
        return result

    def _publish(self, pod: PodRecord, hosts: str, attached: network.Attached | None) -> None:
        """On networks that were asked for by name, containers find each other by theirs: in their hosts files."""
        spec = pod.spec
        if attached is None:
            return
        addresses = {name: attached.addresses_on(position) for position, name in enumerate(joining.names(spec)) if name}
        if addresses:
            state, called = self._engine.networks.state, (spec.metadata.name, spec.hostname)
            network.publish_names(state, pod.id, addresses, called, hosts, self._engine.namespace)

    def stop(self, pod_id: str) -> None:
        """End every container of the pod at once and take its network and namespaces; stopped already is no error.

        Raises:
            NotFound: There is no such pod.
        """
        engine = self._engine
        pod = self.get(pod_id)
        for container in engine.containers.list(pod_id=pod.id):
            with suppress(NotFound):  # a kubelet removes old containers meanwhile
                engine.containers.halt(container.id)
        with engine.locks.hold(pod.id):
            pod = engine.pod_records.get(pod.id)
            if pod.state == "notready" and not pod.lost:
                return
            try:
                self._tear_down(pod)
            except BaseException:
                self.lose(pod.id)  # some of it is gone, and nothing may be made in it
                raise
            known, pod.lost = pod.state == "notready", False
            pod.state = "notready"
            pod.pause_pid = 0
            with engine.store.transaction():
                engine.pod_records.put(pod.id, pod)
                if not known:
                    engine.events.append("pod-stopped", pod_id=pod.id)

    def lose(self, pod_id: str) -> None:
        """Record that a pod is not ready any more, its monitor being gone; :meth:`stop` frees what it had."""
        engine = self._engine
        with engine.store.transaction():
            pod = engine.pod_records.get(pod_id)
            if pod.state != "ready":
                return
            pod.state, pod.lost = "notready", True
            engine.pod_records.put(pod.id, pod)
            engine.events.append("pod-stopped", pod_id=pod.id)

    def _own_cgroup(self, driver: str, pod_id: str) -> str:
        """Where a pod's containers are for which no parent is named: a group for each pod.

        With systemd one slice for all: systemd would keep a pod's slice when the pod is long gone.
        """
        root = self._engine.config.cgroup_root
        if driver == "systemd":
            return f"{os.path.basename(root) or 'system'}.slice"
        return f"{root}/{self._engine.namespace}/{pod_id}"

    def _tear_down(self, pod: PodRecord) -> None:
        """Take all that a pod has on the machine, in an order in which each step may find its work done already."""
        engine = self._engine
        if pod.spec.namespaces.network == "pod":
            network.detach(engine.networks, pod.id, netns_ends=True)
        # With it what was made in the pod since its containers were ended.
        if not engine.monitor(pod.id).shutdown(force=True):
            self._tear_down_orphan(pod)
        engine.forget_monitor(pod.id)
        engine.readings.forget(own_group(engine.config.cgroup_driver, pod))
        podfiles.remove(engine.layout.files(pod.id))
        if not pod.spec.cgroup_parent and engine.config.cgroup_driver == "cgroupfs":
            open_group(pod.cgroup_path).remove()

    def _tear_down_orphan(self, pod: PodRecord) -> None:
        """What the monitor would have done, had it lived."""
        driver = self._engine.config.cgroup_driver
        pause = cgroup_path(driver, pod.cgroup_path, pod.id) if pod.spec.namespaces.pid == "pod" else ""
        destroy_sandbox(
            self._engine.layout.namespaces(pod.id),
            pause_pid=pod.pause_pid if _is_pause(pod.pause_pid) else 0,
            pause_cgroup=pause,
            systemd=driver == "systemd",
        )

    def remove(self, pod_id: str) -> None:
        """Stop the pod and remove it with all its containers.

        Raises:
            NotFound: There is no such pod.
        """
        engine = self._engine
        pod = self.get(pod_id)
        self.stop(pod.id)
        for container in engine.containers.list(pod_id=pod.id):
            with suppress(NotFound):
                engine.containers.remove(container.id)
        with engine.locks.hold(pod.id):
            shutil.rmtree(engine.layout.pod(pod.id), ignore_errors=True)
            with engine.store.transaction():
                pod = engine.pod_records.get(pod.id)
                engine.pod_records.delete(pod.id)
                engine.events.append("pod-deleted", pod_id=pod.id, pod=pod)

    def get(self, pod_id: str) -> PodRecord:
        """The pod whose id is or begins with ``pod_id``.

        Raises:
            NotFound: There is none.
        """
        pod = self._engine.pod_records.find(pod_id)
        if pod.state == "creating" and self._abandoned(pod):
            raise NotFound(f'pod "{pod_id}" does not exist')
        return pod

    def _abandoned(self, pod: PodRecord) -> bool:
        return not os.path.exists(self._engine.layout.pod(pod.id))

    def list(self, *, id: str = "", state: str = "", labels: dict[str, str] | None = None) -> list[PodRecord]:
        """Pods that match every filter given, newest first; those still being made are not among them."""
        wanted = (labels or {}).items()
        found = [
            pod
            for pod in self._engine.pod_records.list()
            if pod.state != "creating"
            and pod.id.startswith(id)
            and (not state or pod.state == state)
            and wanted <= pod.spec.labels.items()
        ]
        return sorted(found, key=lambda pod: -pod.created_at)

    def netns(self, pod_id: str) -> str:
        """File of the pod's network namespace; empty on the machine's.

        Raises:
            WrongState: The pod is not ready.
        """
        pod = self.get(pod_id)
        if pod.state != "ready":
            raise WrongState(f'pod "{pod_id}" is {pod.state}')
        return pod.namespace_paths.get("network", "")

    def update(self, pod_id: str, *, overhead: Resources | None, resources: Resources | None) -> None:
        """Record new sums of the pod's resources; the kubelet itself resizes the pod's cgroup.

        Raises:
            InvalidInput: The pod's containers use more memory than they are to have.
        """
        engine = self._engine
        with engine.locks.hold(self.get(pod_id).id):
            pod = self.get(pod_id)
            self._refuse_below_usage(pod, resources, overhead or pod.spec.overhead)
            pod.spec = msgspec.structs.replace(
                pod.spec, overhead=overhead or pod.spec.overhead, resources=resources or pod.spec.resources
            )
            engine.pod_records.put(pod.id, pod)

    def _refuse_below_usage(self, pod: PodRecord, resources: Resources | None, overhead: Resources | None) -> None:
        limit = resources.memory_limit if resources else None
        if pod.state != "ready" or limit is None or limit <= 0:
            return
        limit += max(0, (overhead.memory_limit if overhead else None) or 0)
        usage = sum(container.memory_usage for container in self.stats(pod.id).containers)
        if usage > limit:
            raise InvalidInput(
                f"{limit} is less than the {usage} bytes in use", field="resources.memory_limit_in_bytes"
            )

    def stats(self, pod_id: str) -> PodStats:
        """Usage of the pod, of its containers, and of its interfaces."""
        from sampan.engine.usage import container_stats, pod_stats

        timestamp, (reading,) = self.readings([self.get(pod_id)], fresh=True)
        containers = (container_stats(self._engine, timestamp, each) for each in reading.containers)
        return pod_stats(timestamp, reading, tuple(containers))

    def readings(self, pods: Sequence[PodRecord], *, fresh: bool = False) -> "tuple[int, Sequence[PodReading]]":
        """Usage of many pods, as far as it is soon told, and its time.

        Args:
            pods: Which.
            fresh: As it is now; otherwise it may be a second ago.
        """
        from sampan.engine.usage import read_pods

        return read_pods(self._engine, pods, fresh=fresh)

    def usage(self, pods: Sequence[PodRecord]) -> "Iterator[PodUsage]":
        """Usage of many pods, with all that the cgroups of their containers tell."""
        from sampan.engine.usage import pods_in_full

        return pods_in_full(self._engine, pods)

    def discard(self, pod: PodRecord) -> None:
        """Remove a pod that was never finished; what can't be taken down stays on record, for the next start."""
        try:
            self.unmake(pod)
        except SampanError:
            return

    def unmake(self, pod: PodRecord) -> None:
        """Take down all that was made for a pod that was never finished, then its record.

        Raises:
            SampanError: Something can't be taken down; the record stays.
        """
        self._tear_down(pod)
        shutil.rmtree(self._engine.layout.pod(pod.id), ignore_errors=True)
        self._engine.pod_records.delete(pod.id)


def _kinds(spec: PodSpec) -> list[str]:
    """Namespaces that the pod has of its own. On the machine's network the host name is the machine's too."""
    kinds = []
    if spec.namespaces.uid_mappings:
        kinds.append("user")
    if spec.namespaces.network != "node":
        kinds += ["network", "uts"]
    if spec.namespaces.ipc != "node":
        kinds.append("ipc")
    if spec.namespaces.pid == "pod":
        kinds.append("pid")
    return kinds


def _is_pause(pid: int) -> bool:
    """Whether the process of this number is still a pause of ours, and not another that got its number."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(7) == b"/pause\0"
    except OSError:
        return False

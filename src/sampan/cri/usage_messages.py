"""From the engine's figures of usage to encoded messages.

A list of 500 pods has 20,000 figures, each a message of its own. So a message is made once for a list, its figures are
replaced for each of the entries, and it is encoded; what tells whose the figures are is encoded already
(:mod:`sampan.cri.encoding`).
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from sampan.cri import api_pb2 as pb
from sampan.cri.encoding import Field
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats

#: What CNI calls a pod's first interface; the kubelet takes the pod's traffic from it.
_DEFAULT_INTERFACE = "eth0"

_LINUX = Field(pb.PodSandboxStats, "linux")
_CONTAINERS = Field(pb.LinuxPodSandboxStats, "containers")

# Fields that hold a figure, and the figure's name.
_CPU = {"usage_core_nano_seconds": "cpu_usage_ns", "usage_nano_cores": "cpu_nano_cores"}
_MEMORY = {
    "working_set_bytes": "memory_working_set",
    "available_bytes": "memory_available",
    "usage_bytes": "memory_usage",
    "rss_bytes": "memory_rss",
    "page_faults": "page_faults",
    "major_page_faults": "major_page_faults",
}
_SWAP = {"swap_available_bytes": "swap_available", "swap_usage_bytes": "swap_usage"}
_LAYER = {"used_bytes": "fs_used_bytes", "inodes_used": "fs_inodes"}
_PROCESS = {"process_count": "pids"}


def container_attributes(record: ContainerRecord) -> bytes:
    """``ContainerStats`` with nothing but whose it is."""
    identity = record.spec.metadata
    attributes = pb.ContainerAttributes(
        id=record.id,
        metadata=pb.ContainerMetadata(name=identity.name, attempt=identity.attempt),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
    )
    return pb.ContainerStats(attributes=attributes).SerializeToString()


def pod_attributes(record: PodRecord) -> bytes:
    """``PodSandboxStats`` with nothing but whose it is."""
    identity = record.spec.metadata
    attributes = pb.PodSandboxAttributes(
        id=record.id,
        metadata=pb.PodSandboxMetadata(
            name=identity.name, uid=identity.uid, namespace=identity.namespace, attempt=identity.attempt
        ),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
    )
    return pb.PodSandboxStats(attributes=attributes).SerializeToString()


class Figures:
    """Encodes figures; for one thread."""

    def __init__(self) -> None:
        self._containers: dict[tuple[object, ...], _Container] = {}
        self._pods: dict[tuple[object, ...], _Pod] = {}

    def container(self, attributes: bytes, stats: ContainerStats) -> bytes:
        """``ContainerStats``.

        Args:
            attributes: See :func:`container_attributes`.
            stats: The container's figures.
        """
        missing = (stats.cpu_nano_cores is None, stats.memory_available is None, stats.swap_available is None)
        kind = (stats.in_group, *missing, *stats.pressure)
        form = self._containers.get(kind)
        if form is None:
            form = self._containers[kind] = _Container(stats)
        return attributes + form.encode(stats)

    def pod(self, attributes: bytes, stats: PodStats, containers: Iterable[bytes]) -> bytes:
        """``PodSandboxStats``.

        Args:
            attributes: See :func:`pod_attributes`.
            stats: The pod's figures.
            containers: What :meth:`container` made of its containers.
        """
        kind = (stats.cpu_nano_cores is None, *stats.pressure)
        form = self._pods.get(kind)
        if form is None:
            form = self._pods[kind] = _Pod(stats)
        return attributes + _LINUX.of([form.encode(stats) + _network(stats) + _CONTAINERS.of(containers)])


class _Container:
    """``ContainerStats``, to be filled with figures again and again: those of one that are there are there of all."""

    def __init__(self, first: ContainerStats) -> None:
        message = self._message = pb.ContainerStats()
        self._file_system = message.writable_layer.fs_id
        layer = (message.writable_layer, _LAYER)
        # A figure of 0 would be a counter that has gone back.
        group = ((message.cpu, _CPU), (message.memory, _MEMORY), (message.swap, _SWAP)) if first.in_group else ()
        self._places = _Places((*group, layer), first)

    def encode(self, stats: ContainerStats) -> bytes:
        self._places.fill(stats)
        self._file_system.mountpoint = stats.fs_mountpoint
        if stats.pressure:
            _put_pressure(self._message, stats)
        return self._message.SerializeToString()


class _Pod:
    """``LinuxPodSandboxStats`` in the same way, without interfaces and containers: their number varies."""

    def __init__(self, first: PodStats) -> None:
        message = self._message = pb.LinuxPodSandboxStats()
        self._places = _Places(((message.cpu, _CPU), (message.memory, _MEMORY), (message.process, _PROCESS)), first)

    def encode(self, stats: PodStats) -> bytes:
        self._places.fill(stats)
        if stats.pressure:
            _put_pressure(self._message, stats)
        return self._message.SerializeToString()


class _Places:
    """Where in a message figures stand.

    Args:
        parts: The message's parts, each with its fields: name -> name of the figure.
        first: Usage in which those figures are None that are left out.
    """

    def __init__(self, parts: Sequence[tuple[Any, dict[str, str]]], first: ContainerStats | PodStats) -> None:
        names = [
            (getattr(part, field), figure)
            for part, fields in parts
            for field, figure in fields.items()
            if getattr(first, figure, None) is not None
        ]
        self._values = [value for value, _ in names]
        self._figures = attrgetter(*(figure for _, figure in names))
        self._parts = [part for part, _ in parts]

    def fill(self, stats: ContainerStats | PodStats) -> None:
        timestamp = stats.timestamp
        for part in self._parts:
            part.timestamp = timestamp
        for value, figure in zip(self._values, self._figures(stats), strict=True):
            value.value = figure


def _put_pressure(message: pb.ContainerStats | pb.LinuxPodSandboxStats, stats: ContainerStats | PodStats) -> None:
    """Pressure stall information, of the resources of which the kernel keeps it; cgroup v1 has none."""
    given = stats.pressure
    if "cpu" in given:
        _put_psi(message.cpu.psi, given["cpu"])
    if "memory" in given:
        _put_psi(message.memory.psi, given["memory"])
    if "io" in given:  # of input and output the interface has pressure alone
        message.io.timestamp = stats.timestamp
        _put_psi(message.io.psi, given["io"])


def _put_psi(message: pb.PsiStats, kinds: dict[str, dict[str, float]]) -> None:
    for target, values in ((message.Full, kinds.get("full", {})), (message.Some, kinds.get("some", {}))):
        target.Avg10 = values.get("avg10", 0.0)
        target.Avg60 = values.get("avg60", 0.0)
        target.Avg300 = values.get("avg300", 0.0)
        target.Total = int(values.get("total", 0)) * 1000  # the kernel counts microseconds


def _network(stats: PodStats) -> bytes:
    """The pod's interfaces, the default one apart; nothing for a pod on the machine's network."""
    if not stats.interfaces:
        return b""
    first = next((each for each in stats.interfaces if each.name == _DEFAULT_INTERFACE), stats.interfaces[0])
    message = pb.LinuxPodSandboxStats()
    network = message.network
    network.timestamp = stats.timestamp
    _put_interface(network.default_interface, first)
    for each in stats.interfaces:
        if each is not first:
            _put_interface(network.interfaces.add(), each)
    return message.SerializeToString()


def _put_interface(message: pb.NetworkInterfaceUsage, stats: InterfaceStats) -> None:
    message.name = stats.name
    message.rx_bytes.value = stats.rx_bytes
    message.rx_errors.value = stats.rx_errors
    message.tx_bytes.value = stats.tx_bytes
    message.tx_errors.value = stats.tx_errors

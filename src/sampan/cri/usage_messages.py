"""From the engine's figures of usage to messages."""

from sampan.cri import api_pb2 as pb
from sampan.cri import container_messages, pod_messages
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats

#: What CNI calls a pod's first interface; the kubelet takes the pod's traffic from it.
_DEFAULT_INTERFACE = "eth0"

Pressure = dict[str, dict[str, dict[str, float]]]


def count(value: int | None) -> pb.UInt64Value | None:
    """A figure, or nothing where the kernel gave none."""
    return None if value is None else pb.UInt64Value(value=min(max(value, 0), (1 << 64) - 1))


def pressure(given: Pressure, resource: str) -> pb.PsiStats | None:
    """Pressure stall information of one resource, or nothing where the kernel keeps none (cgroup v1)."""
    kinds = given.get(resource)
    if kinds is None:
        return None
    return pb.PsiStats(Full=_psi(kinds.get("full", {})), Some=_psi(kinds.get("some", {})))


def _psi(values: dict[str, float]) -> pb.PsiData:
    total = int(values.get("total", 0)) * 1000  # the kernel counts microseconds
    averages = (values.get(f"avg{seconds}", 0.0) for seconds in (10, 60, 300))
    return pb.PsiData(**dict(zip(("Avg10", "Avg60", "Avg300"), averages, strict=True)), Total=total)


def io(stats: ContainerStats | PodStats) -> pb.IoUsage | None:
    """Input and output: of it the interface has pressure alone."""
    psi = pressure(stats.pressure, "io")
    return None if psi is None else pb.IoUsage(timestamp=stats.timestamp, psi=psi)


def container(record: ContainerRecord, stats: ContainerStats) -> pb.ContainerStats:
    """Usage of a container."""
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=record.id,
            metadata=container_messages.metadata(record),
            labels=record.spec.labels,
            annotations=record.spec.annotations,
        ),
        cpu=pb.CpuUsage(
            timestamp=stats.timestamp,
            usage_core_nano_seconds=count(stats.cpu_usage_ns),
            usage_nano_cores=count(stats.cpu_nano_cores),
            psi=pressure(stats.pressure, "cpu"),
        ),
        memory=pb.MemoryUsage(
            timestamp=stats.timestamp,
            working_set_bytes=count(stats.memory_working_set),
            available_bytes=count(stats.memory_available),
            usage_bytes=count(stats.memory_usage),
            rss_bytes=count(stats.memory_rss),
            page_faults=count(stats.page_faults),
            major_page_faults=count(stats.major_page_faults),
            psi=pressure(stats.pressure, "memory"),
        ),
        io=io(stats),
        swap=pb.SwapUsage(
            timestamp=stats.timestamp,
            swap_available_bytes=count(stats.swap_available),
            swap_usage_bytes=count(stats.swap_usage),
        ),
        writable_layer=pb.FilesystemUsage(
            timestamp=stats.timestamp,
            fs_id=pb.FilesystemIdentifier(mountpoint=stats.fs_mountpoint),
            used_bytes=count(stats.fs_used_bytes),
            inodes_used=count(stats.fs_inodes),
        ),
    )


def pod(record: PodRecord, stats: PodStats, containers: dict[str, ContainerRecord]) -> pb.PodSandboxStats:
    """Usage of a pod.

    Args:
        record: The pod.
        stats: Its figures.
        containers: Records of its containers, by id.
    """
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=record.id,
            metadata=pod_messages.metadata(record),
            labels=record.spec.labels,
            annotations=record.spec.annotations,
        ),
        linux=pb.LinuxPodSandboxStats(
            cpu=pb.CpuUsage(
                timestamp=stats.timestamp,
                usage_core_nano_seconds=count(stats.cpu_usage_ns),
                usage_nano_cores=count(stats.cpu_nano_cores),
                psi=pressure(stats.pressure, "cpu"),
            ),
            memory=pb.MemoryUsage(
                timestamp=stats.timestamp,
                working_set_bytes=count(stats.memory_working_set),
                usage_bytes=count(stats.memory_usage),
                rss_bytes=count(stats.memory_rss),
                page_faults=count(stats.page_faults),
                major_page_faults=count(stats.major_page_faults),
                psi=pressure(stats.pressure, "memory"),
            ),
            io=io(stats),
            network=_network(stats),
            process=pb.ProcessUsage(timestamp=stats.timestamp, process_count=count(stats.pids)),
            containers=[container(containers[each.id], each) for each in stats.containers if each.id in containers],
        ),
    )


def _network(stats: PodStats) -> pb.NetworkUsage | None:
    """The pod's interfaces, the default one apart; nothing for a pod on the machine's network."""
    if not stats.interfaces:
        return None
    first = next((each for each in stats.interfaces if each.name == _DEFAULT_INTERFACE), stats.interfaces[0])
    return pb.NetworkUsage(
        timestamp=stats.timestamp,
        default_interface=_interface(first),
        interfaces=[_interface(each) for each in stats.interfaces if each is not first],
    )


def _interface(stats: InterfaceStats) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=stats.name,
        rx_bytes=count(stats.rx_bytes),
        rx_errors=count(stats.rx_errors),
        tx_bytes=count(stats.tx_bytes),
        tx_errors=count(stats.tx_errors),
    )

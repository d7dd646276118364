"""Encoded figures are the messages that they stand for, also when one entry has figures that the former had not."""

from hypothesis import given
from hypothesis import strategies as st

from sampan.cri import api_pb2 as pb
from sampan.cri.usage_messages import Figures, container_attributes, pod_attributes
from sampan.engine.model import ContainerRecord, ContainerSpec, Metadata, PodRecord, PodSpec
from sampan.engine.stats import ContainerStats, InterfaceStats, PodStats

_COUNT = st.integers(0, (1 << 64) - 1)
_TIME = st.integers(0, 1 << 62)
_MAYBE = st.none() | _COUNT
_AVERAGE = st.floats(0, 100)
_KIND = st.fixed_dictionaries(
    {"avg10": _AVERAGE, "avg60": _AVERAGE, "avg300": _AVERAGE, "total": st.integers(0, 1 << 50).map(float)}
)
_PRESSURE = st.dictionaries(
    st.sampled_from(["cpu", "memory", "io"]), st.dictionaries(st.sampled_from(["some", "full"]), _KIND)
)
_MAP = st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3)

_CONTAINERS = st.builds(
    ContainerStats,
    id=st.text("abc", min_size=1),
    timestamp=_TIME,
    cpu_usage_ns=_COUNT,
    cpu_nano_cores=_MAYBE,
    memory_usage=_COUNT,
    memory_working_set=_COUNT,
    memory_available=_MAYBE,
    memory_rss=_COUNT,
    page_faults=_COUNT,
    major_page_faults=_COUNT,
    swap_usage=_COUNT,
    swap_available=_MAYBE,
    fs_used_bytes=_COUNT,
    fs_inodes=_COUNT,
    fs_mountpoint=st.text(max_size=10),
    pressure=_PRESSURE,
)
_INTERFACES = st.builds(
    InterfaceStats, st.sampled_from(["eth0", "net1", "net2"]), _COUNT, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT
)
_PODS = st.builds(
    PodStats,
    id=st.just("pod"),
    timestamp=_TIME,
    cpu_usage_ns=_COUNT,
    cpu_nano_cores=_MAYBE,
    memory_usage=_COUNT,
    memory_working_set=_COUNT,
    memory_rss=_COUNT,
    page_faults=_COUNT,
    major_page_faults=_COUNT,
    pids=_COUNT,
    interfaces=st.lists(_INTERFACES, max_size=3).map(tuple),
    pressure=_PRESSURE,
    containers=st.lists(_CONTAINERS, max_size=2).map(tuple),
)


def _value(value: int | None) -> pb.UInt64Value | None:
    return None if value is None else pb.UInt64Value(value=value)


def _psi(stats: ContainerStats | PodStats, resource: str) -> pb.PsiStats | None:
    if resource not in stats.pressure:
        return None
    data = {}
    for kind in ("full", "some"):
        values = stats.pressure[resource].get(kind, {})
        data[kind.title()] = pb.PsiData(
            Avg10=values.get("avg10", 0),
            Avg60=values.get("avg60", 0),
            Avg300=values.get("avg300", 0),
            Total=int(values.get("total", 0)) * 1000,
        )
    return pb.PsiStats(Full=data["Full"], Some=data["Some"])


def _cpu(stats: ContainerStats | PodStats) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=stats.timestamp,
        usage_core_nano_seconds=_value(stats.cpu_usage_ns),
        usage_nano_cores=_value(stats.cpu_nano_cores),
        psi=_psi(stats, "cpu"),
    )


def _memory(stats: ContainerStats | PodStats) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        timestamp=stats.timestamp,
        working_set_bytes=_value(stats.memory_working_set),
        available_bytes=_value(stats.memory_available if isinstance(stats, ContainerStats) else None),
        usage_bytes=_value(stats.memory_usage),
        rss_bytes=_value(stats.memory_rss),
        page_faults=_value(stats.page_faults),
        major_page_faults=_value(stats.major_page_faults),
        psi=_psi(stats, "memory"),
    )


def _io(stats: ContainerStats | PodStats) -> pb.IoUsage | None:
    return pb.IoUsage(timestamp=stats.timestamp, psi=_psi(stats, "io")) if "io" in stats.pressure else None


def _container(stats: ContainerStats) -> pb.ContainerStats:
    return pb.ContainerStats(
        cpu=_cpu(stats),
        memory=_memory(stats),
        io=_io(stats),
        swap=pb.SwapUsage(
            timestamp=stats.timestamp,
            swap_available_bytes=_value(stats.swap_available),
            swap_usage_bytes=_value(stats.swap_usage),
        ),
        writable_layer=pb.FilesystemUsage(
            timestamp=stats.timestamp,
            fs_id=pb.FilesystemIdentifier(mountpoint=stats.fs_mountpoint),
            used_bytes=_value(stats.fs_used_bytes),
            inodes_used=_value(stats.fs_inodes),
        ),
    )


def _interface(stats: InterfaceStats) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=stats.name,
        rx_bytes=_value(stats.rx_bytes),
        rx_errors=_value(stats.rx_errors),
        tx_bytes=_value(stats.tx_bytes),
        tx_errors=_value(stats.tx_errors),
    )


def _network(stats: PodStats) -> pb.NetworkUsage | None:
    if not stats.interfaces:
        return None
    first = next((number for number, each in enumerate(stats.interfaces) if each.name == "eth0"), 0)
    others = [each for number, each in enumerate(stats.interfaces) if number != first]
    return pb.NetworkUsage(
        timestamp=stats.timestamp,
        default_interface=_interface(stats.interfaces[first]),
        interfaces=map(_interface, others),
    )


@given(st.lists(_CONTAINERS, max_size=4))
def test_containers(entries: list[ContainerStats]) -> None:
    figures = Figures()
    for stats in entries:
        assert pb.ContainerStats.FromString(figures.container(b"", stats)) == _container(stats)


@given(st.lists(_PODS, max_size=3))
def test_pods(entries: list[PodStats]) -> None:
    figures = Figures()
    for stats in entries:
        told = figures.pod(b"", stats, [figures.container(b"", each) for each in stats.containers])
        expected = pb.LinuxPodSandboxStats(
            cpu=_cpu(stats),
            memory=_memory(stats),
            io=_io(stats),
            network=_network(stats),
            process=pb.ProcessUsage(timestamp=stats.timestamp, process_count=_value(stats.pids)),
            containers=map(_container, stats.containers),
        )
        assert pb.PodSandboxStats.FromString(told) == pb.PodSandboxStats(linux=expected)


@given(_MAP, _MAP)
def test_whose_they_are(labels: dict[str, str], annotations: dict[str, str]) -> None:
    identity = Metadata(name="name", uid="uid", namespace="space", attempt=3)
    stats = ContainerStats(id="1", timestamp=7)
    container = ContainerRecord(
        id="1",
        pod_id="2",
        created_at=0,
        spec=ContainerSpec(metadata=identity, labels=labels, annotations=annotations),
    )
    told = pb.ContainerStats.FromString(Figures().container(container_attributes(container), stats))
    assert told.attributes == pb.ContainerAttributes(
        id="1", metadata=pb.ContainerMetadata(name="name", attempt=3), labels=labels, annotations=annotations
    )
    assert told.cpu.timestamp == 7
    pod = PodRecord(
        id="2", handler="", created_at=0, spec=PodSpec(metadata=identity, labels=labels, annotations=annotations)
    )
    whose = pb.PodSandboxStats.FromString(Figures().pod(pod_attributes(pod), PodStats(id="2", timestamp=7), []))
    assert whose.attributes == pb.PodSandboxAttributes(
        id="2",
        metadata=pb.PodSandboxMetadata(name="name", uid="uid", namespace="space", attempt=3),
        labels=labels,
        annotations=annotations,
    )

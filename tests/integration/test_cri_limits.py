"""Limits over CRI, as the kernel has them: memory and swap, huge pages, the kubelet's memory QoS by unified keys."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan import cgroup
from sampan.cgroup.hierarchy import layout
from sampan.cri import api_pb2 as pb
from sampan.engine import limits

pytestmark = pytest.mark.root

on_v2 = pytest.mark.skipif(cgroup.mode() != "v2", reason="the machine has cgroup v1")
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri13", "10.89.98.0/24") as made:
        yield made


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    yield shared
    shared.remove_pods()


def run(daemon: Daemon, **resources: Any) -> str:
    sandbox = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"),
        linux=pb.LinuxPodSandboxConfig(cgroup_parent="/sampan-test-limits"),
    )
    pod = daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=sandbox)).pod_sandbox_id
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**resources))
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"), image=daemon.image, command=["sleep", "1000"], linux=linux
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def update(daemon: Daemon, container: str, **resources: Any) -> None:
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=pb.LinuxContainerResources(**resources))
    daemon.runtime.UpdateContainerResources(request)


def told(daemon: Daemon, container: str) -> pb.LinuxContainerResources:
    request = pb.ContainerStatusRequest(container_id=container)
    found: pb.LinuxContainerResources = daemon.runtime.ContainerStatus(request).status.resources.linux
    return found


def value(controller: str, container: str, name: str) -> str:
    """What a file of the container's group says; on cgroup v2 the controller does not matter."""
    machine = layout()
    folder = Path(machine.controllers.get(controller, machine.unified)) / "sampan-test-limits" / container
    return (folder / name).read_text().strip()


def test_memory_with_swap(daemon: Daemon) -> None:
    container = run(daemon, memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB)
    names = {"v2": ("memory.max", "memory.swap.max")}.get(
        cgroup.mode(), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    )
    # v1 limits memory and swap together, v2 swap alone.
    swap = 32 if cgroup.mode() == "v2" else 96
    assert [value("memory", container, name) for name in names] == [str(64 * MIB), str(swap * MIB)]
    update(daemon, container, memory_limit_in_bytes=128 * MIB, memory_swap_limit_in_bytes=128 * MIB)
    swap = 0 if cgroup.mode() == "v2" else 128
    assert [value("memory", container, name) for name in names] == [str(128 * MIB), str(swap * MIB)]
    assert told(daemon, container).memory_swap_limit_in_bytes == 128 * MIB


def test_what_an_update_leaves_out_stays_as_it_is_told(daemon: Daemon) -> None:
    container = run(
        daemon, memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB, oom_score_adj=500, cpu_shares=100
    )
    update(daemon, container, cpuset_cpus="0")
    update(daemon, container, memory_limit_in_bytes=128 * MIB, oom_score_adj=300)
    now = told(daemon, container)
    assert (now.oom_score_adj, now.cpu_shares, now.cpuset_cpus) == (500, 100, "0")
    # A limit of memory alone is one of memory and swap.
    assert now.memory_swap_limit_in_bytes == now.memory_limit_in_bytes == 128 * MIB
    if cgroup.mode() != "v2":
        assert value("memory", container, "memory.memsw.limit_in_bytes") == str(128 * MIB)
    request = pb.ExecSyncRequest(container_id=container, cmd=["cat", "/proc/self/oom_score_adj"])
    assert daemon.runtime.ExecSync(request).stdout == b"500\n"


def test_shares_of_the_processor_are_told_as_they_are_in_force(daemon: Daemon) -> None:
    container = run(daemon, cpu_shares=1)
    assert told(daemon, container).cpu_shares == 2
    update(daemon, container, cpu_shares=1 << 18)
    assert told(daemon, container).cpu_shares == 1 << 18
    if "cpu" in layout().controllers:
        assert value("cpu", container, "cpu.shares") == str(1 << 18)
    for wrong in ((1 << 18) + 1, 1 << 40, -1):
        with pytest.raises(grpc.RpcError) as caught:
            update(daemon, container, cpu_shares=wrong)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith("linux.cpu_shares: ")
    update(daemon, container, cpu_shares=1)
    assert told(daemon, container).cpu_shares == 2


def test_huge_pages_as_a_kubelet_sends_them(daemon: Daemon) -> None:
    if not limits.counts_huge_pages(layout()):
        run(daemon, hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)])
        return
    sizes = [pb.HugepageLimit(page_size="2MB", limit=4 * MIB)]
    container = run(daemon, hugepage_limits=sizes)
    name = "hugetlb.2MB.limit_in_bytes" if "hugetlb" in layout().controllers else "hugetlb.2MB.max"
    assert value("hugetlb", container, name) == str(4 * MIB)
    assert list(told(daemon, container).hugepage_limits) == sizes


@on_v2
def test_memory_quality_of_service(daemon: Daemon) -> None:
    container = run(
        daemon,
        memory_limit_in_bytes=64 * MIB,
        unified={"memory.min": str(16 * MIB), "memory.high": str(48 * MIB), "memory.oom.group": "1"},
    )
    names = ("memory.min", "memory.high", "memory.max", "memory.oom.group")
    assert [value("", container, name) for name in names] == [str(16 * MIB), str(48 * MIB), str(64 * MIB), "1"]
    assert dict(told(daemon, container).unified)["memory.high"] == str(48 * MIB)
    update(daemon, container, memory_limit_in_bytes=96 * MIB, unified={"memory.high": str(32 * MIB)})
    assert [value("", container, name) for name in names[:3]] == [str(16 * MIB), str(32 * MIB), str(96 * MIB)]
    # memory.high is felt: whoever fills the page cache has it taken back and is counted, not killed.
    script = "head -c 50000000 /dev/zero > /file; rm /file"
    done = daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=60))
    events = dict(line.split() for line in value("", container, "memory.events").splitlines())
    assert int(events["high"]) > 0, done
    assert events["oom_kill"] == "0"


@on_v2
@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("memory.nothing", grpc.StatusCode.UNIMPLEMENTED),
        ("../memory.max", grpc.StatusCode.INVALID_ARGUMENT),
        ("cgroup.procs", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_key_that_is_no_limit_is_refused_and_nothing_is_left(daemon: Daemon, key: str, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        run(daemon, unified={key: "1"})
    assert refusal.value.code() is code
    assert key in refusal.value.details()
    assert not daemon.runtime.ListContainers(pb.ListContainersRequest()).containers


def test_the_spec_has_what_was_asked_for(daemon: Daemon) -> None:
    container = run(daemon, cpu_period=50_000, cpu_quota=25_000, cpu_shares=512, cpuset_cpus="0")
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    info = json.loads(daemon.runtime.ContainerStatus(request).info["info"])
    wanted = {"period": 50_000, "quota": 25_000, "shares": 512, "cpus": "0"}
    assert info["runtimeSpec"]["linux"]["resources"]["cpu"] == wanted
    if cgroup.mode() == "v2":
        assert value("", container, "cpu.max") == "25000 50000"
    else:
        assert value("cpu", container, "cpu.cfs_quota_us") == "25000"


def test_lists_of_usage_are_of_the_last_second_and_one_container_is_looked_at_now(daemon: Daemon) -> None:
    container = run(daemon, memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB)
    asked = time.time_ns()

    def listed() -> pb.ContainerStats:
        found: pb.ContainerStats
        (found,) = daemon.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
        return found

    first = listed()
    alone = daemon.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    assert asked < first.cpu.timestamp < alone.cpu.timestamp
    assert alone.attributes == first.attributes
    assert first.memory.usage_bytes.value > 0
    assert first.memory.available_bytes.value == 64 * MIB - first.memory.working_set_bytes.value
    assert first.swap.swap_available_bytes.value == 32 * MIB
    (pod,) = daemon.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
    assert pod.linux.process.process_count.value == 1
    assert pod.linux.containers[0].attributes == first.attributes
    assert pod.linux.memory.usage_bytes.value >= pod.linux.containers[0].memory.usage_bytes.value
    assert pod.HasField("linux")
    deadline = time.monotonic() + 20
    while listed().cpu.timestamp - first.cpu.timestamp < 1_000_000_000:
        assert time.monotonic() < deadline
    assert listed().cpu.HasField("usage_nano_cores")


def test_a_container_that_rests_has_new_times_and_the_same_figures(daemon: Daemon) -> None:
    container = run(daemon, memory_limit_in_bytes=64 * MIB)

    def listed() -> tuple[pb.ContainerStats, pb.PodSandboxStats]:
        time.sleep(1.1)
        (pod,) = daemon.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
        (found,) = daemon.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
        return found, pod

    def same(one: pb.ContainerStats, other: pb.ContainerStats) -> bool:
        parts = ("cpu", "memory", "swap", "writable_layer")
        copies = [pb.ContainerStats(), pb.ContainerStats()]
        for copy, stats in zip(copies, (one, other), strict=True):
            copy.CopyFrom(stats)
            for part in parts:
                getattr(copy, part).timestamp = 0
            copy.cpu.ClearField("psi")
            copy.memory.ClearField("psi")
            copy.ClearField("io")
        return copies[0] == copies[1]

    earlier, _ = listed()
    deadline = time.monotonic() + 30
    while not same(earlier, (now := listed())[0]):
        assert time.monotonic() < deadline
        earlier = now[0]
    resting, pod = now
    for part in ("cpu", "memory", "swap", "writable_layer"):
        assert getattr(resting, part).timestamp == resting.cpu.timestamp > earlier.cpu.timestamp
    assert pod.linux.cpu.timestamp == pod.linux.containers[0].cpu.timestamp == resting.cpu.timestamp
    daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "seq 100000 >/dev/null"]))
    busy, pod = listed()
    assert busy.cpu.usage_core_nano_seconds.value > resting.cpu.usage_core_nano_seconds.value
    assert busy.cpu.usage_nano_cores.value > 0
    assert pod.linux.cpu.usage_core_nano_seconds.value >= busy.cpu.usage_core_nano_seconds.value
    update(daemon, container, memory_limit_in_bytes=128 * MIB)
    changed, pod = listed()
    assert changed.memory.available_bytes.value == 128 * MIB - changed.memory.working_set_bytes.value
    assert pod.linux.containers[0].memory.available_bytes == changed.memory.available_bytes


def test_what_a_container_used_stays_with_its_pod(daemon: Daemon) -> None:
    container = run(daemon)
    runtime = daemon.runtime
    work = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "seq 100000 >/dev/null"])

    def of_pod() -> pb.LinuxPodSandboxStats:
        (pod,) = runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
        alone: pb.LinuxPodSandboxStats
        alone = runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod.attributes.id)).stats.linux
        return alone

    before = of_pod().cpu.usage_core_nano_seconds.value
    runtime.ExecSync(work)
    alive = of_pod()
    used = alive.containers[0].cpu.usage_core_nano_seconds.value
    assert alive.cpu.usage_core_nano_seconds.value >= before + used // 2
    runtime.StopContainer(pb.StopContainerRequest(container_id=container))
    ended = of_pod()
    assert ended.cpu.usage_core_nano_seconds.value >= alive.cpu.usage_core_nano_seconds.value
    (left,) = ended.containers
    assert left.HasField("writable_layer")
    assert not any(left.HasField(part) for part in ("cpu", "memory", "swap")), left
    runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert of_pod().cpu.usage_core_nano_seconds.value >= alive.cpu.usage_core_nano_seconds.value


def test_a_limit_that_the_kernel_refuses_is_the_requests_fault(daemon: Daemon) -> None:
    container = run(daemon)
    for given in ({"cpuset_cpus": "4000"}, {"cpuset_mems": "900"}):
        with pytest.raises(grpc.RpcError) as caught:
            update(daemon, container, **given)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (key,) = given
        assert f"linux.resources.cpu.{key.removeprefix('cpuset_')}" in caught.value.details()
    daemon.remove_pods()
    with pytest.raises(grpc.RpcError) as caught:
        run(daemon, cpuset_cpus="4000")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_refused_update_changes_nothing(daemon: Daemon) -> None:
    container = run(daemon, cpu_shares=100, cpuset_cpus="0", cpuset_mems="0", memory_limit_in_bytes=64 * MIB)
    before = told(daemon, container)
    names = (("cpuset", "cpuset.cpus"), ("cpu", "cpu.shares"), ("memory", "memory.limit_in_bytes"))
    if cgroup.mode() == "v2":
        names = (("", "cpuset.cpus"), ("", "cpu.weight"), ("", "memory.max"))
    files = [value(*name[:1], container, name[1]) for name in names]
    for wrong in ({"cpuset_mems": "900"}, {"memory_limit_in_bytes": 1}, {"unified": {"memory.no": "1"}}):
        with pytest.raises(grpc.RpcError):
            update(daemon, container, **{"cpu_shares": 500, "cpuset_cpus": "0-1", **wrong})
        assert [value(*name[:1], container, name[1]) for name in names] == files
    assert told(daemon, container) == before


@on_v2
def test_pressure_is_told(daemon: Daemon) -> None:
    run(daemon)
    (pod,) = daemon.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
    for usage in (pod.linux, pod.linux.containers[0]):
        for resource in (usage.cpu, usage.memory, usage.io):
            assert resource.psi.HasField("Some")
            assert resource.psi.Some.Avg10 >= 0

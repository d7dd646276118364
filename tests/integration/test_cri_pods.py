"""Pods and containers over CRI: a whole life, repetition, what hangs, what crashes, what is told of it."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import oci_image
import pytest
import test_images
from cri_daemon import Daemon, private_daemon
from cri_servers import SLOWNESS
from local_registry import LocalRegistry

from sampan.cri import api_pb2 as pb
from sampan.cri.api_pb2_grpc import RuntimeServiceStub
from sampan.cri.commands import OUTPUT_LIMIT
from sampan.cri.server import POOLS

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("registry") / "data") as server:
        oci_image.push(test_images.busybox_image(Path("/bin/busybox")), server.address, "demo/busybox", "1")
        yield server


@pytest.fixture(scope="module")
def shared(registry: LocalRegistry) -> Iterator[Daemon]:
    with private_daemon("sampancri1", "10.89.73.0/24") as daemon:
        daemon.start()
        daemon.images.PullImage(pb.PullImageRequest(image=image(registry)))
        yield daemon


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    if shared.process is None:
        shared.start()
    yield shared
    shared.remove_pods()


def image(registry: LocalRegistry) -> pb.ImageSpec:
    return pb.ImageSpec(image=f"{registry.host}/demo/busybox:1")


def pod_config(daemon: Daemon, name: str = "web", attempt: int = 0) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default", attempt=attempt),
        log_directory=str(daemon.folder / "logs" / name),
        labels={"app": name},
        linux=pb.LinuxPodSandboxConfig(),
    )


def run_pod(daemon: Daemon, config: pb.PodSandboxConfig) -> str:
    answer = daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
    return str(answer.pod_sandbox_id)


def create(daemon: Daemon, registry: LocalRegistry, pod: str, command: str, name: str = "main", **more: Any) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=image(registry),
        command=["/bin/sh", "-c", command],
        log_path=f"{name}.log",
        **more,
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return str(daemon.runtime.CreateContainer(request).container_id)


def start(daemon: Daemon, container: str) -> None:
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))


def status(daemon: Daemon, container: str) -> pb.ContainerStatus:
    answer = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container))
    found: pb.ContainerStatus = answer.status
    return found


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """For what only polling can see: a log line written by another process."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def exited(daemon: Daemon, container: str) -> pb.ContainerStatus:
    until(lambda: status(daemon, container).state == pb.CONTAINER_EXITED)
    return status(daemon, container)


def test_a_whole_life(daemon: Daemon, registry: LocalRegistry) -> None:
    runtime = daemon.runtime
    config = pod_config(daemon)
    pod = run_pod(daemon, config)
    told = runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    assert told.status.state == pb.SANDBOX_READY
    assert told.status.network.ip.startswith("10.89.73.")
    assert told.status.metadata == config.metadata
    assert {each["type"] for each in json.loads(told.info["info"])["runtimeSpec"]["linux"]["namespaces"]} >= {"network"}

    limits = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=20_000, memory_limit_in_bytes=64 << 20)
    linux = pb.LinuxContainerConfig(resources=limits)
    container = create(
        daemon,
        registry,
        pod,
        "echo out; echo err >&2; exec sleep 1000",
        linux=linux,
        envs=[pb.KeyValue(key="A", value="b")],
    )
    assert status(daemon, container).state == pb.CONTAINER_CREATED
    start(daemon, container)
    running = status(daemon, container)
    assert running.state == pb.CONTAINER_RUNNING
    assert running.created_at <= running.started_at <= time.time_ns()
    assert running.resources.linux == limits
    assert running.user.linux.uid == 0
    assert running.stop_signal == pb.SIGTERM
    assert running.image_ref.startswith(f"{registry.host}/demo/busybox@sha256:")
    verbose = runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container, verbose=True))
    info = json.loads(verbose.info["info"])
    assert os.path.exists(f"/proc/{info['pid']}")
    assert "A=b" in info["runtimeSpec"]["process"]["env"]

    log = Path(running.log_path)
    until(lambda: len(log.read_text().splitlines()) == 2)
    assert {line.split(" ", 3)[1:][0]: line.split(" ", 3)[3] for line in log.read_text().splitlines()} == {
        "stdout": "out",
        "stderr": "err",
    }

    done = runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "echo $A; echo e >&2; exit 3"]))
    assert (done.stdout, done.stderr, done.exit_code) == (b"b\n", b"e\n", 3)

    usage = runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    assert usage.attributes.metadata.name == "main"
    assert usage.memory.working_set_bytes.value > 0
    assert usage.cpu.usage_core_nano_seconds.value > 0
    sums = runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats
    assert sums.linux.network.default_interface.name == "eth0"
    assert [each.attributes.id for each in sums.linux.containers] == [container]

    more = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    runtime.UpdateContainerResources(pb.UpdateContainerResourcesRequest(container_id=container, linux=more))
    assert status(daemon, container).resources.linux.memory_limit_in_bytes == 96 << 20

    log.rename(log.with_suffix(".1"))
    runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    assert log.exists()

    runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    ended = status(daemon, container)
    assert (ended.state, ended.exit_code, ended.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert ended.finished_at >= ended.started_at
    runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state == pb.SANDBOX_NOTREADY
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    with pytest.raises(grpc.RpcError) as caught:
        runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_repeated_request_gets_the_same_object(daemon: Daemon, registry: LocalRegistry) -> None:
    config = pod_config(daemon)
    with ThreadPoolExecutor(8) as pool:
        pods = set(pool.map(lambda _: run_pod(daemon, config), range(8)))
        assert len(pods) == 1
        pod = pods.pop()
        containers = set(pool.map(lambda _: create(daemon, registry, pod, "true"), range(8)))
    assert len(containers) == 1
    assert len(daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items) == 1
    assert run_pod(daemon, pod_config(daemon, attempt=1)) != pod


def test_commands_that_nobody_waits_for_any_more_end_and_hold_up_nothing(
    daemon: Daemon, registry: LocalRegistry
) -> None:
    container = create(daemon, registry, run_pod(daemon, pod_config(daemon)), "exec sleep 1000")
    start(daemon, container)
    runtime = daemon.runtime
    request = pb.ExecSyncRequest(container_id=container, cmd=["sleep", "1000"])
    calls = [runtime.ExecSync.future(request) for _ in range(POOLS["exec"])]

    def processes() -> int:
        (stats,) = runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
        return int(stats.linux.process.process_count.value)

    until(lambda: processes() == 1 + len(calls), 60 * SLOWNESS)
    for call in calls:
        call.cancel()
    done = runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["echo", "hello"], timeout=20))
    assert done.stdout == b"hello\n"
    until(lambda: processes() == 1, 20 * SLOWNESS)
    with pytest.raises(grpc.RpcError) as late:
        runtime.ExecSync(request, timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: processes() == 1, 20 * SLOWNESS)


def test_filters_and_pieces(daemon: Daemon, registry: LocalRegistry) -> None:
    runtime = daemon.runtime
    first, second = run_pod(daemon, pod_config(daemon, "a")), run_pod(daemon, pod_config(daemon, "b"))
    runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=second))
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    for wanted, found in (
        (pb.PodSandboxFilter(), {first, second}),
        (pb.PodSandboxFilter(state=ready), {first}),
        (pb.PodSandboxFilter(label_selector={"app": "b"}), {second}),
        (pb.PodSandboxFilter(label_selector={"app": "b"}, state=ready), set()),
        (pb.PodSandboxFilter(id=first[:12]), {first}),
        (pb.PodSandboxFilter(id="f" * 64), set()),
    ):
        listed = runtime.ListPodSandbox(pb.ListPodSandboxRequest(filter=wanted)).items
        assert {pod.id for pod in listed} == found
        streamed = runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest(filter=wanted))
        assert [pod for piece in streamed for pod in piece.pod_sandboxes] == list(listed)
    container = create(daemon, registry, first, "sleep 1000")
    start(daemon, container)
    for call, request, field in (
        ("StreamContainers", pb.StreamContainersRequest(), "containers"),
        ("StreamContainerStats", pb.StreamContainerStatsRequest(), "container_stats"),
        ("StreamPodSandboxStats", pb.StreamPodSandboxStatsRequest(), "pod_sandbox_stats"),
        ("StreamPodSandboxMetrics", pb.StreamPodSandboxMetricsRequest(), "pod_sandbox_metrics"),
    ):
        pieces: list[Any] = list(getattr(runtime, call)(request))
        assert len([each for piece in pieces for each in getattr(piece, field)]) == 1, call
    images = list(daemon.images.StreamImages(pb.StreamImagesRequest()))
    assert len(images[0].images) == 1


def test_samples_fit_their_descriptors(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    start(daemon, create(daemon, registry, pod, "sleep 1000"))
    described = daemon.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest()).descriptors
    keys = {each.name: len(each.label_keys) for each in described}
    (answer,) = daemon.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest()).pod_metrics
    samples = [*answer.metrics, *(each for one in answer.container_metrics for each in one.metrics)]
    assert samples
    assert all(len(each.label_values) == keys[each.name] for each in samples)
    assert {each.name for each in samples} >= {
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
    }
    values = {each.name: each.value.value for each in samples}
    assert values["container_processes"] == values["container_threads"] == 1
    assert values["container_file_descriptors"] >= 3
    assert values["container_ulimits_soft"] > 0
    assert values["container_fs_inodes_total"] >= values["container_fs_inodes_free"]


#: What a kubelet's /metrics/cadvisor tells of containers (cAdvisor's kinds cpu, memory, cpuLoad, diskIO, network,
#: process, oom_event and pressure, which the kubelet turns on; docs/storage/prometheus.md of cAdvisor).
CADVISOR = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_load_average_10s cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors
fs_inodes_free fs_inodes_total fs_io_current fs_io_time_seconds_total fs_io_time_weighted_seconds_total fs_limit_bytes
fs_read_seconds_total fs_reads_bytes_total fs_reads_merged_total fs_reads_total fs_sector_reads_total
fs_sector_writes_total fs_usage_bytes fs_write_seconds_total fs_writes_bytes_total fs_writes_merged_total
fs_writes_total last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
memory_max_usage_bytes memory_rss memory_swap memory_total_active_file_bytes memory_total_inactive_file_bytes
memory_usage_bytes memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total
network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes
sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
spec_memory_swap_limit_bytes start_time_seconds tasks_state threads threads_max ulimits_soft
""".split()


def test_every_metric_of_a_kubelets_cadvisor_is_described(daemon: Daemon) -> None:
    described = daemon.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest()).descriptors
    assert {each.name.removeprefix("container_") for each in described} == set(CADVISOR)


def test_what_hangs_hides_nothing(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    container = create(daemon, registry, pod, "trap '' TERM; while :; do sleep 1; done")
    start(daemon, container)
    runtime = daemon.runtime
    hung = [
        runtime.ExecSync.future(pb.ExecSyncRequest(container_id=container, cmd=["sleep", "1000"])) for _ in range(24)
    ]
    stopping = runtime.StopContainer.future(pb.StopContainerRequest(container_id=container, timeout=1000))
    began = time.monotonic()
    assert runtime.ListContainers(pb.ListContainersRequest()).containers[0].state == pb.CONTAINER_RUNNING
    assert status(daemon, container).state == pb.CONTAINER_RUNNING
    other = run_pod(daemon, pod_config(daemon, "other"))
    assert time.monotonic() - began < 5
    # A second stop with less patience is not held up by the first.
    runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    stopping.result(timeout=10)
    # Each command was ended with its container, or its call was.
    for call in hung:
        assert isinstance(call.exception(timeout=10), grpc.RpcError) or call.result().exit_code == 137
    assert other


def test_an_exec_that_is_too_slow_is_ended(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    container = create(daemon, registry, pod, "sleep 1000")
    start(daemon, container)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.ExecSync(
            pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "sleep 777 & sleep 777"], timeout=1)
        )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    left = daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["ps"])).stdout.decode()
    assert "sleep 777" not in left


def test_a_memory_limit_under_usage_is_refused(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    command = "x=$(head -c 20000000 /dev/zero | tr '\\0' a); echo ready; sleep 1000; echo ${#x}"
    container = create(daemon, registry, pod, command)
    start(daemon, container)
    log = Path(status(daemon, container).log_path)
    until(lambda: "ready" in log.read_text())
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=8 << 20)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id=container, linux=wanted)
        )
    assert "memory" in caught.value.details()
    told = status(daemon, container)
    assert (told.state, told.resources.linux.memory_limit_in_bytes) == (pb.CONTAINER_RUNNING, 0)


def test_exec_output_is_cut_to_what_a_kubelet_takes(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    container = create(daemon, registry, pod, "sleep 1000")
    start(daemon, container)
    with grpc.insecure_channel(daemon.endpoint, options=[("grpc.max_receive_message_length", 16 << 20)]) as channel:
        runtime = RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]

        def run(command: str) -> pb.ExecSyncResponse:
            done: pb.ExecSyncResponse = runtime.ExecSync(
                pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", f"{command}; exit 5"])
            )
            assert done.exit_code == 5
            return done

        done = run("head -c 20000000 /dev/zero; echo end >&2")
        assert (len(done.stdout), done.stderr) == (OUTPUT_LIMIT - 4, b"end\n")
        done = run("echo start; head -c 20000000 /dev/zero >&2")
        assert (done.stdout, len(done.stderr)) == (b"start\n", OUTPUT_LIMIT - 6)
        done = run("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2")
        assert (len(done.stdout), len(done.stderr)) == (OUTPUT_LIMIT // 2, OUTPUT_LIMIT // 2)


def test_events_come_in_sequence(daemon: Daemon, registry: LocalRegistry) -> None:
    stream = daemon.runtime.GetContainerEvents(pb.GetEventsRequest())
    stream.initial_metadata()  # the subscription stands
    found: list[tuple[str, int]] = []

    def read() -> None:
        try:
            found.extend((event.container_id, event.container_event_type) for event in stream)
        except grpc.RpcError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    pod = run_pod(daemon, pod_config(daemon))
    container = create(daemon, registry, pod, "exit 4")
    start(daemon, container)
    exited(daemon, container)
    daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    wanted = [
        (pod, pb.CONTAINER_CREATED_EVENT),
        (pod, pb.CONTAINER_STARTED_EVENT),
        (container, pb.CONTAINER_CREATED_EVENT),
        (container, pb.CONTAINER_STARTED_EVENT),
        (container, pb.CONTAINER_STOPPED_EVENT),
        (pod, pb.CONTAINER_STOPPED_EVENT),
        (container, pb.CONTAINER_DELETED_EVENT),
        (pod, pb.CONTAINER_DELETED_EVENT),
    ]
    until(lambda: len(found) >= len(wanted))
    stream.cancel()
    reader.join(timeout=10)
    assert found == wanted


def test_a_kill_of_the_daemon_loses_nothing(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    lives = create(daemon, registry, pod, "sleep 1000", "lives")
    ends = create(daemon, registry, pod, "sleep 1000", "ends")
    waits = create(daemon, registry, pod, "sleep 1000", "waits")
    for container in (lives, ends):
        start(daemon, container)
    verbose = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=ends, verbose=True))
    pid = json.loads(verbose.info["info"])["pid"]
    daemon.kill()
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    daemon.start()
    assert status(daemon, lives).state == pb.CONTAINER_RUNNING
    assert exited(daemon, ends).exit_code == 137
    assert status(daemon, waits).state == pb.CONTAINER_CREATED
    start(daemon, waits)
    assert status(daemon, waits).state == pb.CONTAINER_RUNNING
    done = daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=lives, cmd=["echo", "here"]))
    assert done.stdout == b"here\n"
    os.close(pidfd)


def test_a_container_that_cannot_be_made_leaves_its_name_free(daemon: Daemon, registry: LocalRegistry) -> None:
    pod = run_pod(daemon, pod_config(daemon))
    with pytest.raises(grpc.RpcError) as caught:
        create(daemon, registry, pod, "true", mounts=[pb.Mount(container_path="/a", host_path="b")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("config.mounts[0].host_path: ")
    missing = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"), image=image(registry), command=["/no/such/program"]
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=missing)

    def attempt() -> None:
        start(daemon, daemon.runtime.CreateContainer(request).container_id)

    with pytest.raises(grpc.RpcError) as caught:
        attempt()
    assert "no such" in caught.value.details().lower()
    for each in daemon.runtime.ListContainers(pb.ListContainersRequest()).containers:
        daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=each.id))
    start(daemon, create(daemon, registry, pod, "true"))

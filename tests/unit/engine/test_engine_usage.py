"""Figures of a pod: its own cgroup's or the sums of its containers', and its interfaces'."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from sampan.cgroup.usage import Usage
from sampan.engine.interfaces import _parse_net_dev
from sampan.engine.model import ContainerRecord, ContainerSpec, Metadata, PodRecord, PodSpec
from sampan.engine.pods import own_group
from sampan.engine.stats import ContainerStats, InterfaceStats
from sampan.engine.usage import PodReading, pod_stats, read_containers
from sampan.errors import StageFailed

_TABLE = b"""Inter-|   Receive                    |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes and so on
    lo:      84       1    0    0    0     0          0         0  84  1    0    0    0     0       0          0
  eth0:18446744073709551615   7    1    2    3     4       5 6  70  5    8    9    0     0       0     0
"""

_POD = PodRecord(id="pod", spec=PodSpec(metadata=Metadata("pod")), handler="", created_at=0, cgroup_path="/pod")


def test_interfaces_without_the_loopback() -> None:
    most = (1 << 64) - 1
    assert list(_parse_net_dev(_TABLE)) == [InterfaceStats("eth0", most, 7, 1, 2, 70, 5, 8, 9)]
    assert list(_parse_net_dev(b"Inter-|\n face |\n")) == []


def test_a_pod_uses_what_its_containers_use() -> None:
    one = ContainerStats(id="1", timestamp=1, cpu_usage_ns=1, cpu_nano_cores=10, memory_usage=100, pids=1)
    two = ContainerStats(
        id="2", timestamp=1, cpu_usage_ns=2, memory_usage=200, memory_rss=3, page_faults=4, major_page_faults=5
    )
    stats = pod_stats(7, PodReading(_POD, (), (), None, None), (one, two))
    assert stats.timestamp == 7
    assert (stats.cpu_usage_ns, stats.cpu_nano_cores, stats.memory_usage, stats.memory_rss) == (3, 10, 300, 3)
    assert (stats.page_faults, stats.major_page_faults, stats.pids, stats.pressure) == (4, 5, 1, {})
    assert stats.containers == (one, two)


def test_a_pod_uses_what_its_own_group_says() -> None:
    one = ContainerStats(id="1", timestamp=1, cpu_usage_ns=1, pids=1)
    usage = Usage(5, 400, 100, 30, 0, (6, 7), 2, {"cpu": {}})
    stats = pod_stats(7, PodReading(_POD, (), (), usage, 11), (one,))
    assert (stats.cpu_usage_ns, stats.cpu_nano_cores, stats.memory_usage, stats.memory_working_set) == (5, 11, 400, 300)
    assert (stats.page_faults, stats.major_page_faults, stats.pids, stats.pressure) == (6, 7, 1, {"cpu": {}})


@pytest.mark.parametrize(
    ("driver", "parent", "path", "group"),
    [
        ("cgroupfs", "", "/sampan/k8s.io/pod", "/sampan/k8s.io/pod"),
        ("cgroupfs", "/kubepods/pod1", "/kubepods/pod1", "/kubepods/pod1"),
        ("cgroupfs", "/", "/", ""),
        ("systemd", "", "system.slice", ""),
        ("systemd", "kubepods-pod1.slice", "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        ("systemd", "/k.slice/k-pod1.slice", "/k.slice/k-pod1.slice", "/k.slice/k-pod1.slice"),
        ("systemd", "-", "-", ""),
    ],
)
def test_the_group_that_is_a_pods_own(driver: str, parent: str, path: str, group: str) -> None:
    spec = PodSpec(metadata=Metadata("pod"), cgroup_parent=parent)
    assert own_group(driver, PodRecord(id="pod", spec=spec, handler="", created_at=0, cgroup_path=path)) == group


def test_a_pod_without_containers_uses_nothing() -> None:
    stats = pod_stats(7, PodReading(_POD, (), (), None, None), ())
    assert (stats.cpu_usage_ns, stats.cpu_nano_cores, stats.memory_usage, stats.pids) == (0, None, 0, 0)


def test_what_has_just_ended_is_passed_over_and_what_cannot_be_read_is_told() -> None:
    container = ContainerSpec(metadata=Metadata("one"), image="")
    record = ContainerRecord(id="one", pod_id="pod", spec=container, created_at=0, state="running", cgroup_path="/g")

    def said(number: int) -> Any:
        return SimpleNamespace(readings=SimpleNamespace(take=lambda *_, **__: (7, [OSError(number, "so")])))

    for gone in (errno.ENOENT, errno.ENODEV):
        assert read_containers(said(gone), [record]) == (7, [])
    with pytest.raises(StageFailed, match="/g"):
        read_containers(said(errno.EMFILE), [record])

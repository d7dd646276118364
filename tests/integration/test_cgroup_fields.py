"""Every field of ``linux.resources``: the kernel holds what was asked for, or an error names the field."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.cgroup import Group, mode, open_group
from sampan.cgroup.hierarchy import read_file
from sampan.errors import SampanError

pytestmark = pytest.mark.root

#: A device that limits of i/o can be of.
DISK = next((p.read_text().strip() for p in sorted(Path("/sys/block").glob("*/dev"))), "7:0")
MAJOR, MINOR = (int(number) for number in DISK.split(":"))


@pytest.fixture
def group() -> Iterator[Group]:
    made = open_group(f"/sampan-test-fields-{os.getpid()}/one")
    made.create()
    yield made
    made.remove()


def _device(**more: int) -> list[dict[str, int]]:
    return [{"major": MAJOR, "minor": MINOR, **more}]


#: Field, resources that use it (with those fields that it needs), where it is then found: of v1 controller and file,
#: of v2 file, each with the content. Without a place the field can only be refused.
FIELDS: list[tuple[str, dict[str, Any], tuple[str, str, str], tuple[str, str]]] = [
    ("cpu.shares", {"cpu": {"shares": 512}}, ("cpu", "cpu.shares", "512"), ("cpu.weight", "59")),
    ("cpu.quota", {"cpu": {"quota": 5000}}, ("cpu", "cpu.cfs_quota_us", "5000"), ("cpu.max", "5000 100000")),
    ("cpu.period", {"cpu": {"period": 50000}}, ("cpu", "cpu.cfs_period_us", "50000"), ("cpu.max", "max 50000")),
    (
        "cpu.burst",
        {"cpu": {"quota": 5000, "burst": 1000}},
        ("cpu", "cpu.cfs_burst_us", "1000"),
        ("cpu.max.burst", "1000"),
    ),
    ("cpu.realtimeRuntime", {"cpu": {"realtimeRuntime": 100}}, ("cpu", "cpu.rt_runtime_us", "100"), ("", "")),
    ("cpu.realtimePeriod", {"cpu": {"realtimePeriod": 500000}}, ("cpu", "cpu.rt_period_us", "500000"), ("", "")),
    ("cpu.cpus", {"cpu": {"cpus": "0"}}, ("cpuset", "cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    ("cpu.mems", {"cpu": {"mems": "0"}}, ("cpuset", "cpuset.mems", "0"), ("cpuset.mems", "0")),
    ("cpu.idle", {"cpu": {"idle": 1}}, ("cpu", "cpu.idle", "1"), ("cpu.idle", "1")),
    (
        "memory.limit",
        {"memory": {"limit": 64 << 20}},
        ("memory", "memory.limit_in_bytes", str(64 << 20)),
        ("memory.max", str(64 << 20)),
    ),
    (
        "memory.reservation",
        {"memory": {"reservation": 32 << 20}},
        ("memory", "memory.soft_limit_in_bytes", str(32 << 20)),
        ("memory.low", str(32 << 20)),
    ),
    (
        "memory.swap",
        {"memory": {"limit": 64 << 20, "swap": 96 << 20}},
        ("memory", "memory.memsw.limit_in_bytes", str(96 << 20)),
        ("memory.swap.max", str(32 << 20)),
    ),
    (
        "memory.kernel",
        {"memory": {"kernel": 32 << 20}},
        ("memory", "memory.kmem.limit_in_bytes", str(32 << 20)),
        ("", ""),
    ),
    (
        "memory.kernelTCP",
        {"memory": {"kernelTCP": 32 << 20}},
        ("memory", "memory.kmem.tcp.limit_in_bytes", str(32 << 20)),
        ("", ""),
    ),
    ("memory.swappiness", {"memory": {"swappiness": 7}}, ("memory", "memory.swappiness", "7"), ("", "")),
    (
        "memory.disableOOMKiller",
        {"memory": {"disableOOMKiller": True}},
        ("memory", "memory.oom_control", "oom_kill_disable 1"),
        ("", ""),
    ),
    ("memory.useHierarchy", {"memory": {"useHierarchy": False}}, ("memory", "memory.use_hierarchy", "0"), ("", "")),
    ("pids.limit", {"pids": {"limit": 20}}, ("pids", "pids.max", "20"), ("pids.max", "20")),
    ("blockIO.weight", {"blockIO": {"weight": 500}}, ("blkio", "blkio.bfq.weight", "500"), ("io.weight", "4950")),
    ("blockIO.leafWeight", {"blockIO": {"leafWeight": 500}}, ("blkio", "blkio.leaf_weight", "500"), ("", "")),
    (
        "blockIO.weightDevice",
        {"blockIO": {"weightDevice": _device(weight=500)}},
        ("blkio", "blkio.bfq.weight_device", f"{DISK} 500"),
        ("io.bfq.weight", f"{DISK} 500"),
    ),
    (
        "blockIO.weightDevice",
        {"blockIO": {"weightDevice": _device(leafWeight=500)}},
        ("blkio", "blkio.leaf_weight_device", f"{DISK} 500"),
        ("", ""),
    ),
    *(
        (
            f"blockIO.throttle{name}Device",
            {"blockIO": {f"throttle{name}Device": _device(rate=65536)}},
            ("blkio", f"blkio.throttle.{v1}_device", f"{DISK} 65536"),
            ("io.max", f"{v2}=65536"),
        )
        for name, v1, v2 in (
            ("ReadBps", "read_bps", "rbps"),
            ("WriteBps", "write_bps", "wbps"),
            ("ReadIOPS", "read_iops", "riops"),
            ("WriteIOPS", "write_iops", "wiops"),
        )
    ),
    (
        "hugepageLimits[2MB]",
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", str(4 << 20)),
        ("hugetlb.2MB.max", str(4 << 20)),
    ),
    ("network", {"network": {"classID": 4242}}, ("net_cls", "net_cls.classid", "4242"), ("", "")),
    (
        "network",
        {"network": {"priorities": [{"name": "lo", "priority": 3}]}},
        ("net_prio", "net_prio.ifpriomap", "lo 3"),
        ("", ""),
    ),
    ("rdma[mlx5_0]", {"rdma": {"mlx5_0": {"hcaHandles": 3}}}, ("rdma", "rdma.max", "hca_handle=3"), ("rdma.max", "=3")),
    ("unified", {"unified": {"pids.max": "21"}}, ("", "pids.max", "21"), ("pids.max", "21")),
]


@pytest.mark.parametrize(("field", "resources", "v1", "v2"), FIELDS)
def test_a_field_is_held_or_refused_by_its_name(
    group: Group, field: str, resources: dict[str, Any], v1: tuple[str, str, str], v2: tuple[str, str]
) -> None:
    refused = ""
    try:
        group.set(resources)
    except SampanError as error:
        refused = str(error)
    if refused:
        assert f"linux.resources.{field}" in refused
        return
    paths = group.paths()
    if mode() == "v2":
        name, content = v2
        directory = paths[""]
    else:
        controller, name, content = v1
        # A hybrid machine may have this one controller in its unified hierarchy.
        directory = paths.get(controller, paths.get("", ""))
        if controller == "hugetlb" and controller not in paths:
            name, content = v2
    assert name, f"{field} has been taken, and nothing holds it"
    assert content in read_file(f"{directory}/{name}")


def test_what_was_set_is_taken_back(group: Group) -> None:
    group.set({"pids": {"limit": 20}})
    group.set({"pids": {"limit": -1}})
    if mode() == "v2":
        assert read_file(f"{group.paths()['']}/pids.max") == "max\n"
        return
    assert read_file(f"{group.paths()['pids']}/pids.max") == "max\n"
    group.set({"memory": {"disableOOMKiller": True}})
    group.set({"memory": {"disableOOMKiller": False, "useHierarchy": True, "kernel": -1}})
    assert read_file(f"{group.paths()['memory']}/memory.oom_control").startswith("oom_kill_disable 0\n")

"""What needs no kernel: the mount table, paths, device rules, translations of limits and statistics."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.cgroup import devices, v2_limits, v2_stats
from sampan.cgroup.hierarchy import check_path, parse_mountinfo, parse_proc_cgroup
from sampan.cgroup.v1_stats import parse_list
from sampan.errors import InvalidInput, Unsupported

V1 = "40 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "42 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
NAMED = "43 30 0:34 / /sys/fs/a\\040b rw shared:3 - cgroup none rw,xattr,name=systemd\n"


def test_layouts() -> None:
    both = parse_mountinfo(V1 + V2 + NAMED)
    assert both.mode == "hybrid"
    assert both.controllers == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "name=systemd": "/sys/fs/a b",
    }
    assert parse_mountinfo(V1).mode == "v1"
    assert parse_mountinfo(V2).mode == "v2"
    assert parse_mountinfo(V2 + V2.replace("unified", "other")).unified == "/sys/fs/cgroup/unified"


def test_own_groups() -> None:
    assert parse_proc_cgroup("4:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/d\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/b:c",
        "": "/d",
    }


@pytest.mark.parametrize(("path", "clean"), [("/a//b/", "/a/b"), ("//a", "/a"), ("/a/./b", "/a/b"), ("a/b", "a/b")])
def test_paths(path: str, clean: str) -> None:
    assert check_path(path) == clean


@given(st.text(alphabet="a./\n\0", max_size=12))
def test_no_path_leads_out(path: str) -> None:
    try:
        clean = check_path(path)
    except InvalidInput:
        return
    assert ".." not in clean.split("/")
    assert clean.startswith("/") == path.startswith("/")


def lines(*rules: dict[str, Any]) -> list[str]:
    policy = devices.reduce(devices.parse(list(rules), defaults=False))
    return [f"{name.removeprefix('devices.')} {text}" for name, text in policy.writes()]


DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"type": "c", "major": 1, "minor": 3}


def test_device_rules_boil_down() -> None:
    assert lines() == ["deny a"]
    assert lines({"allow": True}) == ["allow a"]
    assert lines(DENY_ALL, {"allow": True, **NULL, "access": "r"}, {"allow": True, **NULL, "access": "w"}) == [
        "deny a",
        "allow c 1:3 rw",
    ]
    assert lines({"allow": True}, {"allow": False, **NULL}) == ["allow a", "deny c 1:3 rwm"]
    assert lines(DENY_ALL, {"allow": True, **NULL}, {"allow": False, **NULL, "access": "w"}) == [
        "deny a",
        "allow c 1:3 rm",
    ]
    assert lines({"allow": True, **NULL}, DENY_ALL) == ["deny a"]
    assert lines({"allow": True, **NULL}, {"allow": False, "type": "c"}) == ["deny a"]
    with pytest.raises(Unsupported, match="takes back a part"):
        lines({"allow": True, "type": "c"}, {"allow": False, **NULL})


@pytest.mark.parametrize(
    "rule", [{"type": "x"}, {"access": "rx"}, {"type": "c", "major": -2}, {"type": "c", "minor": "1"}]
)
def test_wrong_device_rules_name_their_field(rule: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"linux\.resources\.devices\[0\]"):
        devices.parse([rule])


def test_shares_become_weights_with_the_defaults_and_ends_in_place() -> None:
    assert [v2_limits.weight_of_shares(shares) for shares in (0, 2, 1024, 262144, 10**9)] == [1, 1, 100, 10000, 10000]
    weights = [v2_limits.weight_of_shares(shares) for shares in range(2, 5000)]
    assert weights == sorted(weights)


def test_limits_of_v2(tmp_path: Path) -> None:
    names = "cpu.max cpu.weight cpuset.cpus memory.max memory.low memory.swap.max pids.max io.weight io.max memory.high"
    for name in names.split():
        (tmp_path / name).write_text("")
    v2_limits.apply(
        str(tmp_path),
        {
            "cpu": {"shares": 1024, "quota": 5000, "period": 10000, "cpus": "0"},
            "memory": {"limit": 100, "swap": 150, "reservation": 50},
            "pids": {"limit": -1},
            "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
            "unified": {"memory.high": "77"},
        },
    )
    assert {name: (tmp_path / name).read_text() for name in names.split()} == {
        "cpu.max": "5000 10000",
        "cpu.weight": "100",
        "cpuset.cpus": "0",
        "memory.max": "100",
        "memory.low": "50",
        "memory.swap.max": "50",
        "pids.max": "max",
        "io.weight": "4950",
        "io.max": "8:0 rbps=1000",
        "memory.high": "77",
    }


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"swap": 100}},
        {"memory": {"limit": 100, "swap": 50}},
        {"memory": {"kernelTCP": 1}},
        {"cpu": {"realtimeRuntime": 1}},
        {"network": {"classID": 1}},
        {"unified": {"../cgroup.procs": "1"}},
        {"unified": {"cgroup.kill": "1"}},
        {"unified": {"memory.high": "1"}},
        {"pids": {"limit": 1}},
    ],
)
def test_what_v2_cannot_hold_is_refused(resources: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, Unsupported), match=r"linux\.resources\."):
        v2_limits.apply(str(tmp_path), resources)


def test_statistics_of_v2(tmp_path: Path) -> None:
    for name, text in {
        "cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 4\nnr_throttled 1\nthrottled_usec 5\n",
        "cpu.pressure": "some avg10=0.50 avg60=0.00 avg300=0.00 total=77\n",
        "cpuset.cpus.effective": "0-1,3\n",
        "memory.stat": "anon 5\nfile 7\n",
        "memory.current": "12\n",
        "memory.max": "max\n",
        "memory.swap.current": "3\n",
        "memory.events": "max 9\noom_kill 2\n",
        "pids.current": "6\n",
        "pids.max": "max\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    }.items():
        (tmp_path / name).write_text(text)
    stats = v2_stats.gather(str(tmp_path))
    assert stats["cpu"]["usage"] == {"total": 30000, "kernel": 20000, "user": 10000}
    assert stats["cpu"]["throttling"] == {"periods": 4, "throttledPeriods": 1, "throttledTime": 5000}
    assert stats["cpu"]["psi"] == {"some": {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 77}}
    assert stats["cpuset"] == {"cpus": [0, 1, 3]}
    assert stats["memory"]["usage"] == {"limit": 2**64 - 1, "usage": 12, "max": 0, "failcnt": 9}
    assert stats["memory"]["swap"]["usage"] == 15
    assert stats["pids"] == {"current": 6}
    assert stats["blkio"]["ioServiceBytesRecursive"][0] == {"major": 8, "minor": 0, "op": "Read", "value": 1}


def test_lists_of_numbers() -> None:
    assert parse_list("0-2,7\n") == [0, 1, 2, 7]
    assert parse_list("\n") == []

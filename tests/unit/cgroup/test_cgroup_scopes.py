"""Names and limits in systemd's words."""

import pytest

from sampan.cgroup.systemd import SystemdPath, expand_slice
from sampan.cgroup.systemd_properties import allowed_devices, properties
from sampan.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "cgroup"),
    [
        ("a-b.slice:cri:1", "/a.slice/a-b.slice/cri-1.scope"),
        (":cri:1", "/system.slice/cri-1.scope"),
        ("-.slice::1", "/1.scope"),
        ("a.slice:x:y.slice", "/a.slice/y.slice"),
    ],
)
def test_scopes(text: str, cgroup: str) -> None:
    assert SystemdPath(text).cgroup == cgroup


@pytest.mark.parametrize(
    "text", ["", "/a/b", "a:b", "a.slice:b:", "a/b.slice:c:d", "a:b:c:d", "x:b:c", "a--b.slice:c:d"]
)
def test_wrong_scopes(text: str) -> None:
    with pytest.raises(InvalidInput, match="cgroupsPath"):
        SystemdPath(text)


def test_slices() -> None:
    assert expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"


def test_properties() -> None:
    resources = {
        "cpu": {"shares": 1024, "quota": 12345, "period": 100_000, "cpus": "0,8-9"},
        "memory": {"limit": 100, "swap": 150, "reservation": 50},
        "pids": {"limit": -1},
    }
    assert dict(properties(resources, v2=True)) == {
        "CPUWeight": ("t", 100),
        "CPUQuotaPerSecUSec": ("t", 130_000),
        "CPUQuotaPeriodUSec": ("t", 100_000),
        "MemoryMax": ("t", 100),
        "MemoryLow": ("t", 50),
        "MemorySwapMax": ("t", 50),
        "TasksMax": ("t", 2**64 - 1),
        "AllowedCPUs": ("ay", b"\x01\x03"),
    }
    assert dict(properties(resources, v2=False))["CPUShares"] == ("t", 1024)
    assert properties({}, v2=True) == []


def test_properties_of_unified_keys_and_the_idle() -> None:
    unified = {
        "memory.high": "4096",
        "cpu.max": "max 50000",
        "pids.max": "max",
        "cpuset.cpus": "1",
        "io.max": "8:0 rbps=1",
    }
    assert properties({"unified": unified, "cpu": {"idle": 1, "shares": 2}}, v2=True) == [
        ("CPUWeight", ("t", 0)),
        ("MemoryHigh", ("t", 4096)),
        ("CPUQuotaPerSecUSec", ("t", 2**64 - 1)),
        ("CPUQuotaPeriodUSec", ("t", 50_000)),
        ("TasksMax", ("t", 2**64 - 1)),
        ("AllowedCPUs", ("ay", b"\x02")),
    ]
    with pytest.raises(InvalidInput, match=r"linux\.resources\.unified\.memory\.max: '1G' is no number"):
        properties({"unified": {"memory.max": "1G"}}, v2=True)


def test_devices() -> None:
    deny = {"allow": False, "access": "rwm"}
    found = allowed_devices([deny, {"allow": True, "type": "b", "major": 7, "minor": 1, "access": "r"}])
    assert found is not None
    assert {("/dev/block/7:1", "r"), ("/dev/char/1:3", "rwm"), ("char-*", "m"), ("block-*", "m")} <= set(found)
    assert allowed_devices([{"allow": True}]) is None
    # systemd cannot say "all of them but".
    wide, narrow = (
        {"type": "c", "major": 1, "access": "w", **more} for more in ({"allow": True}, {"allow": False, "minor": 3})
    )
    assert allowed_devices([deny, wide, narrow]) is None

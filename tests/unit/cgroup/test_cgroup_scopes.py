"""Names and limits in systemd's words."""

import pytest

from sampan.cgroup.systemd import SystemdPath, expand_slice, properties
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

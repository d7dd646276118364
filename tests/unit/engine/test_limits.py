"""Limits that a kubelet sends to every machine are left out where the machine can't count them."""

from pathlib import Path

import pytest

from sampan.cgroup.hierarchy import Layout
from sampan.engine import limits
from sampan.engine.model import Resources

WANTED = Resources(memory_limit=1 << 30, memory_swap_limit=2 << 30, hugepages={"2MB": 0, "1GB": 0})
COUNTED = {
    "memory": {"limit": 1 << 30, "swap": 2 << 30},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}],
}


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    (tmp_path / "memory").mkdir()
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("\n")
    return tmp_path


def machine(root: Path, *more: str) -> Layout:
    controllers = {name: str(root / name) for name in ("memory", *more)}
    return Layout(controllers, str(root / "unified"))


def test_all_is_limited_where_all_is_counted(v1: Path) -> None:
    (v1 / "memory" / "memory.memsw.limit_in_bytes").touch()
    assert limits.section(WANTED, machine(v1, "hugetlb")) == COUNTED
    (v1 / "unified" / "cgroup.controllers").write_text("hugetlb misc\n")
    assert limits.section(WANTED, machine(v1)) == COUNTED
    assert limits.section(WANTED, Layout({}, str(v1 / "unified"))) == COUNTED


def test_swap_and_huge_pages_are_left_out_where_they_are_not_counted(v1: Path) -> None:
    assert limits.section(WANTED, machine(v1)) == {"memory": {"limit": 1 << 30}}
    (v1 / "unified" / "cgroup.controllers").write_text("cpu memory\n")
    assert limits.section(WANTED, Layout({}, str(v1 / "unified"))) == {"memory": COUNTED["memory"]}


@pytest.mark.parametrize("limit", [1 << 30, -1])
def test_memory_alone_is_limited_together_with_swap(v1: Path, limit: int) -> None:
    (v1 / "memory" / "memory.memsw.limit_in_bytes").touch()
    wanted = Resources(memory_limit=limit)
    assert limits.section(wanted, machine(v1)) == {"memory": {"limit": limit, "swap": limit}}


def test_nothing_is_limited_that_was_not_asked_for(v1: Path) -> None:
    assert limits.section(Resources(), machine(v1)) == {}

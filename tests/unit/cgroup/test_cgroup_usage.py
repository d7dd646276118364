"""Figures of usage from the files of a group, as the two versions of cgroups have them."""

import os
from pathlib import Path

import pytest

from sampan.cgroup import usage
from sampan.cgroup.usage import MeterV1, MeterV2, Pressure

_V1 = """cache 1
rss 2
total_cache 3
total_rss 4
total_rss_huge 5
total_pgpgin 6
total_pgfault 7
total_pgmajfault 8
total_inactive_anon 9
total_inactive_file 10
total_unevictable 11
"""
_V2 = """anon 1
file 2
inactive_anon 3
active_anon 4
inactive_file 5
pgfault 6
pgmajfault 7
"""


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _write(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def test_v1(tmp_path: Path) -> None:
    before = _open_files()
    memory = _write(tmp_path / "memory", {"memory.stat": _V1, "memory.usage_in_bytes": "100\n"})
    cpu = _write(tmp_path / "cpu", {"cpuacct.usage": "12345\n"})
    pids = _write(tmp_path / "pids", {"pids.current": "3\n"})
    meter = MeterV1({"memory": memory, "cpu": cpu, "cpuacct": cpu, "pids": pids, "": "/unified"})
    told = meter.read()
    assert (told.cpu, told.memory, told.inactive_file, told.rss, told.swap) == (12345, 100, 10, 4, 0)
    assert (told.faults, told.processes, told.pressure, told.working_set) == ((7, 8), 3, {}, 90)
    # It reads anew; the order of the keys is the kernel's business.
    _write(tmp_path / "memory", {"memory.stat": "total_inactive_file 20\ntotal_swap 30\ntotal_rss 40\n"})
    _write(tmp_path / "cpu", {"cpuacct.usage": "12346\n"})
    told = meter.read()
    assert (told.cpu, told.inactive_file, told.rss, told.swap, told.faults) == (12346, 20, 40, 30, (0, 0))
    assert _open_files() == before + 4
    del meter
    assert _open_files() == before


def test_the_rest_is_looked_at_when_the_group_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rss(size: int) -> None:
        _write(tmp_path, {"memory.stat": f"total_rss {size}\n"})

    files = {"cpuacct.usage": "1\n", "memory.usage_in_bytes": "1\n", "pids.current": "1\n"}
    rss(10)
    meter = MeterV1(dict.fromkeys(("cpuacct", "memory", "pids"), _write(tmp_path, files)))
    before = meter.read(complete=False)
    assert before.rss == 10
    rss(20)
    assert meter.read(complete=False) is before
    assert meter.read(complete=True).rss == 20
    _write(tmp_path, {"pids.current": "2\n"})
    assert meter.read(complete=False).processes == 1
    for size, name in enumerate(["cpuacct.usage", "memory.usage_in_bytes"]):
        rss(size)
        _write(tmp_path, {name: "2\n"})
        assert meter.read(complete=False).rss == size
    assert meter.read(complete=False).processes == 2
    rss(30)
    monkeypatch.setattr(usage, "_COMPLETE", 0.0)
    assert meter.read(complete=False).rss == 30


def test_controllers_that_a_machine_does_not_have_count_nothing(tmp_path: Path) -> None:
    told = MeterV1({"cpuacct": _write(tmp_path, {"cpuacct.usage": "1\n"})}).read()
    assert (told.cpu, told.memory, told.rss, told.processes) == (1, 0, 0, 0)


def test_a_group_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = _open_files()
    with pytest.raises(FileNotFoundError):
        MeterV1({"cpuacct": _write(tmp_path, {"cpuacct.usage": "1\n"}), "memory": f"{tmp_path}/gone"})
    with pytest.raises(FileNotFoundError):
        MeterV2(f"{tmp_path}/gone")
    assert _open_files() == before


def test_v2(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 12\nuser_usec 3\n",
        "memory.current": "100\n",
        "memory.stat": _V2,
        "memory.swap.current": "9\n",
        "pids.current": "3\n",
        "cpu.pressure": "some avg10=0.50 avg60=1.00 avg300=2.25 total=77\n",
        "memory.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n"
        "full avg10=3.00 avg60=0.00 avg300=0.00 total=2\n",
    }
    meter = MeterV2(_write(tmp_path, files))
    told = meter.read()
    assert (told.cpu, told.memory, told.inactive_file, told.rss, told.swap) == (12000, 100, 5, 1, 9)
    assert (told.faults, told.processes) == ((6, 7), 3)
    nothing = {"avg60": 0.0, "avg300": 0.0}
    assert told.pressure == {
        "cpu": {"some": {"avg10": 0.5, "avg60": 1.0, "avg300": 2.25, "total": 77.0}},
        "memory": {
            "some": {"avg10": 1.0, **nothing, "total": 1.0},
            "full": {"avg10": 3.0, **nothing, "total": 2.0},
        },
    }

    # The same object, until something changes: pressure too, of a group that has not run.
    before = meter.read(complete=False)
    assert meter.read(complete=False) is before
    _write(tmp_path, {"cpu.pressure": ""})
    told = meter.read(complete=False)
    assert (told.cpu, list(told.pressure)) == (12000, ["memory"])
    _write(tmp_path, {"cpu.stat": "usage_usec 13\n"})
    assert meter.read(complete=False).cpu == 13000


def test_v2_without_controllers(tmp_path: Path) -> None:
    told = MeterV2(_write(tmp_path, {"cpu.stat": "usage_usec 12\n"})).read()
    assert (told.cpu, told.memory, told.rss, told.processes, told.pressure) == (12000, 0, 0, 0, {})
    assert Pressure(f"{tmp_path}/gone").read() == {}

"""Statistics of a v1 group, in the form of ``runc events --stats``."""

from __future__ import annotations

import os

from sampan.cgroup.hierarchy import read_file, read_int, read_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_BLKIO = (
    ("ioServiceBytesRecursive", "blkio.throttle.io_service_bytes_recursive", "blkio.bfq.io_service_bytes_recursive"),
    ("ioServicedRecursive", "blkio.throttle.io_serviced_recursive", "blkio.bfq.io_serviced_recursive"),
)


def gather(directories: dict[str, str]) -> dict[str, Any]:
    """Everything the controllers tell; what they don't is left out or 0, as runc does."""
    return {
        "cpu": _cpu(directories),
        "cpuset": _cpuset(directories),
        "memory": _memory(directories),
        "pids": _pids(directories),
        "blkio": _blkio(directories),
        "hugetlb": _hugetlb(directories),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _cpu(directories: dict[str, str]) -> dict[str, Any]:
    usage: dict[str, Any] = {"kernel": 0, "user": 0}
    if accounting := directories.get("cpuacct"):
        usage = {"total": read_int(f"{accounting}/cpuacct.usage")}
        rows = [line.split() for line in _lines(f"{accounting}/cpuacct.usage_all")[1:]]
        if rows:
            usage["percpu"] = [int(user) + int(kernel) for _, user, kernel in rows]
            usage["percpu_kernel"] = [int(kernel) for _, _, kernel in rows]
            usage["percpu_user"] = [int(user) for _, user, _ in rows]
        pairs = read_pairs(f"{accounting}/cpuacct.stat")
        usage["kernel"] = pairs.get("system", 0) * _TICK
        usage["user"] = pairs.get("user", 0) * _TICK
    throttling = {}
    if quota := directories.get("cpu"):
        pairs = read_pairs(f"{quota}/cpu.stat")
        for key, name in (("periods", "nr_periods"), ("throttledPeriods", "nr_throttled")):
            throttling[key] = pairs.get(name, 0)
        throttling["throttledTime"] = pairs.get("throttled_time", 0)
    return {"usage": usage, "throttling": {key: value for key, value in throttling.items() if value}}


def _cpuset(directories: dict[str, str]) -> dict[str, Any]:
    directory = directories.get("cpuset")
    if not directory:
        return {}
    found: dict[str, Any] = {}
    for name in ("cpus", "mems"):
        if numbers := parse_list("".join(_lines(f"{directory}/cpuset.{name}"))):
            found[name] = numbers
    for name in (
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
        "sched_relax_domain_level",
    ):
        found[name] = read_int(f"{directory}/cpuset.{name}")
    return found


def parse_list(text: str) -> list[int]:
    """A list such as ``0-2,7`` (cpuset(7), "List format") as numbers."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if first:
            numbers.extend(range(int(first), int(last if dash else first) + 1))
    return numbers


def _memory(directories: dict[str, str]) -> dict[str, Any]:
    directory = directories.get("memory")
    if not directory:
        return {}
    raw = read_pairs(f"{directory}/memory.stat")
    found: dict[str, Any] = {"cache": raw.get("cache", 0)}
    for key, prefix in (
        ("usage", "memory"),
        ("swap", "memory.memsw"),
        ("kernel", "memory.kmem"),
        ("kernelTCP", "memory.kmem.tcp"),
    ):
        found[key] = _counter(f"{directory}/{prefix}")
    found["raw"] = raw
    return found


def _counter(prefix: str) -> dict[str, int]:
    found = {
        "limit": read_int(f"{prefix}.limit_in_bytes"),
        "usage": read_int(f"{prefix}.usage_in_bytes"),
        "max": read_int(f"{prefix}.max_usage_in_bytes"),
    }
    found = {key: value for key, value in found.items() if value or key == "limit"}
    found["failcnt"] = read_int(f"{prefix}.failcnt")
    return found


def _pids(directories: dict[str, str]) -> dict[str, int]:
    directory = directories.get("pids")
    if not directory:
        return {}
    found = {"current": read_int(f"{directory}/pids.current"), "limit": read_int(f"{directory}/pids.max")}
    return {key: value for key, value in found.items() if value}


def _blkio(directories: dict[str, str]) -> dict[str, Any]:
    directory = directories.get("blkio")
    found: dict[str, Any] = {}
    for key, *names in _BLKIO if directory else ():
        for name in names:
            if entries := _io_entries(_lines(f"{directory}/{name}")):
                found[key] = entries
                break
    return found


def _io_entries(lines: list[str]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        words = line.split()
        if len(words) == 3:  # the closing "Total N" has two
            major, _, minor = words[0].partition(":")
            entry = {"major": int(major), "minor": int(minor), "op": words[1], "value": int(words[2])}
            entries.append({k: v for k, v in entry.items() if v != 0})
    return entries


def _hugetlb(directories: dict[str, str]) -> dict[str, Any]:
    directory = directories.get("hugetlb")
    if not directory:
        return {}
    found = {}
    suffix = ".max_usage_in_bytes"
    for name in sorted(os.listdir(directory)):
        if name.startswith("hugetlb.") and name.endswith(suffix) and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(suffix)]
            prefix = f"{directory}/hugetlb.{size}"
            found[size] = {
                "usage": read_int(f"{prefix}.usage_in_bytes"),
                "max": read_int(f"{prefix}.max_usage_in_bytes"),
                "failcnt": read_int(f"{prefix}.failcnt"),
            }
    return found


def _lines(path: str) -> list[str]:
    try:
        return read_file(path).splitlines()
    except FileNotFoundError:
        return []

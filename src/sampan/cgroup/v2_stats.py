"""Statistics of a v2 group, in the form of ``runc events --stats``."""

from __future__ import annotations

import os

from sampan.cgroup.hierarchy import read_file, read_int, read_pairs
from sampan.cgroup.v1_stats import parse_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What runc prints where there is no limit: the largest number of 64 bits.
_NO_LIMIT = 2**64 - 1


def gather(directory: str) -> dict[str, Any]:
    """Everything the group's controllers tell; what they don't is left out or 0, as runc does."""
    return {
        "cpu": _cpu(directory),
        "cpuset": _cpuset(directory),
        "memory": _memory(directory),
        "pids": _pids(directory),
        "blkio": _io(directory),
        "hugetlb": _hugetlb(directory),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _cpu(directory: str) -> dict[str, Any]:
    pairs = read_pairs(f"{directory}/cpu.stat")
    found: dict[str, Any] = {
        "usage": {
            "total": pairs.get("usage_usec", 0) * 1000,
            "kernel": pairs.get("system_usec", 0) * 1000,
            "user": pairs.get("user_usec", 0) * 1000,
        },
        "throttling": {
            key: value
            for key, value in (
                ("periods", pairs.get("nr_periods", 0)),
                ("throttledPeriods", pairs.get("nr_throttled", 0)),
                ("throttledTime", pairs.get("throttled_usec", 0) * 1000),
            )
            if value
        },
    }
    return found | _pressure(directory, "cpu")


def _pressure(directory: str, name: str) -> dict[str, Any]:
    """Pressure stall information: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    try:
        text = read_file(f"{directory}/{name}.pressure")
    except OSError:  # not there, or turned off (EOPNOTSUPP)
        return {}
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        lines[kind] = {key: int(value) if key == "total" else float(value) for key, value in values.items()}
    return {"psi": lines} if lines else {}


def _cpuset(directory: str) -> dict[str, Any]:
    found = {}
    for name in ("cpus", "mems"):
        for file in (f"cpuset.{name}", f"cpuset.{name}.effective"):
            try:
                numbers = parse_list(read_file(f"{directory}/{file}"))
            except OSError:
                continue
            if numbers:
                found[name] = numbers
                break
    return found


def _memory(directory: str) -> dict[str, Any]:
    raw = read_pairs(f"{directory}/memory.stat")
    if not raw:
        return {}
    usage = read_int(f"{directory}/memory.current")
    swap = read_int(f"{directory}/memory.swap.current")
    events = read_pairs(f"{directory}/memory.events")
    limit = read_int(f"{directory}/memory.max", _NO_LIMIT)
    swap_limit = read_int(f"{directory}/memory.swap.max", _NO_LIMIT)
    found: dict[str, Any] = {
        "cache": raw.get("file", 0),
        "usage": {
            "limit": limit,
            "usage": usage,
            "max": read_int(f"{directory}/memory.peak"),
            "failcnt": events.get("max", 0),
        },
        # As v1 has it, and the specification: memory and swap together.
        "swap": {
            "limit": _NO_LIMIT if _NO_LIMIT in (limit, swap_limit) else limit + swap_limit,
            "usage": usage + swap,
            "failcnt": read_pairs(f"{directory}/memory.swap.events").get("max", 0),
        },
        "kernel": {"limit": 0, "usage": raw.get("kernel", 0), "failcnt": 0},
        "kernelTCP": {"limit": 0, "usage": raw.get("sock", 0), "failcnt": 0},
        "raw": raw,
    }
    return found | _pressure(directory, "memory")


def _pids(directory: str) -> dict[str, int]:
    found = {"current": read_int(f"{directory}/pids.current"), "limit": read_int(f"{directory}/pids.max")}
    return {key: value for key, value in found.items() if value}


def _io(directory: str) -> dict[str, Any]:
    amounts: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    try:
        lines = read_file(f"{directory}/io.stat").splitlines()
    except OSError:
        lines = []
    for line in lines:
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, value = pair.partition("=")
            operation = {"r": "Read", "w": "Write", "d": "Discard"}.get(key[:1])
            target = amounts if key.endswith("bytes") else counts if key.endswith("ios") else None
            if target is not None and operation is not None and value.isdigit():
                target.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(value)})
    found: dict[str, Any] = {}
    if amounts:
        found["ioServiceBytesRecursive"] = amounts
    if counts:
        found["ioServicedRecursive"] = counts
    return found | _pressure(directory, "io")


def _hugetlb(directory: str) -> dict[str, Any]:
    found = {}
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    for name in names:
        if name.startswith("hugetlb.") and name.endswith(".current") and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(".current")]
            found[size] = {
                "usage": read_int(f"{directory}/{name}"),
                "max": read_int(f"{directory}/hugetlb.{size}.max"),
                "failcnt": read_pairs(f"{directory}/hugetlb.{size}.events").get("max", 0),
            }
    return found

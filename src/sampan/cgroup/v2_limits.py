"""``linux.resources`` of the runtime specification, written into a v2 group.

The specification's units are those of v1; the translations are the specification's own ("Control groups") and, where it
is silent, runc's. A limit whose file is not there is an error that names the field.
"""

from __future__ import annotations

import errno
import math
import os

from sampan.cgroup import hierarchy
from sampan.cgroup.group import Former, write
from sampan.cgroup.v1_limits import rdma_line
from sampan.errors import InvalidInput, StageFailed, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNLIMITED = -1


def check(directory: str, resources: dict[str, Any]) -> None:
    """Refuse a memory limit below the usage, where ``checkBeforeUpdate`` asks for that."""
    memory = resources.get("memory") or {}
    if memory.get("checkBeforeUpdate") and memory.get("limit", 0) > 0:
        _refuse_below_usage(_Files(directory), memory["limit"])


def apply(directory: str, resources: dict[str, Any], former: Former | None = None) -> None:
    """Write every limit that ``resources`` names; ``former`` keeps what the files said before."""
    check(directory, resources)
    files = _Files(directory, former)
    _cpu(files, resources.get("cpu") or {})
    _memory(files, resources.get("memory") or {})
    limit = (resources.get("pids") or {}).get("limit")
    if limit:
        files.put("pids.max", _max(limit), "pids.limit")
    _block_io(files, resources.get("blockIO") or {})
    for entry in resources.get("hugepageLimits") or ():
        hugepages(files.put, files.has, entry)
    for device, limits in (resources.get("rdma") or {}).items():
        files.put("rdma.max", rdma_line(device, limits), f"rdma[{device}]")
    network = resources.get("network") or {}
    if network.get("classID") or network.get("priorities"):
        raise Unsupported("linux.resources.network: cgroup v2 has no net_cls and net_prio controllers")
    # Last: these say in the kernel's words what may have been said above in the specification's.
    for name, value in (resources.get("unified") or {}).items():
        unified(files.put, files.has, name, value)


class _Files:
    """Writes to one group."""

    __slots__ = ("directory", "former")

    def __init__(self, directory: str, former: Former | None = None) -> None:
        self.directory = directory
        self.former = former

    def has(self, name: str) -> bool:
        return os.path.exists(f"{self.directory}/{name}")

    def put(self, name: str, value: object, field: str) -> None:
        path = f"{self.directory}/{name}"
        if self.former is not None:
            self.former.keep(path)
        try:
            write(f"cgroup {name}", path, str(value), field=field)
        except StageFailed as error:
            if error.errno == errno.ENOENT and os.path.isdir(self.directory):
                raise Unsupported(
                    f"linux.resources.{field}: the group has no {name}",
                    hint="the controller is off in a parent, or the kernel lacks it",
                ) from error
            raise


def _max(value: int) -> object:
    return "max" if value < 0 else value


def weight_of_shares(shares: int) -> int:
    """``cpu.weight`` for v1's ``cpu.shares``.

    Both defaults (1024 and 100) and both ends (2 and 1, 262144 and 10000) correspond; a line through the ends alone, as
    was used before, made the default 39, so that a container got less than any other process of its machine.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612.0 - 7.0 / 34.0))


def _cpu(files: _Files, cpu: dict[str, Any]) -> None:
    for key in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(key):
            raise Unsupported(f"linux.resources.cpu.{key}: cgroup v2 has no real-time limits")
    if cpu.get("idle") is not None:
        files.put("cpu.idle", cpu["idle"], "cpu.idle")
    if cpu.get("shares") and not cpu.get("idle"):  # an idle group has no weight of its own
        files.put("cpu.weight", weight_of_shares(cpu["shares"]), "cpu.shares")
    burst = cpu.get("burst")
    if burst is not None and cpu.get("quota"):
        files.put("cpu.max.burst", 0, "cpu.burst")  # the old burst may be more than the new quota
    if cpu.get("quota") or cpu.get("period"):
        files.put("cpu.max", _bandwidth(files, cpu), "cpu.quota")
    if burst is not None:
        files.put("cpu.max.burst", burst, "cpu.burst")
    for key in ("cpus", "mems"):
        if cpu.get(key):
            files.put(f"cpuset.{key}", cpu[key], f"cpu.{key}")


def _bandwidth(files: _Files, cpu: dict[str, Any]) -> str:
    quota, period = cpu.get("quota"), cpu.get("period")
    if not quota:
        # Only the period is given: the quota stays, and is always written with it.
        return f"{hierarchy.read_file(f'{files.directory}/cpu.max').split()[0]} {period}"
    return f"{_max(quota)} {period}" if period else str(_max(quota))


def _memory(files: _Files, memory: dict[str, Any]) -> None:
    limit, swap = memory.get("limit"), memory.get("swap")
    for key in ("kernel", "kernelTCP"):
        if memory.get(key):
            raise Unsupported(f"linux.resources.memory.{key}: cgroup v2 counts it with the rest")
    for key, refused in (
        ("swappiness", memory.get("swappiness") is not None),
        ("disableOOMKiller", memory.get("disableOOMKiller")),
        ("useHierarchy", memory.get("useHierarchy") is False),
    ):
        if refused:
            raise Unsupported(f"linux.resources.memory.{key}: cgroup v2 has nothing of the kind")
    if limit == _UNLIMITED and not swap:
        swap = _UNLIMITED
    if swap:
        _swap(files, limit, swap)
    if limit:
        files.put("memory.max", _max(limit), "memory.limit")
    if memory.get("reservation"):
        files.put("memory.low", _max(memory["reservation"]), "memory.reservation")


def _refuse_below_usage(files: _Files, limit: int) -> None:
    usage = hierarchy.read_int(f"{files.directory}/memory.current")
    if usage > limit:
        raise InvalidInput(f"{limit} is less than the {usage} bytes in use", field="linux.resources.memory.limit")


def _swap(files: _Files, limit: int | None, swap: int) -> None:
    """The specification limits memory and swap together, the kernel swap alone."""
    field = "linux.resources.memory.swap"
    if swap > 0:
        if not limit or limit < 0:
            raise InvalidInput("needs memory.limit: it is the sum of memory and swap", field=field)
        if swap < limit:
            raise InvalidInput(f"{swap} is less than memory.limit, which it includes", field=field)
        swap -= limit
    if swap in (0, _UNLIMITED) and not files.has("memory.swap.max"):
        return  # no swap here at all
    files.put("memory.swap.max", _max(swap), "memory.swap")


def _block_io(files: _Files, io: dict[str, Any]) -> None:
    if io.get("leafWeight"):
        raise Unsupported("linux.resources.blockIO.leafWeight: cgroup v2 has no such weight")
    if io.get("weight"):
        if files.has("io.bfq.weight"):
            files.put("io.bfq.weight", io["weight"], "blockIO.weight")
        else:
            files.put("io.weight", io_weight(io["weight"]), "blockIO.weight")
    for device in io.get("weightDevice") or ():
        if device.get("leafWeight"):
            raise Unsupported("linux.resources.blockIO.weightDevice: cgroup v2 has no leafWeight")
        if device.get("weight"):
            line = f"{device['major']}:{device['minor']} {device['weight']}"
            files.put("io.bfq.weight", line, "blockIO.weightDevice")
    for key, word in (
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ):
        for device in io.get(key) or ():
            line = f"{device['major']}:{device['minor']} {word}={device['rate'] or 'max'}"
            files.put("io.max", line, f"blockIO.{key}")


def io_weight(weight: int) -> int:
    """``io.weight`` (1 to 10000) for v1's ``blkio.weight`` (10 to 1000): a line through the ends."""
    return 1 + (weight - 10) * 9999 // 990


def hugepages(put: Any, has: Any, limit: dict[str, Any]) -> None:
    """One entry of ``hugepageLimits``; a hybrid machine may have this one controller of v2."""
    size = limit["pageSize"]
    field = f"hugepageLimits[{size}]"
    put(f"hugetlb.{size}.max", limit["limit"], field)
    # Reservations escape the first limit until they are touched; where the kernel counts them, they are limited too.
    if has(f"hugetlb.{size}.rsvd.max"):
        put(f"hugetlb.{size}.rsvd.max", limit["limit"], field)


def unified(put: Any, has: Any, name: str, value: str) -> None:
    """One entry of ``unified``: a file of the group, line by line where it is keyed."""
    if "/" in name or name in (".", "..") or name.startswith("cgroup."):
        raise InvalidInput(f"{name!r} is no limit", field="linux.resources.unified")
    if not has(name):
        raise Unsupported(f"linux.resources.unified[{name}]: the group has no such file")
    for line in value.splitlines() or [value]:
        put(name, line, f"unified[{name}]")

"""``linux.resources`` of the runtime specification, written into v1 controllers.

A limit whose controller or file is not there is an error that names the field; what is not asked for is not missed.
"""

from __future__ import annotations

import errno
import os

from sampan.cgroup import hierarchy
from sampan.cgroup.group import Former, write
from sampan.errors import InvalidInput, StageFailed, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNLIMITED = -1


class _Files:
    """Writes to the controllers of one group."""

    __slots__ = ("directories", "former")

    def __init__(self, directories: dict[str, str], former: Former | None = None) -> None:
        self.directories = directories
        self.former = former

    def path(self, controller: str, name: str, field: str) -> str:
        directory = self.directories.get(controller)
        if directory is None:
            raise Unsupported(
                f"linux.resources.{field}: the cgroup v1 {controller} controller is not mounted on this machine"
            )
        return f"{directory}/{name}"

    def has(self, controller: str, name: str) -> bool:
        return controller in self.directories and os.path.exists(f"{self.directories[controller]}/{name}")

    def put(self, controller: str, name: str, value: object, field: str) -> None:
        path = self.path(controller, name, field)
        if self.former is not None:
            self.former.keep(path)
        try:
            write(f"cgroup {name}", path, str(value), field=field)
        except StageFailed as error:
            if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(path)):
                raise Unsupported(f"linux.resources.{field}: this kernel has no {name}") from error
            raise


def apply(directories: dict[str, str], resources: dict[str, Any], former: Former | None = None) -> None:
    """Write every limit that ``resources`` names; ``former`` keeps what the files said before."""
    files = _Files(directories, former)
    cpu = resources.get("cpu") or {}
    _cpuset(files, cpu)
    _memory(files, resources.get("memory") or {})
    _cpu(files, cpu)
    _pids(files, resources.get("pids") or {})
    _block_io(files, resources.get("blockIO") or {})
    for limit in resources.get("hugepageLimits") or ():
        _hugepages(files, limit)
    _network(files, resources.get("network") or {})
    for device, limits in (resources.get("rdma") or {}).items():
        files.put("rdma", "rdma.max", rdma_line(device, limits), f"rdma[{device}]")
    for name, value in (resources.get("unified") or {}).items():
        _unified(files, name, value)


def rdma_line(device: str, limits: dict[str, Any]) -> str:
    """A line for ``rdma.max`` (Documentation/admin-guide/cgroup-v1/rdma)."""
    parts = [
        f"{name}={limits[key]}"
        for key, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
        if limits.get(key) is not None
    ]
    return " ".join([device, *parts])


def _cpuset(files: _Files, cpu: dict[str, Any]) -> None:
    for key, name in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
        if cpu.get(key):
            files.put("cpuset", name, cpu[key], f"cpu.{key}")


def _cpu(files: _Files, cpu: dict[str, Any]) -> None:
    idle = cpu.get("idle")
    if idle == 0:  # an idle group takes no shares
        files.put("cpu", "cpu.idle", idle, "cpu.idle")
    if cpu.get("shares"):
        files.put("cpu", "cpu.shares", cpu["shares"], "cpu.shares")
        _check_shares(files, cpu["shares"])
    if idle:
        files.put("cpu", "cpu.idle", idle, "cpu.idle")
    _real_time(files, cpu)
    _bandwidth(files, cpu)


def _check_shares(files: _Files, shares: int) -> None:
    got = hierarchy.read_int(f"{files.directories['cpu']}/cpu.shares", shares)
    if shares > got:
        raise InvalidInput(f"{shares} is more than the kernel's maximum of {got}", field="linux.resources.cpu.shares")
    if shares < got:
        raise InvalidInput(f"{shares} is less than the kernel's minimum of {got}", field="linux.resources.cpu.shares")


def _real_time(files: _Files, cpu: dict[str, Any]) -> None:
    for key, name in (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us")):
        if cpu.get(key):
            files.put("cpu", name, cpu[key], f"cpu.{key}")


def _bandwidth(files: _Files, cpu: dict[str, Any]) -> None:
    """Period, quota and burst. The kernel checks each write by itself, so the order depends on the present values."""
    period, quota, burst = cpu.get("period"), cpu.get("quota"), cpu.get("burst")
    if burst is not None and not quota:
        files.put("cpu", "cpu.cfs_burst_us", burst, "cpu.burst")
        burst = None
    if burst is not None:
        files.put("cpu", "cpu.cfs_burst_us", 0, "cpu.burst")  # the old burst may be more than the new quota
    late_period = False
    if period:
        try:
            files.put("cpu", "cpu.cfs_period_us", period, "cpu.period")
        except StageFailed as error:
            # The old quota over the new period may be more than the parent may have; the new quota may mend it.
            if error.errno != errno.EINVAL or not quota:
                raise
            late_period = True
    if quota:
        files.put("cpu", "cpu.cfs_quota_us", quota, "cpu.quota")
    if late_period:
        files.put("cpu", "cpu.cfs_period_us", period, "cpu.period")
    if burst:
        files.put("cpu", "cpu.cfs_burst_us", burst, "cpu.burst")


def _memory(files: _Files, memory: dict[str, Any]) -> None:
    limit, swap = memory.get("limit"), memory.get("swap")
    if memory.get("checkBeforeUpdate") and limit and limit > 0:
        _refuse_below_usage(files, limit)
    if limit == _UNLIMITED and not swap and files.has("memory", "memory.memsw.limit_in_bytes"):
        swap = _UNLIMITED
    _memory_and_swap(files, limit, swap)
    if memory.get("reservation"):
        files.put("memory", "memory.soft_limit_in_bytes", memory["reservation"], "memory.reservation")
    if memory.get("kernel"):
        _kernel_memory(files, memory["kernel"])
    if memory.get("kernelTCP"):
        files.put("memory", "memory.kmem.tcp.limit_in_bytes", memory["kernelTCP"], "memory.kernelTCP")
    if memory.get("useHierarchy") is not None and files.has("memory", "memory.use_hierarchy"):
        files.put("memory", "memory.use_hierarchy", int(memory["useHierarchy"]), "memory.useHierarchy")
    disable = memory.get("disableOOMKiller")
    if disable or (disable is not None and files.has("memory", "memory.oom_control")):
        files.put("memory", "memory.oom_control", int(disable), "memory.disableOOMKiller")
    if memory.get("swappiness") is not None:
        files.put("memory", "memory.swappiness", memory["swappiness"], "memory.swappiness")


def _kernel_memory(files: _Files, limit: int) -> None:
    """Kernels since 5.16 take a limit of kernel memory and do not keep it; no limit is what they have anyway."""
    files.put("memory", "memory.kmem.limit_in_bytes", limit, "memory.kernel")
    if 0 < limit < hierarchy.read_int(f"{files.directories['memory']}/memory.kmem.limit_in_bytes"):
        raise Unsupported(
            "linux.resources.memory.kernel: this kernel does not limit its own memory", hint="memory.limit includes it"
        )


def _refuse_below_usage(files: _Files, limit: int) -> None:
    usage = hierarchy.read_int(files.path("memory", "memory.usage_in_bytes", "memory.limit"))
    if usage > limit:
        raise InvalidInput(f"{limit} is less than the {usage} bytes in use", field="linux.resources.memory.limit")


def _memory_and_swap(files: _Files, limit: int | None, swap: int | None) -> None:
    """The limit may at no moment be above memory-and-swap's, so the order depends on which way they move."""

    def put_limit() -> None:
        if limit:
            _put_memory_limit(files, limit)

    def put_swap() -> None:
        if swap and (swap != _UNLIMITED or files.has("memory", "memory.memsw.limit_in_bytes")):
            files.put("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap")

    if limit and swap:
        path = files.path("memory", "memory.limit_in_bytes", "memory.limit")
        if swap == _UNLIMITED or hierarchy.read_int(path) < swap:
            put_swap()
            put_limit()
            return
    put_limit()
    put_swap()


def _put_memory_limit(files: _Files, limit: int) -> None:
    try:
        files.put("memory", "memory.limit_in_bytes", limit, "memory.limit")
    except StageFailed as error:
        if error.errno != errno.EBUSY:
            raise
        directory = files.directories["memory"]
        usage = hierarchy.read_int(f"{directory}/memory.usage_in_bytes")
        raise StageFailed(
            f"set memory limit to {limit}",
            OSError(errno.EBUSY, "the kernel could not reclaim enough"),
            path=f"{directory}/memory.limit_in_bytes",
            hint=f"{usage} bytes are in use",
        ) from error


def _pids(files: _Files, pids: dict[str, Any]) -> None:
    limit = pids.get("limit")
    if limit:
        files.put("pids", "pids.max", limit if limit > 0 else "max", "pids.limit")


def _block_io(files: _Files, io: dict[str, Any]) -> None:
    weighted = "blkio.weight" if files.has("blkio", "blkio.weight") else "blkio.bfq.weight"
    if io.get("weight"):
        files.put("blkio", weighted, io["weight"], "blockIO.weight")
    if io.get("leafWeight"):
        files.put("blkio", "blkio.leaf_weight", io["leafWeight"], "blockIO.leafWeight")
    for device in io.get("weightDevice") or ():
        number = f"{device['major']}:{device['minor']}"
        if device.get("weight"):
            files.put("blkio", f"{weighted}_device", f"{number} {device['weight']}", "blockIO.weightDevice")
        if device.get("leafWeight"):
            files.put("blkio", "blkio.leaf_weight_device", f"{number} {device['leafWeight']}", "blockIO.weightDevice")
    for key, name in (
        ("throttleReadBpsDevice", "read_bps_device"),
        ("throttleWriteBpsDevice", "write_bps_device"),
        ("throttleReadIOPSDevice", "read_iops_device"),
        ("throttleWriteIOPSDevice", "write_iops_device"),
    ):
        for device in io.get(key) or ():
            line = f"{device['major']}:{device['minor']} {device['rate']}"
            files.put("blkio", f"blkio.throttle.{name}", line, f"blockIO.{key}")


def _hugepages(files: _Files, limit: dict[str, Any]) -> None:
    size = limit["pageSize"]
    field = f"hugepageLimits[{size}]"
    if "hugetlb" not in files.directories and "" in files.directories:
        _hugepages_unified(files, limit)
        return
    files.put("hugetlb", f"hugetlb.{size}.limit_in_bytes", limit["limit"], field)
    # Reservations escape the first limit until they are touched; where the kernel counts them, they are limited too.
    if files.has("hugetlb", f"hugetlb.{size}.rsvd.limit_in_bytes"):
        files.put("hugetlb", f"hugetlb.{size}.rsvd.limit_in_bytes", limit["limit"], field)


def _hugepages_unified(files: _Files, limit: dict[str, Any]) -> None:
    """A hybrid machine may have the hugetlb controller in its unified hierarchy, off until someone wants it."""
    from sampan.cgroup.v2_limits import hugepages

    here = hierarchy.layout().unified
    _switch_on(here)
    for part in files.directories[""][len(here) :].split("/")[1:-1]:
        here = f"{here}/{part}"
        _switch_on(here)

    def put(name: str, value: object, field: str) -> None:
        files.put("", name, value, field)

    hugepages(put, lambda name: files.has("", name), limit)


#: Where we switched the hugetlb controller on, for the one who removes the last group that needs it.
_SWITCHED_ON = "trusted.sampan.hugetlb"


def _switch_on(directory: str) -> None:
    path = f"{directory}/cgroup.subtree_control"
    try:
        if "hugetlb" not in hierarchy.read_file(path).split():
            hierarchy.write_file(path, "+hugetlb")
            os.setxattr(directory, _SWITCHED_ON, b"1")
    except OSError:
        pass  # the limit is then refused where it is set


def release_hugepages(root: str) -> None:
    """Switch the controller off again at the unified hierarchy's root, if we switched it on and no group is limited.

    A controller that is on there can't be mounted in a hierarchy of its own, and other runtimes (crun) refuse hybrid
    machines with controllers in the unified hierarchy.
    """
    try:
        os.getxattr(root, _SWITCHED_ON)
        for child in os.scandir(root):
            if child.is_dir(follow_symlinks=False) and _uses_hugepages(child.path):
                return
        hierarchy.write_file(f"{root}/cgroup.subtree_control", "-hugetlb")
        os.removexattr(root, _SWITCHED_ON)
    except OSError:
        return  # not ours, or somebody below has it on


def _uses_hugepages(directory: str) -> bool:
    limits = [entry.path for entry in os.scandir(directory) if entry.name.startswith("hugetlb.")]
    values = [hierarchy.read_file(path).strip() for path in limits if path.endswith("B.max")]
    # A limit that was never set is the largest number of pages.
    return any(value != "max" and int(value) < 1 << 62 for value in values)


def _network(files: _Files, network: dict[str, Any]) -> None:
    if network.get("classID"):
        files.put("net_cls", "net_cls.classid", network["classID"], "network.classID")
    for entry in network.get("priorities") or ():
        files.put("net_prio", "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}", "network.priorities")


def _unified(files: _Files, name: str, value: str) -> None:
    from sampan.cgroup.v2_limits import unified

    unified(lambda *put: files.put("", *put), lambda file: files.has("", file), name, value)

"""A request's limits as ``linux.resources`` of config.json, less those that the machine can't count.

A kubelet sends a limit of zero for every size of huge pages that the machine has, and one of swap with each of memory,
whether or not the kernel counts them in groups. So both are left out where it does not, as containerd leaves them out.
"""

import os
from typing import Any

from sampan.cgroup.hierarchy import Layout, layout, read_file
from sampan.engine.model import Resources


def section(wanted: Resources, machine: Layout | None = None) -> dict[str, Any]:
    """Only what the request sets, and no devices.

    Args:
        wanted: The request's.
        machine: Where the machine has its controllers; None: found out.
    """
    machine = machine or layout()
    cpu: dict[str, Any] = {
        key: value
        for key, value in (
            ("period", wanted.cpu_period),
            ("quota", wanted.cpu_quota),
            ("shares", wanted.cpu_shares),
            ("cpus", wanted.cpuset_cpus),
            ("mems", wanted.cpuset_mems),
        )
        if value
    }
    memory = {}
    if wanted.memory_limit:
        memory["limit"] = wanted.memory_limit
    # A limit of memory alone is one of memory and swap, as containerd has it: what is over it would only be swapped.
    swap = wanted.memory_swap_limit or wanted.memory_limit
    if swap and counts_swap(machine):
        memory["swap"] = swap
    found: dict[str, Any] = {}
    if cpu:
        found["cpu"] = cpu
    if memory:
        found["memory"] = memory
    if wanted.pids_limit:
        found["pids"] = {"limit": wanted.pids_limit}
    if wanted.hugepages and counts_huge_pages(machine):
        found["hugepageLimits"] = [{"pageSize": size, "limit": limit} for size, limit in wanted.hugepages.items()]
    if wanted.unified:
        found["unified"] = dict(wanted.unified)
    return found


def counts_huge_pages(machine: Layout) -> bool:
    """Whether there is a hugetlb controller, of v1 or in the unified hierarchy."""
    if "hugetlb" in machine.controllers:
        return True
    return bool(machine.unified) and "hugetlb" in read_file(f"{machine.unified}/cgroup.controllers").split()


def counts_swap(machine: Layout) -> bool:
    """Whether swap is counted: v1 has a file for it or has not (``swapaccount=0``), v2 always counts."""
    memory = machine.controllers.get("memory", "")
    return not memory or os.path.exists(f"{memory}/memory.memsw.limit_in_bytes")

"""Files of procfs and sysfs that tell of the machine, or change it: what ``maskedPaths`` and ``readonlyPaths`` have.

The lists of runc's example and of containerd's and CRI-O's defaults. Import diet as in :mod:`sampan.wire.netlink`.
"""

from __future__ import annotations

HIDDEN = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

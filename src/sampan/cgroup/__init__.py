"""Control groups v1, hybrid and v2 behind one interface: limits, statistics, freezing, killing, events.

Paths are those of cgroups (``/sampan/k8s.io/<id>``), not of directories. A relative path lies beside the caller's own
group, as runc has it. Which implementation serves is asked of the mount table once.
"""

from __future__ import annotations

from sampan.cgroup.devices import DEFAULT_DEVICES
from sampan.cgroup.group import Group, Joiner
from sampan.cgroup.hierarchy import layout
from sampan.cgroup.oom import OomWatch

__all__ = ["DEFAULT_DEVICES", "Group", "Joiner", "OomWatch", "mode", "open_group"]


def mode() -> str:
    """Which cgroups this machine has: ``v1``, ``hybrid`` (v1 controllers and a unified hierarchy) or ``v2``."""
    return layout().mode


def open_group(path: str, *, systemd: bool = False) -> Group:
    """The group at ``path``; nothing is made or looked at until a method is called.

    Args:
        path: Cgroup path; with ``systemd``, ``slice:prefix:name`` as runc's ``--systemd-cgroup`` takes it.
        systemd: Let systemd make and remove the group as a transient scope.
    """
    if systemd:
        from sampan.cgroup.systemd import SystemdGroup

        return SystemdGroup(path)
    if layout().mode == "v2":
        from sampan.cgroup.v2 import GroupV2

        return GroupV2(path)
    from sampan.cgroup.v1 import GroupV1

    return GroupV1(path)

"""What a runtime could leave behind on a machine, as sets that can be compared.

``MachineState.take()`` before and after some work, and ``after.left_since(before)``, tell what the work left: mounts,
network links, named network namespaces, namespaces in use, cgroups, nftables rules, processes, loop devices and files
in the directories that runtimes write to. ``settled_since`` waits a little, as the kernel takes network
namespaces and dead cgroups away in its own time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

#: Directories watched for new entries, with the depth to look into.
WATCHED = {
    "/run": 2,
    "/var/run/netns": 1,
    "/var/lib": 1,
    "/var/lib/cni": 3,
    "/var/lib/sampan": 1,
    "/etc/cni": 2,
    "/etc/sampan": 2,
    "/opt": 1,
    "/tmp": 1,
    "/dev/shm": 1,
    "/dev/mqueue": 1,
}
#: Entries in those that belong to others: of the temporary directory, all but what a runtime or Python would name.
#: /run/mount is libmount's, made by the first `umount` after a boot.
IGNORED = re.compile(r"^/tmp/(?!sampan|tmp|cri|cni|oci|runc|containerd)|^/run/(lock|log|mount|systemd|user)(/|$)")
CGROUP_ROOT = "/sys/fs/cgroup"


@dataclass(frozen=True)
class MachineState:
    """One look at the machine: kind of thing -> the things."""

    things: dict[str, frozenset[str]]

    @classmethod
    def take(cls) -> MachineState:
        """Looks now."""
        return cls(
            {
                "mount": frozenset(_mounts()),
                "network link": frozenset(os.listdir("/sys/class/net")),
                "namespace": frozenset(_namespaces()),
                "cgroup": frozenset(_cgroups()),
                "nftables rule": frozenset(_nft()),
                "process": frozenset(_processes()),
                "loop device": frozenset(_loops()),
                "file": frozenset(_files()),
                "System V object": frozenset(_sysv()),
            }
        )

    def left_since(self, before: MachineState) -> list[str]:
        """What is there now and was not before, a line for each."""
        return [
            f"{kind}: {thing}" for kind, things in self.things.items() for thing in sorted(things - before.things[kind])
        ]


def settled_since(before: MachineState, seconds: float = 5.0) -> list[str]:
    """What is left since ``before``, once what the kernel takes away late had time to go."""
    deadline = time.monotonic() + seconds
    while True:
        left = MachineState.take().left_since(before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _mounts() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        found = []
        for line in file:
            fields, _, tail = line.partition(" - ")
            found.append(f"{fields.split()[4]} ({tail.split()[0]})")
    return found


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _namespaces() -> set[str]:
    """Namespaces that some process is in; those pinned by a mount are among the mounts."""
    found = set()
    others = _Others()
    for pid in _pids():
        if others.own(pid):
            continue
        for kind in ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue
    return found


def _cgroups() -> list[str]:
    found = []
    supervised = tuple(f"{parent}/" for _, parent in _Others().supervisors.values())
    for folder, folders, _ in os.walk(CGROUP_ROOT):
        paths = [os.path.join(folder, name) for name in folders]
        found += [path for path in paths if not os.path.islink(path)]
    return [path for path in found if not any(part in f"{path}/" for part in supervised)]


class _Others:
    """What belongs to a supervisor that keeps us in a cgroup beside its other children: no concern of ours."""

    def __init__(self) -> None:
        #: Hierarchy -> (our cgroup, its parent), where that parent is not the hierarchy's root.
        self.supervisors: dict[str, tuple[str, str]] = {}
        for hierarchy, path in _cgroups_of("self"):
            parent = os.path.dirname(path)
            if parent not in ("", "/"):
                self.supervisors[hierarchy] = (path, parent)

    def own(self, pid: str) -> bool:
        """Whether a process is one of the supervisor's other children."""
        for hierarchy, path in _cgroups_of(pid):
            mine, parent = self.supervisors.get(hierarchy, ("", ""))
            if mine and f"{path}/".startswith(f"{parent}/") and not f"{path}/".startswith(f"{mine}/"):
                return True
        return False


def _cgroups_of(pid: str) -> list[tuple[str, str]]:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            fields = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    return [(hierarchy, path) for hierarchy, _, path in fields]


def _nft() -> set[str]:
    """Tables, chains, rules, sets and set elements; without counters and handles, which change by themselves."""
    nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nft is None or os.geteuid() != 0:
        return set()
    result = subprocess.run([nft, "-j", "list", "ruleset"], capture_output=True, text=True, check=False)
    if result.returncode or not result.stdout:
        return set()
    found = set()
    for item in json.loads(result.stdout)["nftables"]:
        for kind in ("set", "map"):
            elements = item.get(kind, {}).pop("elem", [])
            name = " ".join(str(item.get(kind, {}).get(key)) for key in ("family", "table", "name"))
            found |= {f"{name} has {json.dumps(_without_noise(element), sort_keys=True)}" for element in elements}
        if "metainfo" not in item:
            found.add(json.dumps(_without_noise(item), sort_keys=True))
    return found


def _without_noise(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_noise(item) for key, item in value.items() if key not in ("handle", "packets", "bytes")}
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    return value


def _processes() -> list[str]:
    """``PID/start time command line`` of every process but this one, its ancestors and the kernel's threads."""
    found = []
    ours = _ancestors(os.getpid())
    others = _Others()
    for pid in _pids():
        stat = _stat(pid)
        if stat is None or int(pid) in ours or stat["parent"] == 2 or pid == "2" or others.own(pid):
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if stat["state"] != "Z":
            found.append(f"{pid}@{stat['start']} {words or stat['name']}")
        elif stat["parent"] == os.getpid():
            # Anybody else's zombie is its parent's to reap, and says nothing about us.
            found.append(f"{pid}@{stat['start']} {stat['name']}, a child that nobody waited for")
    return found


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        stat = _stat(str(pid))
        pid = int(stat["parent"]) if stat else 0
    return found


def _stat(pid: str) -> dict[str, int | str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            head, _, tail = file.read().rpartition(") ")
    except OSError:
        return None
    fields = tail.split()
    return {"name": head.partition("(")[2], "state": fields[0], "parent": int(fields[1]), "start": fields[19]}


def _loops() -> list[str]:
    found = []
    for name in os.listdir("/sys/block") if os.path.isdir("/sys/block") else ():
        path = f"/sys/block/{name}/loop/backing_file"
        if name.startswith("loop") and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found.append(f"{name} {file.read().strip()}")
    return found


def _sysv() -> list[str]:
    found = []
    for kind in ("shm", "msg", "sem"):
        try:
            with open(f"/proc/sysvipc/{kind}", encoding="utf-8") as file:
                found += [f"{kind} {line.split()[1]}" for line in file.readlines()[1:]]
        except OSError:
            continue
    return found


def _files() -> list[str]:
    found: list[str] = []
    for root, depth in WATCHED.items():
        _list(root, depth, found)
    return [path for path in found if not IGNORED.match(path)]


def _list(folder: str, depth: int, found: list[str]) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        found.append(entry.path)
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            _list(entry.path, depth - 1, found)

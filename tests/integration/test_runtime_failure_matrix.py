"""A creation of every kind, failed once at each of its steps, leaves nothing.

The steps are noted by whoever comes to them: the runtime, the init, and the process between them where there is one.
Together the kinds of containers below come to every step that the runtime has; a test holds the source to that.
"""

import ctypes
import gc
import mmap
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box

from runtime_failures import FailAt, children, everything
from sampan.cgroup import mode
from sampan.errors import StageFailed
from sampan.linux.syscall import libc
from sampan.runtime import trace
from sampan.runtime.options import Options
from sampan.runtime.sandbox import create_sandbox, destroy_sandbox

pytestmark = pytest.mark.root

#: The modules of the runtime that make containers.
SOURCES = (
    "cgroup_mount create credentials devices hooks init launch mounts namespaces net_devices program rootfs scheduling "
    "sysctl users"
).split()
MAPPING = [{"containerID": 0, "hostID": 200000, "size": 65536}]
DEVICE = f"spfm{os.getpid() % 100000}"
LAST = "container is created"

Kind = Callable[[Box, Path], Options]


class Notes:
    """Names of steps, noted by this process and its children in memory that they share, one at a time (sem_init(3))."""

    _START = 64

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 18)
        self._count = ctypes.c_uint32.from_buffer(self._memory)
        self._turn = ctypes.byref(ctypes.c_char.from_buffer(self._memory, 16))
        assert libc.sem_init(self._turn, 1, 1) == 0

    def __call__(self, name: str) -> None:
        line = name.encode() + b"\n"
        while libc.sem_wait(self._turn):
            pass  # EINTR
        start = self._START + self._count.value
        self._memory[start : start + len(line)] = line
        self._count.value += len(line)
        libc.sem_post(self._turn)

    def names(self) -> list[str]:
        """Each once, in order."""
        written = self._memory[self._START : self._START + self._count.value]
        return list(dict.fromkeys(written.decode().splitlines()))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    # Descriptors in cycles that other tests left would be closed at some later time.
    gc.collect()
    yield made
    trace.hook = None
    made.discard()


def _owned(box: Box) -> None:
    for path in (box.rootfs, *box.rootfs.rglob("*")):
        os.lchown(path, 200000, 200000)


def usual(box: Box, path: Path) -> Options:
    """What engines ask for."""
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    box.config["root"]["readonly"] = True
    box.config["domainname"] = "example"
    box.config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": str(path), "options": ["rbind", "ro", "rslave"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]},
    ]
    box.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    box.process["oomScoreAdj"] = 100
    box.process["user"] = {"uid": 33, "gid": 33, "additionalGids": [44]}
    return Options()


def borrowed(box: Box, path: Path) -> Options:
    """The same, with an init that borrows the runtime's memory."""
    usual(box, path)
    return Options(expendable=True)


def in_user_and_time_namespaces(box: Box, path: Path) -> Options:
    """A process between makes the init; ids are mapped by the runtime, of a mount too."""
    _owned(box)
    box.linux["namespaces"] += [{"type": "user"}, {"type": "time"}]
    box.linux["uidMappings"] = box.linux["gidMappings"] = MAPPING
    box.linux["timeOffsets"] = {"boottime": {"secs": 5}}
    box.linux["rootfsPropagation"] = "private"
    box.linux["devices"] = [{"type": "c", "path": "/dev/full", "major": 1, "minor": 7}]
    box.config["mounts"] += [
        {"destination": "/plain", "type": "bind", "source": str(path), "options": ["bind"]},
        {"destination": "/data", "type": "bind", "source": str(path), "options": ["bind", "idmap"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]
    return Options()


def joining(box: Box, path: Path) -> Options:
    """Into a pod's namespaces."""
    sandbox = create_sandbox(str(path / "ns"), ["network", "ipc", "uts"], pause=True)
    os.close(sandbox.pidfd)
    joined = [{"type": kind, "path": where} for kind, where in sandbox.paths.items()]
    box.linux["namespaces"] = [{"type": "mount"}, {"type": "cgroup"}, *joined]
    del box.config["hostname"]
    return Options()


def joining_a_user_namespace(box: Box, path: Path) -> Options:
    """Into those of a pod that owns a user namespace."""
    _owned(box)
    sandbox = create_sandbox(
        str(path / "ns"),
        ["network", "ipc", "uts", "user"],
        uid_mappings=MAPPING,  # type: ignore[arg-type]
        gid_mappings=MAPPING,  # type: ignore[arg-type]
        pause=True,
    )
    os.close(sandbox.pidfd)
    joined = [{"type": kind, "path": where} for kind, where in sandbox.paths.items()]
    box.linux["namespaces"] = [{"type": "mount"}, {"type": "cgroup"}, *joined]
    box.linux["uidMappings"] = box.linux["gidMappings"] = MAPPING
    del box.config["hostname"]
    return Options()


def with_a_terminal(box: Box, path: Path) -> Options:
    """Whose master goes to a console socket."""
    box.process["terminal"] = True
    return Options(console_socket=str(path / "socket"))


def with_hooks(box: Box, _: Path) -> Options:
    """Of every kind that comes before the start."""
    box.config["hooks"] = {
        "prestart": [{"path": "/bin/true"}],
        "createRuntime": [{"path": "/bin/true"}],
        "createContainer": [{"path": "/bin/true"}],
        "startContainer": [{"path": "/bin/true"}],
    }
    return Options()


def with_a_listener(box: Box, path: Path) -> Options:
    """Of its seccomp filter, which is loaded before the rights go."""
    box.process["noNewPrivileges"] = False
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path / "socket"),
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    }
    return Options()


def with_all_that_is_rare(box: Box, path: Path) -> Options:
    """Network devices, devices, schedules, policies."""
    box.linux["netDevices"] = {DEVICE: {"name": "eth0"}}
    box.linux["devices"] = [{"type": "c", "path": "/dev/mine", "major": 1, "minor": 3}]
    box.linux["personality"] = {"domain": "LINUX"}
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    box.linux["maskedPaths"] = ["/proc/kcore", "/proc/acpi", "/sys/firmware", "/sys/fs"]
    box.process["scheduler"] = {"policy": "SCHED_BATCH"}
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 4}
    box.linux["resources"] = {"pids": {"limit": 20}, "devices": [{"allow": False, "access": "rwm"}]}
    return Options(no_pivot=True)


def without_a_mount_namespace(box: Box, _: Path) -> Options:
    """Its mounts are the runtime's own."""
    box.linux["namespaces"] = [{"type": "pid"}]
    box.config["mounts"] = [one for one in box.config["mounts"] if one["type"] in ("proc", "tmpfs")]
    del box.config["hostname"]
    return Options()


def sharing_mounts(box: Box, _: Path) -> Options:
    """With the machine."""
    box.linux["rootfsPropagation"] = "rshared"
    return Options()


def under_systemd(box: Box, _: Path) -> Options:
    """Its group is a scope."""
    box.linux["cgroupsPath"] = f":sampan-test:{box.container_id}"
    box.linux["resources"] = {"pids": {"limit": 20}}
    return Options(systemd_cgroup=True)


KINDS: tuple[Kind, ...] = (
    usual,
    borrowed,
    in_user_and_time_namespaces,
    joining,
    joining_a_user_namespace,
    with_a_terminal,
    with_hooks,
    with_a_listener,
    with_all_that_is_rare,
    without_a_mount_namespace,
    sharing_mounts,
    pytest.param(  # type: ignore[assignment]
        under_systemd,
        marks=pytest.mark.skipif(
            not os.path.isdir("/run/systemd/system") or mode() != "v2", reason="systemd is not the init here"
        ),
    ),
)


@pytest.fixture
def device() -> Iterator[str]:
    """A device of the host, with addresses."""
    subprocess.run(["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", f"{DEVICE}p"], check=True)
    subprocess.run(["ip", "address", "add", "198.51.100.9/32", "dev", DEVICE], check=True)
    subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)
    yield DEVICE
    _give_device(DEVICE)
    subprocess.run(["ip", "link", "delete", f"{DEVICE}p"], check=True)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[None]:
    """Whoever is told of terminals and listeners: it takes what comes, unread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen(1000)
        yield


def _host_device() -> str:
    command = ["ip", "-o", "address", "show", "dev", DEVICE, "up"]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return said.stdout.partition(":")[2] if "198.51.100.9" in said.stdout else said.stderr


def _everything(box: Box, options: Options) -> dict[str, object]:
    """What could be left; the network device, which a creation takes along, among it."""
    return {**everything(box, systemd=options.systemd_cgroup), "network device": _host_device()}


def _steps(box: Box, options: Options) -> list[str]:
    """Names of the steps of a creation that goes well."""
    trace.hook = notes = Notes()
    created = box.create("sleep", "100", options=options)
    trace.hook = None
    box.discard(created)
    names = notes.names()
    return names[names.index("make state directory") : names.index(LAST)]


def _clean(path: Path) -> None:
    if (path / "ns").exists():
        found = [pid for pid in children() if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/pause")]
        destroy_sandbox(str(path / "ns"), pause_pid=found[0] if found else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_at_any_step_leaves_nothing(box: Box, tmp_path: Path, kind: Kind, device: str, agent: None) -> None:
    options = kind(box, tmp_path)
    try:
        steps = _steps(box, options)
        _give_device(device)
        before = _everything(box, options)
        for name in steps:
            if name == "container is set up":
                continue
            trace.hook = FailAt(name)
            with pytest.raises(StageFailed, match="injected") as caught:
                box.discard(box.create("sleep", "100", options=options))
            trace.hook = None
            assert caught.value.stage == name
            assert _everything(box, options) == before, name
        # And none of it stands in the way of the next.
        box.discard(box.create("sleep", "100", options=options))
    finally:
        trace.hook = None
        _clean(tmp_path)


def _give_device(name: str) -> None:
    """The creation that went well took the device along."""
    if not os.path.exists(f"/sys/class/net/{name}"):
        # The other end lives until the kernel has got round to the namespace that ended.
        subprocess.run(["ip", "link", "delete", f"{name}p"], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
        subprocess.run(["ip", "address", "add", "198.51.100.9/32", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)


def test_the_kinds_come_to_every_step_of_the_source(tmp_path: Path, device: str, agent: None) -> None:
    written = set()
    for name in SOURCES:
        text = (Path(trace.__file__).parent / f"{name}.py").read_text()
        written |= set(re.findall(r"""trace\.step\(\s*f?["']([^"'{]+)""", text))
    come_to: set[str] = set()
    for number, kind in enumerate(KINDS):
        if not callable(kind):
            continue
        path = tmp_path / str(number)
        path.mkdir()
        (path / "socket").symlink_to(tmp_path / "socket")
        box = Box(path)
        try:
            come_to |= set(_steps(box, kind(box, path)))
        finally:
            trace.hook = None
            box.discard()
            _clean(path)
    missed = {step for step in written if not any(name.startswith(step) for name in come_to)}
    assert missed <= {LAST}

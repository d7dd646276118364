"""What the container's process is: user, rights, limits, names, schedule."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box, read_all
from seccomp_agent import agent

from sampan.errors import StageFailed, Unsupported
from sampan.runtime import launch
from sampan.runtime.execute import confined
from sampan.runtime.handler import Stdio

pytestmark = pytest.mark.root


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


def _status(box: Box) -> dict[str, str]:
    text = box.sh("cat /proc/self/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_root_has_the_capabilities_it_was_given(box: Box) -> None:
    status = _status(box)
    expected = f"{1 << 0 | 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 27:016x}"
    assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == (expected,) * 3
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16,) * 2
    assert status["NoNewPrivs"] == "1"


def test_without_capabilities_it_has_none(box: Box) -> None:
    del box.process["capabilities"]
    status = _status(box)
    assert {status[f"Cap{kind}"] for kind in ("Bnd", "Prm", "Eff", "Inh", "Amb")} == {"0" * 16}


def _says(box: Box, process: dict[str, object]) -> str:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    inside = box.handler.exec(box.container_id, process, Stdio(-1, writer, writer))
    os.close(writer)
    said = read_all(reader)
    os.close(reader)
    assert os.waitpid(inside.pid, 0)[1] == 0, said
    return said


@pytest.mark.parametrize("namespaces", [[], ["user"]])
def test_an_exec_that_names_no_confinement_has_the_containers(box: Box, namespaces: list[str]) -> None:
    """No more than a process object must have: that is no leave to be less confined than all others in there."""
    if namespaces:
        box.linux["namespaces"] += [{"type": kind} for kind in namespaces]
        box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
        for path in (box.rootfs, *box.rootfs.rglob("*")):
            os.lchown(path, 200000, 200000)
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    args = ["/bin/sh", "-c", "grep Cap /proc/self/status; grep 'open files' /proc/self/limits"]
    said = _says(box, {"cwd": "/", "args": args}).split()
    expected = f"{1 << 0 | 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 27:016x}"
    assert said[1:10:2] == ["0" * 16, expected, expected, expected, "0" * 16]
    assert said[13:15] == ["100", "200"]
    said = _says(box, {"cwd": "/", "args": args, "capabilities": {}, "rlimits": []}).split()
    assert said[1:10:2] == ["0" * 16] * 5
    box.discard(created)


def test_an_execs_own_confinement_comes_first() -> None:
    own = {"capabilities": {}, "apparmorProfile": "p", "selinuxLabel": "l", "rlimits": [{"type": "RLIMIT_CPU"}]}
    given = {"args": ["sh"], "cwd": "/"}
    container = {"process": {**own, "noNewPrivileges": True, "args": ["x"], "env": ["A=b"]}}
    assert confined(given, container) == given | {key: value for key, value in own.items() if value}
    more = {"capabilities": {"bounding": ["CAP_KILL"]}, "apparmorProfile": "unconfined", "selinuxLabel": "m"}
    assert confined(given | more, container) == given | more | {"rlimits": own["rlimits"]}
    assert confined(given, {"process": {"capabilities": more["capabilities"]}})["capabilities"] == more["capabilities"]
    assert confined(given, {}) == given


def test_a_user_has_only_ambient_capabilities(box: Box) -> None:
    box.process["user"] = {"uid": 33, "gid": 34, "additionalGids": [50, 60], "umask": 0o027}
    box.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    }
    status = _status(box)
    assert status["Uid"].split() == ["33"] * 4
    assert status["Gid"].split() == ["34"] * 4
    assert status["Groups"].split() == ["50", "60"]
    assert status["Umask"] == "0027"
    bind = f"{1 << 10:016x}"
    assert (status["CapEff"], status["CapPrm"], status["CapInh"], status["CapAmb"]) == (bind,) * 4
    assert status["CapBnd"] == f"{1 << 10 | 1:016x}"


def test_no_supplementary_groups_are_inherited(box: Box) -> None:
    os.setgroups([4, 24])
    try:
        assert _status(box)["Groups"] == ""
    finally:
        os.setgroups([])


def test_environment_is_the_configurations_alone(box: Box) -> None:
    box.process["env"] = ["PATH=/bin", "TWICE=1", "HOME=", "TWICE=2=3", "EMPTY="]
    os.environ["SAMPAN_LEAK"] = "1"
    try:
        said = box.run("cat", "/proc/self/environ").output
    finally:
        del os.environ["SAMPAN_LEAK"]
    assert said.split("\0") == ["PATH=/bin", "TWICE=2=3", "HOME=/root", "EMPTY=", ""]


def test_home_is_looked_up(box: Box) -> None:
    box.process["user"] = {"uid": 33, "gid": 33}
    assert box.sh("echo $HOME") == "/srv/web"


def test_names(box: Box) -> None:
    box.config["domainname"] = "example"
    assert box.sh("hostname; cat /proc/sys/kernel/domainname") == "box\nexample"


def test_cwd_is_made_and_entered(box: Box) -> None:
    box.process["cwd"] = "/some/where"
    assert box.sh("pwd") == "/some/where"


def test_a_cwd_that_a_running_container_lacks_is_not_made(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    with pytest.raises(StageFailed, match="change directory at /some/where: ENOENT"):
        box.exec("pwd", process={"cwd": "/some/where"})
    assert not (box.rootfs / "some").exists()
    box.discard(created)


def test_rlimits(box: Box) -> None:
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_CPU", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    said = box.sh("cat /proc/self/limits")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in said.splitlines()[1:]}
    assert rows["Max open files"] == ["100", "200"]
    assert rows["Max core file size"] == ["0", "0"]


def test_what_needs_more_rights_than_the_machine_gives_is_warned_of(box: Box) -> None:
    from sampan.linux import capabilities

    if capabilities.get()[0] >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1:
        pytest.skip("this machine gives CAP_SYS_RESOURCE")
    box.process["oomScoreAdj"] = -900
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 2**30, "hard": 2**30}]
    ended = box.run("true")
    assert ended.status == 0
    assert len(ended.created.warnings) == 2
    assert "CAP_SYS_RESOURCE" in ended.created.warnings[0]


def test_capabilities_that_cannot_be_given_are_warned_of(box: Box) -> None:
    """As the specification wants it: told of, and no reason to fail."""
    box.process["capabilities"]["permitted"] = ["CAP_KILL", "CAP_TO_FLY"]
    box.process["capabilities"]["bounding"] += ["CAP_SYS_RESOURCE"]
    ended = box.run("true")
    assert ended.status == 0
    warnings = " ".join(ended.created.warnings)
    assert "process.capabilities: CAP_TO_FLY: not known" in warnings
    assert "CAP_KILL" not in warnings
    from sampan.linux import capabilities

    granted = capabilities.get()[1] >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1
    assert ("CAP_SYS_RESOURCE: not granted" in warnings) is not bool(granted)


def test_oom_score(box: Box) -> None:
    box.process["oomScoreAdj"] = 500
    assert box.sh("cat /proc/self/oom_score_adj") == "500"


def test_sysctls(box: Box) -> None:
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345678", "net/ipv4/conf/lo/forwarding": "1"}
    box.linux["readonlyPaths"] = []
    assert box.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax") == "1\n12345678"


def test_loopback_is_up(box: Box) -> None:
    assert box.sh("cat /sys/class/net/lo/flags") == "0x9"


def _io_priority(pid: int) -> tuple[int, int]:
    """Class and level of ioprio_get(2)."""
    import ctypes

    number = 252 if os.uname().machine == "x86_64" else 31
    value = ctypes.CDLL(None).syscall(number, 1, pid)
    return value >> 13, value & 0x1FFF


@pytest.mark.parametrize(
    ("scheduler", "policy", "nice"),
    [
        ({"policy": "SCHED_BATCH", "nice": 5}, os.SCHED_BATCH, 5),
        ({"policy": "SCHED_IDLE", "nice": 5}, os.SCHED_IDLE, None),
        (
            {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            os.SCHED_OTHER | os.SCHED_RESET_ON_FORK,
            0,
        ),
    ],
)
@pytest.mark.parametrize(
    ("priority", "found"),
    [
        ({"class": "IOPRIO_CLASS_IDLE", "priority": 0}, (3, 0)),
        ({"class": "IOPRIO_CLASS_BE", "priority": 6}, (2, 6)),
        ({"class": "IOPRIO_CLASS_RT", "priority": 1}, (1, 1)),
    ],
)
def test_scheduler_and_io_priority(
    box: Box,
    scheduler: dict[str, object],
    policy: int,
    nice: int | None,
    priority: dict[str, object],
    found: tuple[int, int],
) -> None:
    box.process["scheduler"] = scheduler
    box.process["ioPriority"] = priority
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    inside = box.handler.exec(box.container_id, {**box.process, "args": ["sleep", "100"]}, Stdio())
    for pid in (created.pid, inside.pid):
        assert os.sched_getscheduler(pid) == policy
        assert nice is None or os.getpriority(os.PRIO_PROCESS, pid) == nice
        assert _io_priority(pid) == found
    box.handler.kill(box.container_id, 9)
    os.waitpid(inside.pid, 0)
    box.discard(created)


def test_what_the_scheduler_refuses_is_named(box: Box) -> None:
    box.process["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 3, "period": 1}
    with pytest.raises(StageFailed, match="set scheduler: E"):
        box.create("true")


def test_exec_cpu_affinity(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    ended = box.exec("grep", "Cpus_allowed_list", "/proc/self/status", process={"execCPUAffinity": {"final": "0"}})
    assert ended.output.split()[-1] == "0"
    box.discard(created)


def test_personality(box: Box) -> None:
    box.linux["personality"] = {"domain": "LINUX32"}
    created = box.create("sleep", "100")
    with open(f"/proc/{created.pid}/personality") as file:
        assert int(file.read(), 16) == 8
    box.handler.start(box.container_id)
    assert int(box.exec("cat", "/proc/self/personality").output, 16) == 8
    box.discard(created)


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, " bind:0 "),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, " bind=static:0 "),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}, " interleave=relative:0 "),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, " prefer:0 "),
        ({"mode": "MPOL_LOCAL"}, " local "),
        ({"mode": "MPOL_DEFAULT"}, " default "),
    ],
)
def test_memory_policy(box: Box, policy: dict[str, object], found: str) -> None:
    box.linux["memoryPolicy"] = policy
    created = box.create("sleep", "100")
    with open(f"/proc/{created.pid}/numa_maps") as file:
        assert found in file.read()
    box.handler.start(box.container_id)
    assert found in box.exec("cat", "/proc/self/numa_maps").output
    box.discard(created)


def test_a_memory_policy_that_the_kernel_refuses_is_named(box: Box) -> None:
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND"}
    with pytest.raises(StageFailed, match="set memory policy: EINVAL"):
        box.create("true")


def test_time_namespace_has_its_offsets(box: Box) -> None:
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {"boottime": {"secs": 100000000, "nanosecs": 5}, "monotonic": {"secs": 7}}
    created = box.create("sleep", "100")
    with open(f"/proc/{created.pid}/timens_offsets") as file:
        said = [line.split() for line in file]
    assert said == [["monotonic", "7", "0"], ["boottime", "100000000", "5"]]
    box.handler.start(box.container_id)
    assert float(box.exec("cut", "-d ", "-f1", "/proc/uptime").output) > 100000000
    box.discard(created)


def test_namespaces_joined_by_path(box: Box, tmp_path: Path) -> None:
    from sampan.runtime.sandbox import create_sandbox, destroy_sandbox

    sandbox = create_sandbox(str(tmp_path / "ns"), ["network", "ipc", "uts"], hostname="pod", pause=True)
    try:
        kinds = [{"type": kind, "path": path} for kind, path in sandbox.paths.items()]
        box.linux["namespaces"] = [*kinds, {"type": "mount"}]
        del box.config["hostname"]
        said = box.sh("hostname; ps -o pid,comm | head -n 2 | tail -n 1; readlink /proc/self/ns/net").split("\n")
        assert said[0] == "pod"
        assert said[1].split()[0] == "1"
        assert said[2] == os.readlink(f"/proc/{sandbox.pause_pid}/ns/net")
    finally:
        os.close(sandbox.pidfd)
        destroy_sandbox(str(tmp_path / "ns"), pause_pid=sandbox.pause_pid)


def test_a_namespace_of_another_type_is_refused(box: Box) -> None:
    box.linux["namespaces"][1]["path"] = "/proc/self/ns/uts"
    with pytest.raises(StageFailed, match="not a network namespace"):
        box.create("true")
    box.linux["namespaces"][1]["path"] = "/etc/passwd"
    with pytest.raises(StageFailed, match="not a network namespace"):
        box.create("true")


def test_labels_are_refused_where_no_module_would_keep_them(box: Box) -> None:
    if not os.path.exists("/sys/module/apparmor"):
        box.process["apparmorProfile"] = "some-profile"
        with pytest.raises(Unsupported, match=r"process\.apparmorProfile"):
            box.create("true")
        box.process["apparmorProfile"] = "unconfined"
        assert box.run("true").status == 0
        del box.process["apparmorProfile"]
    if not os.path.exists("/sys/fs/selinux"):
        box.linux["mountLabel"] = "system_u:object_r:container_file_t:s0"
        ended = box.run("true")
        assert ended.status == 0
        assert ended.created.warnings == (
            "linux.mountLabel: SELinux is not enabled on this machine: mounts have no label",
        )
        box.process["selinuxLabel"] = "system_u:system_r:container_t:s0"
        with pytest.raises(Unsupported, match=r"process\.selinuxLabel"):
            box.create("true")


def test_a_seccomp_listener_goes_to_its_agent(box: Box, tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "some words",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    }
    with pytest.raises(StageFailed, match="ENOENT"):
        box.create("sleep", "100")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        created = box.create("sleep", "100")
        with listener.accept()[0] as connection:
            document, fds, _, _ = socket.recv_fds(connection, 65536, 1)
    said = json.loads(document)
    assert (said["fds"], said["metadata"], said["pid"]) == (["seccompFd"], "some words", created.pid)
    assert said["state"]["id"] == box.container_id
    assert os.readlink(f"/proc/self/fd/{fds[0]}") == "anon_inode:seccomp notify"
    os.close(fds[0])
    box.discard(created)


#: What bypass4netns asks to be told of, and what the runtime itself calls about then.
NOTIFIED = ["bind", "close", "connect", "sendmsg", "sendto", "setsockopt", "recvmsg", "read", "prctl", "wait4"]


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("tracing", [False, True])
def test_a_filter_may_notify_of_what_hands_its_listener_on(
    box: Box, tmp_path: Path, no_new_privileges: bool, tracing: bool
) -> None:
    """The process is stopped by its filter until the agent has the listener: it can't be who sends it."""
    path = str(tmp_path / "agent")
    rule = {"names": NOTIFIED, "action": "SCMP_ACT_NOTIFY"}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "syscalls": [rule]}
    box.process["noNewPrivileges"] = no_new_privileges
    if tracing:
        # A process between sets up what exec adds.
        box.process["capabilities"]["bounding"].append("CAP_SYS_PTRACE")
    with agent(path) as seen:
        created = box.create("sleep", "100")
        box.handler.start(box.container_id)
        assert box.exec("echo", "well").output == "well\n"
        with open(seen) as file:
            lines = file.read().split()
        box.discard(created)
    assert lines.count("listener") == 2
    assert {"46", "47"} <= set(lines) or os.uname().machine != "x86_64"  # sendmsg, recvmsg


def _untraceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a runtime without CAP_SYS_PTRACE."""

    def refuse(_pidfd: int, _number: int) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(launch, "pidfd_getfd", refuse)


def test_without_the_right_to_take_a_listener_it_is_sent(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "agent")
    rule = {"names": ["mkdir", "close"], "action": "SCMP_ACT_NOTIFY"}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "syscalls": [rule]}
    _untraceable(monkeypatch)
    with agent(path) as seen:
        assert box.sh("mkdir /tmp/x; echo made") == "made"
        with open(seen) as file:
            assert file.readline() == "listener\n"
        rule["names"] = ["sendmsg"]
        with pytest.raises(StageFailed, match="take seccomp listener: EPERM"):
            box.create("true")


def test_seccomp_filters(box: Box) -> None:
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}],
    }
    for no_new_privileges in (True, False):
        box.process["noNewPrivileges"] = no_new_privileges
        ended = box.run("sh", "-c", "mkdir /tmp/x; grep Seccomp: /proc/self/status")
        assert "File descriptor in bad state" in ended.output
        assert ended.output.split()[-1] == "2"


def test_a_strict_filter_lets_the_trampoline_through(box: Box) -> None:
    """Only what the program itself needs: of the runtime's own calls, execve(2) alone."""
    names = ["execve", "exit_group", "exit", "brk", "mmap", "mprotect", "munmap", "arch_prctl",
             "set_tid_address", "set_robust_list", "rseq", "getrandom", "prlimit64", "readlink", "readlinkat", "uname",
             "getuid", "geteuid", "getgid", "getegid", "prctl", "rt_sigaction"]  # fmt: skip
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }
    assert box.run("true").status == 0

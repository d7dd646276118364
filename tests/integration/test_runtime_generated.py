"""Configurations that nobody wrote: each makes a container or is refused in plain words, and leaves nothing behind.

What a validator lets through reaches the kernel here. A fault of the runtime itself would show as an error that names a
class of Python's, or as something left behind.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_bundle import Box

from sampan.cgroup import open_group
from sampan.cgroup.hierarchy import layout
from sampan.errors import SampanError

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: More than the fixed examples: SAMPAN_EXAMPLES=5000, and then other ones each time.
EXAMPLES = int(os.environ.get("SAMPAN_EXAMPLES", "0"))
CGROUPS = f"/sampan-test-generated-{os.getpid()}"
A_FAULT = re.compile(r"\b[A-Z][a-z]+[A-Za-z]*(?:Error|Exception): |Traceback")

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
names = st.text("abcXYZ019-_.é ", min_size=1, max_size=8)
paths = st.one_of(
    names.map("/{}".format),
    st.sampled_from(
        ("/", "/dev", "/dev/null", "/proc/self", "/etc/passwd", "/a/b/c", "/bin/sh/x", "//x//y/", "/sys/fs")
    ),
)
ids = st.sampled_from((0, 1, 33, 65534, 65536, 2**31, 2**32 - 2))
sizes = st.sampled_from((-1, 0, 1, 4096, 1 << 20, 64 << 20, 2**63 - 1))
capabilities = st.lists(st.sampled_from(("CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_NONE", "")), max_size=3)
options = st.lists(
    st.sampled_from(
        ("ro", "rw", "rro", "nosuid", "noexec", "bind", "rbind", "private", "rslave", "shared", "tmpcopyup", "idmap",
         "ridmap", "remount", "size=1m", "size=x", "mode=0", "sync", "noatime", "relatime", "none", "a=b,c", "=", ",")
    ),
    max_size=4,
)  # fmt: skip
HOOK = st.fixed_dictionaries(
    {"path": st.sampled_from(("/bin/true", "/bin/false", "/none"))},
    optional={
        "args": st.lists(words, max_size=2),
        "env": st.lists(st.sampled_from(("A=b", "A=", "A", "=b", "")), max_size=2),
        "timeout": st.just(5),
    },
)


def _fields(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


PROCESS = _fields(
    env=st.lists(st.one_of(st.just("PATH=/bin"), st.just("PATH="), words), max_size=3),
    cwd=paths,
    user=_fields(uid=ids, gid=ids, umask=st.sampled_from((0, 0o777)), additionalGids=st.lists(ids, max_size=3)),
    capabilities=_fields(
        **dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), capabilities)
    ),
    noNewPrivileges=st.booleans(),
    terminal=st.booleans(),
    consoleSize=st.just({"height": 3, "width": 65535}),
    oomScoreAdj=st.sampled_from((-1000, 0, 1000)),
    apparmorProfile=st.sampled_from(("", "unconfined", "no-such-profile")),
    rlimits=st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(("RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_STACK", "RLIMIT_NPROC", "RLIMIT_CORE")),
                "soft": st.sampled_from((0, 3, 1 << 26, 2**64 - 1)),
                "hard": st.sampled_from((0, 1 << 30, 2**64 - 1)),
            }
        ),
        max_size=2,
        unique_by=lambda one: str(one["type"]),
    ),
    scheduler=st.fixed_dictionaries(
        {"policy": st.sampled_from(("SCHED_OTHER", "SCHED_IDLE", "SCHED_FIFO", "SCHED_DEADLINE", "SCHED_ISO"))},
        optional={"nice": st.integers(-20, 19), "priority": st.integers(0, 99)},
    ),
    ioPriority=st.fixed_dictionaries({"class": st.sampled_from(("IOPRIO_CLASS_RT", "IOPRIO_CLASS_IDLE"))}),
    execCPUAffinity=st.just({"initial": "0", "final": "0-9999"}),
)
RESOURCES = _fields(
    memory=_fields(limit=sizes, swap=sizes, reservation=sizes, swappiness=st.integers(0, 100), kernel=sizes),
    cpu=_fields(
        shares=st.sampled_from((0, 2, 1024, 2**63)),
        quota=st.sampled_from((-1, 0, 50000)),
        period=st.sampled_from((0, 100000, 2**60)),
        burst=st.sampled_from((0, 1000)),
        cpus=st.sampled_from(("", "0", "0-1", "4096", "x")),
        mems=st.sampled_from(("", "0", "7")),
        idle=st.integers(0, 1),
    ),
    pids=_fields(limit=st.sampled_from((-1, 0, 8, 2**62))),
    devices=st.lists(
        st.fixed_dictionaries(
            {"allow": st.booleans()},
            optional={
                "type": st.sampled_from("abc"),
                "major": st.integers(-1, 9),
                "access": st.sampled_from(("r", "rwm")),
            },
        ),
        max_size=3,
    ),
    unified=st.dictionaries(st.sampled_from(("pids.max", "no.such", "../x", "cgroup.procs")), words, max_size=1),
    rdma=st.dictionaries(names, st.just({"hcaHandles": 1}), max_size=1),
    network=_fields(classID=st.integers(0, 2**32 - 1)),
    hugepageLimits=st.lists(
        st.fixed_dictionaries({"pageSize": st.sampled_from(("2MB", "3MB", "/")), "limit": st.just(0)}), max_size=1
    ),
)
LINUX = _fields(
    resources=RESOURCES,
    cgroupsPath=names.map((CGROUPS + "/{}").format),
    sysctl=st.dictionaries(
        st.sampled_from(
            ("net.ipv4.ip_forward", "net/ipv4/conf/lo/forwarding", "net.none", "kernel.sem", "kernel.panic")
        ),
        st.one_of(st.just("1"), words),
        max_size=2,
    ),
    devices=st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from("cbup"), "path": paths, "major": st.integers(0, 9), "minor": st.integers(0, 9)},
            optional={"fileMode": st.sampled_from((0, 0o20666, 2**32 - 1)), "uid": ids, "gid": ids},
        ),
        max_size=2,
    ),
    maskedPaths=st.lists(paths, max_size=2),
    readonlyPaths=st.lists(paths, max_size=2),
    rootfsPropagation=st.sampled_from(("", "private", "rslave", "unbindable")),
    mountLabel=words,
    personality=st.just({"domain": "LINUX32"}),
    memoryPolicy=st.fixed_dictionaries(
        {"mode": st.sampled_from(("MPOL_BIND", "MPOL_LOCAL", "MPOL_DEFAULT"))},
        optional={"nodes": st.sampled_from(("", "0", "63")), "flags": st.just(["MPOL_F_STATIC_NODES"])},
    ),
    seccomp=st.fixed_dictionaries(
        {"defaultAction": st.sampled_from(("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"))},
        optional={
            "architectures": st.lists(
                st.sampled_from(("SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_SHEB")), max_size=2
            ),
            "flags": st.lists(st.sampled_from(("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC")), max_size=1),
            "syscalls": st.lists(
                st.fixed_dictionaries(
                    {
                        "names": st.lists(
                            st.sampled_from(("mkdir", "nonsense", "personality")), min_size=1, max_size=2
                        ),
                        "action": st.sampled_from(("SCMP_ACT_ERRNO", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS")),
                    },
                    optional={"errnoRet": st.integers(0, 5000)},
                ),
                max_size=2,
            ),
        },
    ),
    netDevices=st.dictionaries(names, _fields(name=names), max_size=1),
    timeOffsets=st.just({"boottime": {"secs": 2**62}}),
)
MOUNT = st.fixed_dictionaries(
    {
        "destination": paths,
        "type": st.sampled_from(("tmpfs", "bind", "proc", "sysfs", "mqueue", "devpts", "cgroup", "nosuchfs", "ramfs")),
        "source": st.sampled_from(("", "source", "nowhere")),
        "options": options,
    },
    optional={"uidMappings": st.just([{"containerID": 0, "hostID": 7, "size": 9}])},
)


@st.composite
def _configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Changes to the usual configuration."""
    kinds = ["pid", "network", "ipc", "uts", "mount", *draw(st.sets(st.sampled_from(("user", "time", "cgroup"))))]
    mapping = [{"containerID": 0, "hostID": draw(st.sampled_from((0, 200000))), "size": 65536}]
    linux = {**draw(LINUX), "namespaces": [{"type": kind} for kind in kinds]}
    if "user" in kinds:
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    return {
        "process": draw(PROCESS),
        "linux": linux,
        "mounts": draw(st.lists(MOUNT, max_size=3)),
        "hostname": draw(names),
        "hooks": draw(
            _fields(**dict.fromkeys(("prestart", "createContainer", "poststop"), st.lists(HOOK, max_size=1)))
        ),
        "annotations": draw(st.dictionaries(words, words, max_size=2)),
        "root": {
            "path": draw(st.sampled_from(("rootfs", "rootfs", "rootfs", "none"))),
            "readonly": draw(st.booleans()),
        },
    }


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def _descriptors() -> list[str]:
    """What is open, but for trampolines, which are kept for the next."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return sorted(target for target in targets if target != "/sampan-init")


@settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(changes=_configurations())
def test_a_generated_configuration_is_run_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    box = Box(tmp_path_factory.mktemp("box"))
    (box.bundle / "source").mkdir()
    process = {**box.process, **changes.pop("process"), "args": ["sleep", "100"]}
    mounts = [*box.config["mounts"], *changes.pop("mounts")]
    box.config = {**box.config, **changes, "process": process, "mounts": mounts}
    before = _children(), _descriptors()
    refused = ""
    try:
        box.discard(box.create())
    except SampanError as error:
        refused = str(error)
        box.discard()
    assert not A_FAULT.search(refused), refused
    assert not os.path.isdir(box.handler.root) or os.listdir(box.handler.root) == []
    assert (_children(), _descriptors()) == before
    group = open_group(box.linux.get("cgroupsPath") or f"/sampan/{box.container_id}")
    assert not group.exists()
    assert not any(os.path.exists(point + CGROUPS) for point in layout().controllers.values())
    with open("/proc/self/mountinfo") as table:
        assert str(box.directory) not in table.read()

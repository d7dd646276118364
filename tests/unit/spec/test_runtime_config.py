"""config.json: every fault is found, named by its path, and reported with the others."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.errors import InvalidInput
from sampan.spec import sysctl_names
from sampan.spec.runtime_config import InvalidConfig, validate, validate_process, validate_resources


def _config() -> dict[str, Any]:
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "env": ["A=b"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network")]},
    }


def _put(document: dict[str, Any], path: str, value: object) -> None:
    *way, last = path.split(".")
    for name in way:
        document = document.setdefault(name, {})
    document[last] = value


def test_a_sound_configuration_passes() -> None:
    config = _config()
    assert validate(config) is config


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("ociVersion", 1, "ociVersion"),
        ("ociVersion", "2.0.0", "ociVersion"),
        ("ociVersion", "one", "ociVersion"),
        ("root", None, "root"),
        ("root", {}, "root.path"),
        ("root.path", "", "root.path"),
        ("root.readonly", "yes", "root.readonly"),
        ("process", 7, "process"),
        ("linux.namespaces", [{"type": "user"}], "linux.namespaces"),
        ("process.args", [], "process.args"),
        ("process.args", ["a\0b"], "process.args[0]"),
        ("process.args", [""], "process.args[0]"),
        ("process.cwd", "here", "process.cwd"),
        ("process.env", ["novalue"], "process.env[0]"),
        ("process.env", ["=x"], "process.env[0]"),
        ("process.user.uid", -1, "process.user.uid"),
        ("process.user.uid", 2**32 - 1, "process.user.uid"),
        ("process.user.gid", True, "process.user.gid"),
        ("process.user.additionalGids", [1, 2**40], "process.user.additionalGids[1]"),
        ("process.rlimits", [{"type": "RLIMIT_WHAT", "soft": 1, "hard": 1}], "process.rlimits[0].type"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "process.rlimits[0].soft"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "process.rlimits[1].type"),
        ("process.oomScoreAdj", 1001, "process.oomScoreAdj"),
        ("process.scheduler", {"policy": "SCHED_LUCK"}, "process.scheduler.policy"),
        ("process.scheduler", {"policy": "SCHED_BATCH", "priority": 1}, "process.scheduler.priority"),
        ("process.scheduler", {"policy": "SCHED_RR", "priority": 1, "runtime": 1}, "process.scheduler.runtime"),
        ("process.scheduler", {"policy": "SCHED_OTHER", "deadline": 1}, "process.scheduler.deadline"),
        ("process.scheduler", {"policy": "SCHED_IDLE", "period": 1}, "process.scheduler.period"),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority"),
        ("process.execCPUAffinity", {"initial": "1-"}, "process.execCPUAffinity.initial"),
        ("process.execCPUAffinity", {"final": "3-1"}, "process.execCPUAffinity.final"),
        ("process.capabilities", {"bounding": "all"}, "process.capabilities.bounding"),
        ("mounts", [{"destination": "relative", "type": "tmpfs"}], "mounts[0].destination"),
        ("mounts", [{"destination": "/", "type": "tmpfs"}], "mounts[0].destination"),
        ("mounts", [{"destination": "//a/.././", "source": "/x", "options": ["bind"]}], "mounts[0].destination"),
        ("mounts", [{"destination": "/x", "options": ["bind"]}], "mounts[0].source"),
        ("mounts", [{"destination": "/x"}], "mounts[0].type"),
        ("mounts", [{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}], "mounts[0].options"),
        ("mounts", [{"destination": "/x", "type": "proc", "options": ["tmpcopyup"]}], "mounts[0].options"),
        (
            "mounts",
            [{"destination": "/x", "source": "/y", "options": ["bind", "remount", "ridmap"]}],
            "mounts[0].options",
        ),
        ("linux.namespaces", [{"type": "mount"}, {"type": "moon"}], "linux.namespaces[1].type"),
        ("linux.namespaces", [{"type": "mount"}] * 2, "linux.namespaces[1].type"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "pid", "path": "x"}], "linux.namespaces[1].path"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets"),
        ("linux.rootfsPropagation", "sideways", "linux.rootfsPropagation"),
        ("linux.maskedPaths", ["proc/kcore"], "linux.maskedPaths[0]"),
        ("linux.sysctl", {"kernel.panic": "1"}, "linux.sysctl['kernel.panic']"),
        ("linux.sysctl", {"net.ipv4.ip_forward": 1}, "linux.sysctl['net.ipv4.ip_forward']"),
        ("linux.devices", [{"type": "c", "path": "/dev/x"}], "linux.devices[0].major"),
        ("linux.devices", [{"type": "z", "path": "/dev/x"}], "linux.devices[0].type"),
        ("linux.personality", {"domain": "LINUX", "flags": ["x"]}, "linux.personality.flags"),
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt"),
        ("linux.intelRdt", {}, "linux.intelRdt"),
        (
            "linux.seccomp",
            {"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]},
            "linux.seccomp.listenerPath",
        ),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
        ("linux.seccomp", {}, "linux.seccomp.defaultAction"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_LOG", "flags": ["X"]}, "linux.seccomp.flags[0]"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_LOG", "architectures": ["X"]}, "linux.seccomp.architectures[0]"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_LOG", "defaultErrnoRet": 1}, "linux.seccomp.defaultErrnoRet"),
        (
            "linux.seccomp",
            {"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]},
            "linux.seccomp.flags",
        ),
        (
            "linux.seccomp",
            {
                "defaultAction": "SCMP_ACT_LOG",
                "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}],
                "listenerPath": "/x",
            },
            "linux.seccomp.syscalls[0].action",
        ),
        ("linux.netDevices", {"../x": {}}, "linux.netDevices['../x']"),
        ("linux.netDevices", {"a": {"name": "x%s"}}, "linux.netDevices['a']"),
        ("linux.netDevices", {"a": {"name": "b"}, "b": {}}, "linux.netDevices['b']"),
        ("linux.cgroupsPath", "/a/../../b", "linux.cgroupsPath"),
        ("linux.resources", {"devices": [{"allow": True, "type": "p"}]}, "linux.resources.devices[0].type"),
        ("linux.resources", {"devices": [{"allow": True, "access": "rx"}]}, "linux.resources.devices[0].access"),
        ("linux.resources", {"devices": [{"allow": True, "major": -2}]}, "linux.resources.devices[0].major"),
        ("linux.resources", {"memory": {"swappiness": 101}}, "linux.resources.memory.swappiness"),
        ("linux.resources", {"memory": {"limit": "lots"}}, "linux.resources.memory.limit"),
        ("hooks", {"prestart": [{"path": "x"}]}, "hooks.prestart[0].path"),
        ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout"),
        ("hooks", {"poststop": [{"path": "/x", "args": [""]}]}, "hooks.poststop[0].args[0]"),
        ("hooks", {"prestart": [{"path": "/x", "env": ["A=b", "=c"]}]}, "hooks.prestart[0].env[1]"),
        ("hostname", "x" * 65, "hostname"),
        ("annotations", {"a": 1}, "annotations['a']"),
        ("annotations", {"": "x"}, "annotations['']"),
    ],
)
def test_each_fault_is_named(path: str, value: object, field: str) -> None:
    config = _config()
    _put(config, path, value)
    with pytest.raises(InvalidConfig) as caught:
        validate(config)
    assert field in [where for where, _ in caught.value.faults]
    assert field in str(caught.value)


def test_namespaced_things_need_their_namespace() -> None:
    config = _config()
    config["linux"]["namespaces"] = [{"type": "mount"}]
    config["linux"]["sysctl"] = {"net.core.somaxconn": "1", "kernel.sem": "1"}
    config["linux"]["netDevices"] = {"eth1": {}}
    config["hostname"] = config["domainname"] = "x"
    with pytest.raises(InvalidConfig) as caught:
        validate(config)
    assert {where for where, _ in caught.value.faults} == {
        "hostname",
        "domainname",
        "linux.netDevices",
        "linux.sysctl['kernel.sem']",
        "linux.sysctl['net.core.somaxconn']",
    }


def test_a_new_user_namespace_needs_mappings_and_a_joined_one_none() -> None:
    config = _config()
    config["linux"]["namespaces"].append({"type": "user"})
    with pytest.raises(InvalidConfig, match=r"linux\.uidMappings"):
        validate(config)
    config["linux"]["namespaces"][-1]["path"] = "/run/ns/user"
    validate(config)


def test_all_faults_come_together() -> None:
    with pytest.raises(InvalidConfig) as caught:
        validate({"ociVersion": 7, "root": {}, "process": {"args": "sh", "cwd": "x"}, "linux": {"namespaces": {}}})
    assert [where for where, _ in caught.value.faults] == [
        "ociVersion",
        "root.path",
        "process.args",
        "process.cwd",
        "linux.namespaces",
    ]


@pytest.mark.parametrize(
    "scheduler",
    [
        {"policy": "SCHED_OTHER", "nice": 5, "priority": 0, "runtime": 0},
        {"policy": "SCHED_FIFO", "priority": 5},
        {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3},
    ],
)
def test_each_policy_has_its_parameters(scheduler: dict[str, Any]) -> None:
    validate_process({"args": ["x"], "cwd": "/", "scheduler": scheduler})


def _told(config: dict[str, Any]) -> set[str]:
    with pytest.raises(InvalidConfig) as caught:
        validate(config)
    return {path for path, _ in caught.value.faults}


def test_a_wrong_field_hides_no_others_meaning() -> None:
    config = _config()
    config["process"] |= {"cwd": "rel", "env": ["A", 7], "rlimits": [{"type": "RLIMIT_CPU", "soft": 9, "hard": 3}]}
    config["mounts"] = [{"destination": "rel", "options": ["bind"]}, {"destination": "/x"}, 7]
    config["linux"]["sysctl"] = {"kernel.foo": "1", "net.ipv4.ip_forward": 1}
    config["linux"]["uidMappings"] = [
        {"containerID": 0, "hostID": 0},
        {"containerID": 1, "hostID": 2**32 - 2, "size": 9},
    ]
    config["linux"]["devices"] = [{"type": "c", "path": "x", "minor": 1}]
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_NOTIFY", "flags": ["X"]}
    config["hooks"] = {"prestart": [{"path": "x", "env": ["=c"]}]}
    assert _told(config) == {
        "process.cwd",
        "process.env[0]",
        "process.env[1]",
        "process.rlimits[0].soft",
        "mounts[0].destination",
        "mounts[0].source",
        "mounts[1].type",
        "mounts[2]",
        "linux.sysctl['kernel.foo']",
        "linux.sysctl['net.ipv4.ip_forward']",
        "linux.uidMappings[0].size",
        "linux.uidMappings[1].size",
        "linux.devices[0].path",
        "linux.devices[0].major",
        "linux.seccomp.flags[0]",
        "linux.seccomp.defaultAction",
        "hooks.prestart[0].path",
        "hooks.prestart[0].env[0]",
    }


def test_what_is_wrong_is_not_taken_for_absent() -> None:
    config = _config()
    config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "moon"}]
    config["hostname"] = "x"
    config["linux"]["sysctl"] = {"net.core.somaxconn": "1"}
    config["linux"]["timeOffsets"] = {"monotonic": {"secs": 1}}
    config["mounts"] = [{"destination": "/x", "source": 0, "options": ["bind"]}, {"destination": "/x", "type": 5}]
    assert _told(config) == {"linux.namespaces[1].type", "mounts[0].source", "mounts[1].type"}


def test_many_faults_take_no_time_of_each_other() -> None:
    config = _config()
    config["process"]["env"] = [7] * 20_000
    assert len(_told(config)) == 20_000


def test_shape_and_meaning_are_reported_together() -> None:
    config = _config()
    config["process"]["cwd"] = 5
    config["linux"]["intelRdt"] = {"closID": "x"}
    with pytest.raises(InvalidConfig) as caught:
        validate(config)
    assert [where for where, _ in caught.value.faults] == ["process.cwd", "linux.intelRdt"]


@pytest.mark.parametrize("document", [None, [], "x", 5, {}, {"root": []}, [{}]])
def test_what_is_no_configuration_at_all(document: object) -> None:
    with pytest.raises(InvalidInput):
        validate(document)


def test_process_and_resources_alone() -> None:
    validate_process({"args": ["x"], "cwd": "/"})
    with pytest.raises(InvalidConfig, match=r"process\.cwd"):
        validate_process({"args": ["x"]})
    validate_resources({"pids": {"limit": 5}, "memory": None})
    with pytest.raises(InvalidConfig, match=r"resources\.pids\.limit"):
        validate_resources({"pids": {"limit": 1.5}})


def test_sysctl_names() -> None:
    assert sysctl_names.dotted("net/ipv4/conf/eth0.1/mtu") == "net.ipv4.conf.eth0/1.mtu"
    assert sysctl_names.path_of("net.ipv4.conf.eth0/1.mtu") == "net/ipv4/conf/eth0.1/mtu"
    assert sysctl_names.path_of("net/ipv4/ip_forward") == "net/ipv4/ip_forward"
    assert sysctl_names.namespace_of("fs.mqueue.msg_max") == "ipc"
    assert sysctl_names.interface_of("net.ipv4.conf.eth0.arp_ignore") == "eth0"
    assert sysctl_names.interface_of("net/ipv6/neigh/eth0.1/gc_stale_time") == "eth0.1"
    for name in ("net.ipv4.conf.all.arp_ignore", "net.ipv6.neigh.default.gc_stale_time", "net.ipv4.conf.lo.forwarding"):
        assert sysctl_names.interface_of(name) == ""
    for name in ("net.ipv4.ip_forward", "net.core.somaxconn", "kernel.shmmax", "net.ipv4.conf.eth0"):
        assert sysctl_names.interface_of(name) == ""
    assert sysctl_names.namespace_of("vm.swappiness") == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_no_document_causes_a_traceback(document: object) -> None:
    with pytest.raises(InvalidInput):
        validate(document)


@st.composite
def _broken(draw: st.DrawFn) -> dict[str, Any]:
    """A sound, full configuration in which some values are replaced by others."""
    config = copy.deepcopy(_FULL)
    for _ in range(draw(st.integers(1, 4))):
        place: Any = config
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(_JSON)
            break
    return config


_FULL: dict[str, Any] = {
    **_config(),
    "hostname": "h",
    "domainname": "d",
    "annotations": {"a": "b"},
    "hooks": {"prestart": [{"path": "/x", "args": ["x"], "env": ["A=b"], "timeout": 5}]},
    "linux": {
        "namespaces": [{"type": k} for k in ("pid", "mount", "uts", "ipc", "network", "user", "time", "cgroup")],
        "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
        "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 2}},
        "devices": [{"type": "c", "path": "/dev/x", "major": 1, "minor": 2, "fileMode": 420, "uid": 0, "gid": 0}],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "maskedPaths": ["/a"],
        "readonlyPaths": ["/b"],
        "resources": {
            "memory": {"limit": 1},
            "cpu": {"cpus": "0"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
            "rdma": {"x": {"hcaHandles": 1}},
            "unified": {"a": "b"},
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {
                    "names": ["x"],
                    "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
        "personality": {"domain": "LINUX"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": []},
        "netDevices": {"eth1": {"name": "eth0"}},
    },
}


def test_the_full_configuration_is_sound() -> None:
    validate(copy.deepcopy(_FULL))


@settings(max_examples=300)
@given(_broken())
def test_no_broken_configuration_causes_a_traceback(config: dict[str, Any]) -> None:
    try:
        validate(config)
    except InvalidInput:
        pass


def test_a_name_is_not_set_twice() -> None:
    config = _config()
    config["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "uts")]
    config["linux"]["sysctl"] = {"kernel.hostname": "one", "kernel/domainname": "one"}
    validate(config)
    config |= {"hostname": "other", "domainname": "other"}
    assert _told(config) == {"linux.sysctl['kernel.hostname']", "linux.sysctl['kernel/domainname']"}

"""Examines the machine: kernel, privileges, cgroups, modules, sysctls, security modules. Changes nothing.

Everything is read below ``root``, so that a test can put another machine's files there.
"""

import os
import re
import resource
from collections.abc import Iterator

from sampan.cgroup import hierarchy
from sampan.daemon.findings import Area, Finding, read

#: mount_setattr(2) is of Linux 5.12; idmapped mounts of overlayfs are of 5.19.
_OLDEST, _IDMAPPED = (5, 12), (5, 19)
_NEEDED_CONTROLLERS = ("cpu", "memory", "pids")
_USEFUL_CONTROLLERS = ("cpuset", "blkio", "hugetlb")
#: Module, what it is for, a file or folder that shows that it is there, and a function of its.
_MODULES = (
    ("overlay", "layers of images", "sys/module/overlay", "ovl_fill_super"),
    ("nf_tables", "NAT and host ports", "sys/module/nf_tables", "nf_tables_newrule"),
    ("veth", "network interfaces of pods", "sys/module/veth", "veth_newlink"),
    ("bridge", "bridge networks", "sys/module/bridge", "br_add_if"),
    ("br_netfilter", "services reached over a bridge", "proc/sys/net/bridge", "br_nf_pre_routing"),
)
_EXTRA_CAPABILITIES = {24: "CAP_SYS_RESOURCE: an oom_score below its own can't be set, nor limits raised"}
_SYS_ADMIN, _NET_ADMIN = 21, 12


def examine(root: str = "/", *, systemd: bool = False) -> Iterator[Finding]:
    """Everything about the machine.

    Args:
        root: Where its files are.
        systemd: Whether the configuration asks for systemd's cgroup driver.
    """
    yield from kernel(root)
    yield from privileges(root)
    yield from cgroups(root, systemd=systemd)
    yield from modules(root)
    yield from sysctls(root)
    yield from security(root)


def kernel(root: str) -> Iterator[Finding]:
    """Its version and what was compiled into it."""
    area = Area("kernel")
    release = read(f"{root}/proc/sys/kernel/osrelease")
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _OLDEST:
        yield area.error("release", f"{release} is older than {_OLDEST[0]}.{_OLDEST[1]}", "boot a newer kernel")
    elif version < _IDMAPPED:
        yield area.warning(
            "release",
            f"{release} has no idmapped mounts of overlayfs, which pods in user namespaces need",
            "boot Linux 5.19 or newer, or run no such pods",
        )
    else:
        yield area.ok("release", release)
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        if not os.path.exists(f"{root}/proc/self/ns/{kind}"):
            yield area.error(f"{kind} namespaces", "the kernel has none", "boot a kernel that has them compiled in")


def privileges(root: str) -> Iterator[Finding]:
    """Who we are, and what the bounding set leaves us."""
    area = Area("privileges")
    if os.geteuid() != 0:
        yield area.warning("user", f"this is user {os.geteuid()}: some things can't be looked at", "run it as root")
    held = 0
    for line in read(f"{root}/proc/self/status").splitlines():
        if line.startswith("CapBnd:"):
            held = int(line[7:], 16)
    for number, name in ((_SYS_ADMIN, "CAP_SYS_ADMIN"), (_NET_ADMIN, "CAP_NET_ADMIN")):
        if not held >> number & 1:
            yield area.error(name, "is not in the bounding set: no container can be made", "run outside of a container")
    for number, text in _EXTRA_CAPABILITIES.items():
        if not held >> number & 1:
            yield area.warning("bounding set", f"lacks {text}", "give the daemon all capabilities")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 65536:
        yield area.warning(
            "open files", f"at most {most}: too few for hundreds of pods", "LimitNOFILE=1048576 in the daemon's unit"
        )


def cgroups(root: str, *, systemd: bool) -> Iterator[Finding]:
    """Which version, which controllers, which driver."""
    area = Area("cgroups")
    if root == "/":
        mode, there = hierarchy.layout().mode, dict(hierarchy.layout().controllers)
    else:
        mode, there = "v2", dict.fromkeys(read(f"{root}/sys/fs/cgroup/cgroup.controllers").split(), "")
    if mode == "v2":
        if root == "/":
            there = dict.fromkeys(read("/sys/fs/cgroup/cgroup.controllers").split(), "")
        there = {("blkio" if name == "io" else name): path for name, path in there.items()}
        yield area.ok("version", "v2")
    else:
        yield area.warning(
            "version",
            f"{mode}: a kubelet of 1.35 or newer refuses it unless failCgroupV1 is false",
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        )
    for name in _NEEDED_CONTROLLERS:
        if name not in there:
            yield area.error(name, "the controller is not there", f"boot with cgroup_enable={name}")
    missing = [name for name in _USEFUL_CONTROLLERS if name not in there]
    if missing:
        # A kubelet sends limits of huge pages wherever the machine has such pages: see engine/limits.py.
        lost = "huge pages are not limited" if missing == ["hugetlb"] else "limits of that kind fail"
        yield area.warning("controllers", f"without {', '.join(missing)}: {lost}", "boot with them enabled")
    runs_systemd = os.path.isdir(f"{root}/run/systemd/system")
    if systemd and not runs_systemd:
        yield area.error(
            "driver", "systemd is asked for and does not run here", 'cgroup_driver = "cgroupfs", for the kubelet too'
        )
    elif runs_systemd and not systemd and mode == "v2":
        yield area.warning(
            "driver", "cgroupfs beside systemd: two that arrange one tree", 'cgroup_driver = "systemd", for both'
        )
    else:
        yield area.ok("driver", "systemd" if systemd else "cgroupfs")


def modules(root: str) -> Iterator[Finding]:
    """File systems and network devices that the kernel may have as modules."""
    area = Area("modules")
    release = read(f"{root}/proc/sys/kernel/osrelease")
    known = _known_modules(f"{root}/lib/modules/{release}")
    for name, purpose, sign, function in _MODULES:
        if os.path.exists(f"{root}/{sign}"):
            yield area.ok(name, "there")
        elif known.get(name) == "builtin" or _has_function(root, function):
            yield area.ok(name, "built in")
        elif name in known and name != "br_netfilter":
            yield area.ok(name, "loaded when it is needed")
        elif name == "overlay":
            yield area.error(name, f"is missing, for {purpose}: layers are copied instead", f"modprobe {name}")
        else:
            yield area.warning(name, f"is not loaded, for {purpose}", f"modprobe {name}, and in /etc/modules-load.d/")


def _has_function(root: str, name: str) -> bool:
    """Whether the kernel has a function: where a module is built in and nothing else says so."""
    try:
        with open(f"{root}/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
            return any(line.split()[2] == name for line in symbols)
    except OSError:
        return False


def _known_modules(folder: str) -> dict[str, str]:
    """Modules that are built in or could be loaded; none are known where the folder is not there."""
    found = {}
    for file, kind in (("modules.dep", "loadable"), ("modules.builtin", "builtin")):
        for line in read(f"{folder}/{file}").splitlines():
            path = line.partition(":")[0]
            found[os.path.basename(path).partition(".ko")[0].replace("-", "_")] = kind
    return found


def sysctls(root: str) -> Iterator[Finding]:
    """Settings without which pods are cut off, or without which a busy node stumbles."""
    area = Area("sysctls")

    def value(name: str) -> str:
        return read(f"{root}/proc/sys/{name.replace('.', '/')}")

    def mend(name: str, wanted: str) -> str:
        return f"sysctl -w {name}={wanted}, and the same in /etc/sysctl.d/"

    if value("net.ipv4.ip_forward") == "1":
        yield area.ok("net.ipv4.ip_forward", "1")
    else:
        yield area.error("net.ipv4.ip_forward", "0: pods reach nobody", mend("net.ipv4.ip_forward", "1"))
    name = "net.bridge.bridge-nf-call-iptables"
    if value(name) == "0":
        yield area.warning(name, "0: services are not reached from pods on the same bridge", mend(name, "1"))
    for name, least, purpose in (
        ("fs.inotify.max_user_instances", 512, "programs that watch files in pods fail"),
        ("fs.inotify.max_user_watches", 65536, "programs that watch files in pods fail"),
        ("user.max_user_namespaces", 1024, "pods in user namespaces fail"),
        ("kernel.keys.root_maxkeys", 2000, "containers fail for want of session keyrings"),
        ("kernel.pid_max", 65536, "a full node runs out of process ids"),
    ):
        found = value(name)
        if found.isdecimal() and int(found) < least:
            yield area.warning(name, f"{found}: {purpose}", mend(name, str(least)))
        elif found:
            yield area.ok(name, found)


def security(root: str) -> Iterator[Finding]:
    """Seccomp, AppArmor, SELinux."""
    area = Area("security")
    if "errno" in read(f"{root}/proc/sys/kernel/seccomp/actions_avail").split():
        yield area.ok("seccomp", "there")
    else:
        yield area.error("seccomp", "the kernel has no filters", "boot a kernel with CONFIG_SECCOMP_FILTER")
    active = read(f"{root}/sys/kernel/security/lsm")
    apparmor = read(f"{root}/sys/module/apparmor/parameters/enabled") == "Y"
    yield area.ok("AppArmor", "enabled" if apparmor else "not enabled: pods that name a profile are refused")
    selinux = "selinux" in active.split(",")
    yield area.ok("SELinux", "enabled" if selinux else "not enabled: labels have no effect")

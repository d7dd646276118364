"""config.json of the runtime specification: validation.

First the shape (:mod:`sampan.spec.runtime_schema`); then, if it is right, what no single field can say: that fields
fit each other. Every fault is reported, each with its JSON path. Nothing of the machine is touched or asked.
"""

from __future__ import annotations

from sampan.errors import InvalidInput
from sampan.spec import sysctl_names
from sampan.spec.runtime_schema import CONFIG, HOOKS, PROCESS, RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime_types import Process, RuntimeConfig
    from sampan.spec.shape import Check, Faults

_MOST_REPORTED = 40
_LONGEST_HOSTNAME = 64


class InvalidConfig(InvalidInput):
    """A configuration with faults.

    Attributes:
        faults: JSON path and reason of each.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        if len(faults) == 1:
            super().__init__(faults[0][1], field=faults[0][0])
            return
        told = "; ".join(f"{path}: {reason}" for path, reason in faults[:_MOST_REPORTED])
        more = len(faults) - _MOST_REPORTED
        super().__init__(f"{len(faults)} faults: {told}{f'; and {more} more' if more > 0 else ''}")
        self.field = faults[0][0]


def validate(document: object) -> RuntimeConfig:
    """Check a whole configuration for ``create``; it may lack a process, and then nothing can be started.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    faults: Faults = []
    CONFIG(document, "", faults)
    if isinstance(document, dict):
        _relations(document, faults)
    if faults:
        raise InvalidConfig(faults)
    result: RuntimeConfig = document  # type: ignore[assignment]
    return result


def _relations(config: dict[str, Any], faults: Faults) -> None:
    """Check what fields mean to each other, in those sections whose shape is right."""
    wrong = {path.split(".", 1)[0].split("[", 1)[0] for path, _ in faults}
    if "process" not in wrong and config.get("process") is not None:
        _process(config["process"], "process", faults)
    if "ociVersion" not in wrong:
        _version(config["ociVersion"], faults)
    if not wrong & {"linux", "hostname", "domainname"}:
        _linux(config, faults)
    if not wrong & {"linux", "mounts"}:
        _mounts(config, faults)
    if "hooks" not in wrong:
        _hooks(config.get("hooks") or {}, faults)


def validate_process(document: object) -> Process:
    """Check a process object alone, as ``exec`` takes it.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    return _alone(document, "process", PROCESS, _process)  # type: ignore[no-any-return]


def validate_resources(document: object) -> dict[str, Any]:
    """Check a resources object alone, as ``update`` takes it.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    return _alone(document, "resources", RESOURCES, _nothing)  # type: ignore[no-any-return]


def _alone(document: object, path: str, shape: Check, more: Check) -> Any:
    faults: Faults = []
    shape(document, path, faults)
    if not faults:
        more(document, path, faults)
    if faults:
        raise InvalidConfig(faults)
    return document


def _nothing(_value: object, _path: str, _faults: Faults) -> None:
    return


def _version(version: str, faults: Faults) -> None:
    numbers = version.split("-")[0].split("+")[0].split(".")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        faults.append(("ociVersion", f"must be a version such as 1.2.0, is {version[:64]!r}"))
    elif int(numbers[0]) != 1:
        faults.append(("ociVersion", f"version {version[:64]} is not known: 1.x is"))


def _process(process: Any, path: str, faults: Faults) -> None:
    if not process["args"][0]:
        faults.append((f"{path}.args[0]", "must not be empty"))
    _environment(process.get("env") or [], f"{path}.env", faults)
    seen = set()
    for number, limit in enumerate(process.get("rlimits") or []):
        where = f"{path}.rlimits[{number}]"
        if limit["type"] in seen:
            faults.append((f"{where}.type", f"{limit['type']} is there twice"))
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            faults.append((f"{where}.soft", f"{limit['soft']} is more than the hard limit, {limit['hard']}"))
    affinity = process.get("execCPUAffinity") or {}
    for key in ("initial", "final"):
        _cpu_list(affinity.get(key) or "", f"{path}.execCPUAffinity.{key}", faults)
    if process.get("apparmorProfile") and process.get("selinuxLabel"):
        faults.append((f"{path}.selinuxLabel", "an AppArmor profile and an SELinux label exclude each other"))


def _environment(entries: list[str], path: str, faults: Faults) -> None:
    for number, entry in enumerate(entries):
        if entry.find("=") < 1:
            faults.append((f"{path}[{number}]", f"must be NAME=value, is {entry[:64]!r}"))


def _hooks(hooks: dict[str, Any], faults: Faults) -> None:
    for kind in HOOKS:
        for number, hook in enumerate(hooks.get(kind) or []):
            path = f"hooks.{kind}[{number}]"
            if hook.get("args") and not hook["args"][0]:
                faults.append((f"{path}.args[0]", "must not be empty"))
            _environment(hook.get("env") or [], f"{path}.env", faults)


def _cpu_list(value: str, path: str, faults: Faults) -> None:
    for part in value.split(",") if value else []:
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first,)
        if not all(end.isascii() and end.isdecimal() and len(end) < 6 for end in ends):
            faults.append((path, f"must be a list such as 0-3,7, is {value[:64]!r}"))
            return
        if dash and int(first) > int(last):
            faults.append((path, f"{part.strip()} is an empty range"))


def _linux(config: Any, faults: Faults) -> None:
    linux = config.get("linux") or {}
    kinds: dict[str, str] = {}
    for number, namespace in enumerate(linux.get("namespaces") or []):
        kind, path = namespace["type"], namespace.get("path") or ""
        if kind in kinds:
            faults.append((f"linux.namespaces[{number}].type", f"{kind} is there twice"))
        if path and not path.startswith("/"):
            faults.append((f"linux.namespaces[{number}].path", f"must be an absolute path, is {path!r}"))
        kinds[kind] = path
    if "mount" not in kinds and "user" in kinds:
        # What is mounted in the runtime's own namespace takes rights there.
        faults.append(("linux.namespaces", "a user namespace needs a mount namespace"))
    _names(config, kinds, faults)
    _mappings(linux, kinds, faults)
    _sysctls(linux, kinds, faults)
    _devices(linux, faults)
    _odds(linux, kinds, faults)


def _names(config: Any, kinds: dict[str, str], faults: Faults) -> None:
    for key in ("hostname", "domainname"):
        name = config.get(key) or ""
        if name and "uts" not in kinds:
            faults.append((key, "needs a uts namespace"))
        if len(name.encode()) > _LONGEST_HOSTNAME:
            faults.append((key, f"is longer than {_LONGEST_HOSTNAME} bytes"))


def _mappings(linux: Any, kinds: dict[str, str], faults: Faults) -> None:
    for key in ("uidMappings", "gidMappings"):
        mappings = linux.get(key) or []
        if mappings and "user" not in kinds:
            faults.append((f"linux.{key}", "needs a user namespace"))
        if not mappings and kinds.get("user") == "":
            faults.append((f"linux.{key}", "is required with a new user namespace"))
        check_ranges(mappings, f"linux.{key}", faults)
    offsets = linux.get("timeOffsets") or {}
    for clock in offsets:
        if clock not in ("monotonic", "boottime"):
            faults.append((f"linux.timeOffsets[{clock[:64]!r}]", "must be monotonic or boottime"))
    if offsets and kinds.get("time") != "":
        faults.append(("linux.timeOffsets", "needs a new time namespace"))


def check_ranges(mappings: list[Any], path: str, faults: Faults) -> None:
    """Refuse ranges that run past the last id."""
    for number, one in enumerate(mappings):
        for key in ("containerID", "hostID"):
            if one[key] + one["size"] > 2**32 - 1:
                faults.append((f"{path}[{number}].size", f"the range from {key} {one[key]} runs past the last id"))


def _sysctls(linux: Any, kinds: dict[str, str], faults: Faults) -> None:
    for name in linux.get("sysctl") or {}:
        path = f"linux.sysctl[{name[:64]!r}]"
        plain = sysctl_names.dotted(name)
        if not plain or ".." in plain or plain.startswith((".", "/")):
            faults.append((path, "is not the name of a kernel parameter"))
            continue
        kind = sysctl_names.namespace_of(plain)
        if not kind:
            faults.append((path, "belongs to the whole machine, not to a namespace"))
        elif kind not in kinds:
            faults.append((path, f"needs a {kind} namespace: it would change the host's"))


def _devices(linux: Any, faults: Faults) -> None:
    for number, device in enumerate(linux.get("devices") or []):
        if device["type"] == "p":
            continue
        for key, most in (("major", 2**12 - 1), ("minor", 2**20 - 1)):
            value = device.get(key)
            if value is None or not 0 <= value <= most:
                faults.append((f"linux.devices[{number}].{key}", f"must be from 0 to {most}"))


def _odds(linux: Any, kinds: dict[str, str], faults: Faults) -> None:
    if (linux.get("personality") or {}).get("flags"):
        faults.append(("linux.personality.flags", "no flags are defined"))
    if linux.get("intelRdt"):
        faults.append(("linux.intelRdt", "is not supported: this runtime does not drive resctrl"))
    policy = linux.get("memoryPolicy") or {}
    _cpu_list(policy.get("nodes") or "", "linux.memoryPolicy.nodes", faults)
    _net_devices(linux, kinds, faults)
    if linux.get("seccomp"):
        _seccomp(linux["seccomp"], faults)
    if ".." in (linux.get("cgroupsPath") or "").split("/"):
        faults.append(("linux.cgroupsPath", "must not contain a '..' component"))


def _net_devices(linux: Any, kinds: dict[str, str], faults: Faults) -> None:
    devices = linux.get("netDevices") or {}
    if devices and "network" not in kinds:
        faults.append(("linux.netDevices", "needs a network namespace"))
    seen = set()
    for name, device in devices.items():
        path = f"linux.netDevices[{name[:64]!r}]"
        new_name = device.get("name") or name
        for each in dict.fromkeys((name, new_name)):
            if not _names_device(each):
                faults.append((path, f"{each[:64]!r} is not the name of a device"))
        if new_name in seen and "%d" not in new_name:
            faults.append((path, f"another device is to be called {new_name[:64]!r} as well"))
        seen.add(new_name)


def _names_device(name: str) -> bool:
    """Whether the kernel takes it (dev_valid_name()); ``%d`` stands for a free number."""
    plain = name.replace("%d", "", 1)
    return 0 < len(name.encode()) < 16 and name not in (".", "..") and not any(x in "/:%" or x.isspace() for x in plain)


def _seccomp(section: Any, faults: Faults) -> None:
    path = "linux.seccomp"
    listener = section.get("listenerPath")
    _errno(section, "defaultAction", "defaultErrnoRet", path, faults)
    if section["defaultAction"] == "SCMP_ACT_NOTIFY":
        faults.append((f"{path}.defaultAction", "SCMP_ACT_NOTIFY cannot be the default"))
    notifies = False
    for number, rule in enumerate(section.get("syscalls") or []):
        where = f"{path}.syscalls[{number}]"
        _errno(rule, "action", "errnoRet", where, faults)
        if rule["action"] == "SCMP_ACT_NOTIFY":
            notifies = True
            # The process tells of its listener by a write, which would wait for it.
            if "write" in rule["names"]:
                faults.append((f"{where}.action", "SCMP_ACT_NOTIFY cannot be used for write"))
    if notifies and not listener:
        faults.append((f"{path}.listenerPath", "is required with SCMP_ACT_NOTIFY"))
    if section.get("listenerMetadata") and not listener:
        faults.append((f"{path}.listenerMetadata", "needs a listenerPath"))
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (section.get("flags") or []) and not notifies:
        faults.append((f"{path}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs SCMP_ACT_NOTIFY"))


def _errno(entry: Any, action: str, number: str, path: str, faults: Faults) -> None:
    if entry.get(number) and entry[action] not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        faults.append((f"{path}.{number}", f"{entry[action]} takes no errno"))


def _mounts(config: Any, faults: Faults) -> None:
    for number, mount in enumerate(config.get("mounts") or []):
        path = f"mounts[{number}]"
        options = mount.get("options") or []
        bind = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        if bind and not mount.get("source"):
            faults.append((f"{path}.source", "is required of a bind mount"))
        if not bind and not mount.get("type"):
            faults.append((f"{path}.type", "is required, save of a bind mount"))
        uids, gids = mount.get("uidMappings") or [], mount.get("gidMappings") or []
        check_ranges(uids, f"{path}.uidMappings", faults)
        check_ranges(gids, f"{path}.gidMappings", faults)
        if bool(uids) != bool(gids):
            faults.append((path, "uidMappings and gidMappings go together"))
        _id_mapped(config, options, path, faults, bind=bind, mapped=bool(uids))
        _options(mount, options, path, faults)


def _options(mount: Any, options: list[str], path: str, faults: Faults) -> None:
    if "tmpcopyup" in options and mount.get("type") != "tmpfs":
        faults.append((f"{path}.options", "tmpcopyup is of a tmpfs only"))
    if "remount" in options and (mount.get("uidMappings") or "idmap" in options or "ridmap" in options):
        faults.append((f"{path}.options", "a remount cannot map ids"))


def _id_mapped(config: Any, options: list[str], path: str, faults: Faults, *, bind: bool, mapped: bool) -> None:
    asked = mapped or "idmap" in options or "ridmap" in options
    if asked and not bind:
        faults.append((f"{path}.options", "only a bind mount can have its ids mapped"))
    if asked and not mapped and not (config.get("linux") or {}).get("uidMappings"):
        faults.append((f"{path}.uidMappings", "is required where the container has no user namespace of its own"))

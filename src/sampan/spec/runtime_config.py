"""config.json of the runtime specification: validation.

First the shape (:mod:`sampan.spec.runtime_schema`); then, of what has the right one, what no single field can say: that
fields fit each other. Every fault is reported, each with its JSON path. Nothing of the machine is touched or asked.
"""

from __future__ import annotations

import posixpath

from sampan.errors import InvalidInput
from sampan.spec import sysctl_names
from sampan.spec.runtime_schema import CONFIG, HOOKS, PROCESS, RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime_types import Process, RuntimeConfig
    from sampan.spec.shape import Faults

_MOST_REPORTED = 40
_LONGEST_HOSTNAME = 64
#: Fields of a scheduler -> the policies that have them (sched_setattr(2)).
_POLICIES_OF = {
    "priority": ("SCHED_FIFO", "SCHED_RR"),
    **dict.fromkeys(("runtime", "deadline", "period"), ("SCHED_DEADLINE",)),
}


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


class _Sound:
    """The parts of a document that have the right shape: the only ones whose meaning can be judged.

    Sections are given with their fields' paths, of which the last name is the field's.

    Args:
        faults: Those of the shape.
    """

    __slots__ = ("_around", "_wrong")

    def __init__(self, faults: Faults) -> None:
        self._wrong = {path for path, _ in faults}
        self._around = {level for path in self._wrong for level in _levels(path)}

    def __call__(self, *paths: str) -> bool:
        """Whether nothing is wrong with what is at these paths, with what is in it, or with what it is in."""
        return not self._wrong or all(
            path not in self._around and self._wrong.isdisjoint(_levels(path)) for path in paths
        )

    def field(self, section: Any, path: str) -> Any:
        """A field; None when it is absent or wrong."""
        return _raw(section, path) if self(path) else None

    def object(self, section: Any, path: str) -> dict[str, Any]:
        """A field that is an object, of which parts may be wrong; empty when it is absent or no object."""
        found = _raw(section, path)
        return found if isinstance(found, dict) else {}

    def entries(self, section: Any, path: str) -> list[tuple[str, Any]]:
        """Path and value of what is in an array; each may be wrong."""
        found = _raw(section, path)
        return [(f"{path}[{number}]", one) for number, one in enumerate(found if isinstance(found, list) else [])]


def _levels(path: str) -> list[str]:
    """A path, and those of all that it is in."""
    return [*(path[:end] for end, letter in enumerate(path) if letter in ".[ "), path]


def _raw(section: Any, path: str) -> Any:
    return section.get(path.rpartition(".")[2]) if isinstance(section, dict) else None


def validate(document: object) -> RuntimeConfig:
    """Check a whole configuration for ``create``; it may lack a process, and then nothing can be started.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    faults: Faults = []
    CONFIG(document, "", faults)
    if isinstance(document, dict):
        _relations(document, _Sound(faults), faults)
    if faults:
        raise InvalidConfig(faults)
    result: RuntimeConfig = document  # type: ignore[assignment]
    return result


def _relations(config: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    """Check what fields mean to each other, of those whose shape is right."""
    _process(config.get("process"), "process", sound, faults)
    _version(sound.field(config, "ociVersion"), faults)
    if "" in sound.object(config, "annotations"):
        faults.append(("annotations['']", "a key must not be empty"))
    _linux(config, sound, faults)
    for path, mount in sound.entries(config, "mounts"):
        _mount(config, mount, path, sound, faults)
    _hooks(sound.object(config, "hooks"), sound, faults)


def validate_process(document: object) -> Process:
    """Check a process object alone, as ``exec`` takes it.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    faults: Faults = []
    PROCESS(document, "process", faults)
    _process(document, "process", _Sound(faults), faults)
    if faults:
        raise InvalidConfig(faults)
    result: Process = document  # type: ignore[assignment]
    return result


def validate_resources(document: object) -> dict[str, Any]:
    """Check a resources object alone, as ``update`` takes it.

    Raises:
        InvalidConfig: All that is wrong with it.
    """
    faults: Faults = []
    RESOURCES(document, "resources", faults)
    if faults:
        raise InvalidConfig(faults)
    result: dict[str, Any] = document  # type: ignore[assignment]
    return result


def _version(version: str | None, faults: Faults) -> None:
    if version is None:
        return
    numbers = version.split("-")[0].split("+")[0].split(".")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        faults.append(("ociVersion", f"must be a version such as 1.2.0, is {version[:64]!r}"))
    elif int(numbers[0]) != 1:
        faults.append(("ociVersion", f"version {version[:64]} is not known: 1.x is"))


def _process(process: Any, path: str, sound: _Sound, faults: Faults) -> None:
    _program(process, f"{path}.args", sound, faults)
    _environment(process, f"{path}.env", sound, faults)
    seen = set()
    for where, limit in sound.entries(process, f"{path}.rlimits"):
        if not sound(where):
            continue
        if limit["type"] in seen:
            faults.append((f"{where}.type", f"{limit['type']} is there twice"))
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            faults.append((f"{where}.soft", f"{limit['soft']} is more than the hard limit, {limit['hard']}"))
    _scheduler(process, f"{path}.scheduler", sound, faults)
    affinity = sound.object(process, f"{path}.execCPUAffinity")
    for key in ("initial", "final"):
        where = f"{path}.execCPUAffinity.{key}"
        _cpu_list(sound.field(affinity, where) or "", where, faults)
    if sound.field(process, f"{path}.apparmorProfile") and sound.field(process, f"{path}.selinuxLabel"):
        faults.append((f"{path}.selinuxLabel", "an AppArmor profile and an SELinux label exclude each other"))


def _program(section: Any, path: str, sound: _Sound, faults: Faults) -> None:
    if (arguments := sound.field(section, path)) and not arguments[0]:
        faults.append((f"{path}[0]", "must not be empty"))


def _environment(section: Any, path: str, sound: _Sound, faults: Faults) -> None:
    for where, entry in sound.entries(section, path):
        if sound(where) and entry.find("=") < 1:
            faults.append((where, f"must be NAME=value, is {entry[:64]!r}"))


def _scheduler(process: Any, path: str, sound: _Sound, faults: Faults) -> None:
    """Refuse parameters of other policies than the chosen one; a nice value is ignored, as by the kernel."""
    scheduler = sound.object(process, path)
    policy = sound.field(scheduler, f"{path}.policy")
    for key, policies in _POLICIES_OF.items():
        if policy and policy not in policies and sound.field(scheduler, f"{path}.{key}"):
            faults.append((f"{path}.{key}", f"is of {' and '.join(policies)} only, not of {policy}"))


def _hooks(hooks: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    for kind in HOOKS:
        for path, hook in sound.entries(hooks, f"hooks.{kind}"):
            _program(hook, f"{path}.args", sound, faults)
            _environment(hook, f"{path}.env", sound, faults)


def _cpu_list(value: str, path: str, faults: Faults) -> None:
    for part in value.split(",") if value else []:
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first,)
        if not all(end.isascii() and end.isdecimal() and len(end) < 6 for end in ends):
            faults.append((path, f"must be a list such as 0-3,7, is {value[:64]!r}"))
            return
        if dash and int(first) > int(last):
            faults.append((path, f"{part.strip()} is an empty range"))


def _linux(config: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    linux = sound.object(config, "linux")
    kinds = _kinds(linux, sound, faults)
    _names(config, kinds, sound, faults)
    _mappings(linux, kinds, sound, faults)
    _clocks(linux, kinds, sound, faults)
    _sysctls(config, linux, kinds, sound, faults)
    _devices(linux, sound, faults)
    _net_devices(linux, kinds, sound, faults)
    _seccomp(sound.object(linux, "linux.seccomp"), sound, faults)
    _odds(linux, sound, faults)


def _kinds(linux: dict[str, Any], sound: _Sound, faults: Faults) -> dict[str, str] | None:
    """The namespaces and their paths; None when they can't be told, and so nothing needs one that is missing."""
    kinds: dict[str, str] = {}
    for where, namespace in sound.entries(linux, "linux.namespaces"):
        if not sound(where):
            continue
        kind, path = namespace["type"], namespace.get("path") or ""
        if kind in kinds:
            faults.append((f"{where}.type", f"{kind} is there twice"))
        if path and not path.startswith("/"):
            faults.append((f"{where}.path", f"must be an absolute path, is {path!r}"))
        kinds[kind] = path
    if not sound("linux.namespaces"):
        return None
    if "mount" not in kinds and "user" in kinds:
        # What is mounted in the runtime's own namespace takes rights there.
        faults.append(("linux.namespaces", "a user namespace needs a mount namespace"))
    return kinds


def _names(config: dict[str, Any], kinds: dict[str, str] | None, sound: _Sound, faults: Faults) -> None:
    for key in ("hostname", "domainname"):
        name = sound.field(config, key) or ""
        if name and kinds is not None and "uts" not in kinds:
            faults.append((key, "needs a uts namespace"))
        if len(name.encode()) > _LONGEST_HOSTNAME:
            faults.append((key, f"is longer than {_LONGEST_HOSTNAME} bytes"))


def _mappings(linux: dict[str, Any], kinds: dict[str, str] | None, sound: _Sound, faults: Faults) -> None:
    for path in ("linux.uidMappings", "linux.gidMappings"):
        _ranges(linux, path, sound, faults)
        if kinds is None or not sound(path):
            continue
        mappings = sound.field(linux, path)
        if mappings and "user" not in kinds:
            faults.append((path, "needs a user namespace"))
        if not mappings and kinds.get("user") == "":
            faults.append((path, "is required with a new user namespace"))


def _clocks(linux: dict[str, Any], kinds: dict[str, str] | None, sound: _Sound, faults: Faults) -> None:
    offsets = sound.object(linux, "linux.timeOffsets")
    for clock in offsets:
        if clock not in ("monotonic", "boottime"):
            faults.append((f"linux.timeOffsets[{clock[:64]!r}]", "must be monotonic or boottime"))
    if offsets and kinds is not None and kinds.get("time") != "":
        faults.append(("linux.timeOffsets", "needs a new time namespace"))


def _ranges(section: Any, path: str, sound: _Sound, faults: Faults) -> None:
    """Refuse ranges that run past the last id."""
    for where, one in sound.entries(section, path):
        for key in ("containerID", "hostID"):
            if sound(where) and one[key] + one["size"] > 2**32 - 1:
                faults.append((f"{where}.size", f"the range from {key} {one[key]} runs past the last id"))


def _sysctls(
    config: dict[str, Any], linux: dict[str, Any], kinds: dict[str, str] | None, sound: _Sound, faults: Faults
) -> None:
    for name in sound.object(linux, "linux.sysctl"):
        path = f"linux.sysctl[{name[:64]!r}]"
        plain = sysctl_names.dotted(name)
        if not plain or ".." in plain or plain.startswith((".", "/")):
            faults.append((path, "is not the name of a kernel parameter"))
            continue
        kind = sysctl_names.namespace_of(plain)
        if not kind:
            faults.append((path, "belongs to the whole machine, not to a namespace"))
        elif kinds is not None and kind not in kinds:
            faults.append((path, f"needs a {kind} namespace: it would change the host's"))
        elif kind == "uts" and (key := plain.rpartition(".")[2]) and config.get(key):
            faults.append((path, f"sets what {key} sets too"))


def _devices(linux: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    for path, device in sound.entries(linux, "linux.devices"):
        if sound.field(device, f"{path}.type") in (None, "p"):
            continue
        for key, most in (("major", 2**12 - 1), ("minor", 2**20 - 1)):
            where = f"{path}.{key}"
            value = sound.field(device, where)
            if sound(where) and (value is None or not 0 <= value <= most):
                faults.append((where, f"must be from 0 to {most}"))


def _odds(linux: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    if sound.field(sound.object(linux, "linux.personality"), "linux.personality.flags"):
        faults.append(("linux.personality.flags", "no flags are defined"))
    if linux.get("intelRdt") is not None:
        faults.append(("linux.intelRdt", "is not supported: this runtime does not drive resctrl"))
    nodes = sound.field(sound.object(linux, "linux.memoryPolicy"), "linux.memoryPolicy.nodes")
    _cpu_list(nodes or "", "linux.memoryPolicy.nodes", faults)
    if ".." in (sound.field(linux, "linux.cgroupsPath") or "").split("/"):
        faults.append(("linux.cgroupsPath", "must not contain a '..' component"))


def _net_devices(linux: dict[str, Any], kinds: dict[str, str] | None, sound: _Sound, faults: Faults) -> None:
    devices = sound.object(linux, "linux.netDevices")
    if devices and kinds is not None and "network" not in kinds:
        faults.append(("linux.netDevices", "needs a network namespace"))
    seen = set()
    for name, device in devices.items():
        path = f"linux.netDevices[{name[:64]!r}]"
        new_name = (sound.field(device, f"{path}.name") if sound(path) else None) or name
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


def _seccomp(section: dict[str, Any], sound: _Sound, faults: Faults) -> None:
    path = "linux.seccomp"
    _errno(section, f"{path}.defaultAction", f"{path}.defaultErrnoRet", sound, faults)
    if sound.field(section, f"{path}.defaultAction") == "SCMP_ACT_NOTIFY":
        faults.append((f"{path}.defaultAction", "SCMP_ACT_NOTIFY cannot be the default"))
    notifies = False
    for where, rule in sound.entries(section, f"{path}.syscalls"):
        _errno(rule, f"{where}.action", f"{where}.errnoRet", sound, faults)
        if sound.field(rule, f"{where}.action") == "SCMP_ACT_NOTIFY":
            notifies = True
            # The process tells of its listener by a write, which would wait for it.
            if "write" in (sound.field(rule, f"{where}.names") or []):
                faults.append((f"{where}.action", "SCMP_ACT_NOTIFY cannot be used for write"))
    if sound(f"{path}.listenerPath") and not section.get("listenerPath"):
        if notifies:
            faults.append((f"{path}.listenerPath", "is required with SCMP_ACT_NOTIFY"))
        if sound.field(section, f"{path}.listenerMetadata"):
            faults.append((f"{path}.listenerMetadata", "needs a listenerPath"))
    flags = sound.field(section, f"{path}.flags") or []
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in flags and not notifies and sound(f"{path}.syscalls"):
        faults.append((f"{path}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs SCMP_ACT_NOTIFY"))


def _errno(section: Any, action_path: str, path: str, sound: _Sound, faults: Faults) -> None:
    action = sound.field(section, action_path)
    if action and action not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and sound.field(section, path):
        faults.append((path, f"{action} takes no errno"))


def _mount(config: dict[str, Any], mount: Any, path: str, sound: _Sound, faults: Faults) -> None:
    destination = sound.field(mount, f"{path}.destination")
    if destination and not posixpath.normpath(destination).strip("/"):
        faults.append((f"{path}.destination", "must not be the root, which root.path is for"))
    uids, gids = f"{path}.uidMappings", f"{path}.gidMappings"
    _ranges(mount, uids, sound, faults)
    _ranges(mount, gids, sound, faults)
    if sound(uids, gids) and bool(mount.get("uidMappings")) != bool(mount.get("gidMappings")):
        faults.append((path, "uidMappings and gidMappings go together"))
    if not sound(f"{path}.type", f"{path}.options"):
        return
    options = mount.get("options") or []
    bind = mount.get("type") == "bind" or "bind" in options or "rbind" in options
    if bind and not mount.get("source") and sound(f"{path}.source"):
        faults.append((f"{path}.source", "is required of a bind mount"))
    if not bind and not mount.get("type"):
        faults.append((f"{path}.type", "is required, save of a bind mount"))
    _id_mapped(config, mount, path, sound, faults, bind=bind)
    _options(mount, options, path, faults)


def _options(mount: dict[str, Any], options: list[str], path: str, faults: Faults) -> None:
    if "tmpcopyup" in options and mount.get("type") != "tmpfs":
        faults.append((f"{path}.options", "tmpcopyup is of a tmpfs only"))
    if "remount" in options and (mount.get("uidMappings") or "idmap" in options or "ridmap" in options):
        faults.append((f"{path}.options", "a remount cannot map ids"))


def _id_mapped(
    config: dict[str, Any], mount: dict[str, Any], path: str, sound: _Sound, faults: Faults, *, bind: bool
) -> None:
    options, mapped = mount.get("options") or [], bool(mount.get("uidMappings"))
    asked = mapped or "idmap" in options or "ridmap" in options
    if asked and not bind:
        faults.append((f"{path}.options", "only a bind mount can have its ids mapped"))
    others = sound.object(config, "linux").get("uidMappings")
    if asked and not mapped and not others and sound(f"{path}.uidMappings", "linux.uidMappings"):
        faults.append((f"{path}.uidMappings", "is required where the container has no user namespace of its own"))

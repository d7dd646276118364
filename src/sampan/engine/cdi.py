"""CDI devices: what a container is given for ``vendor.com/class=name`` (Container Device Interface specification 1.0).

Specification files lie in a list of directories; of two that describe one device, that of the later directory counts,
and two in one directory are a conflict. Files are read when a container asks for a device: drivers write them anew.
"""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sampan.errors import InvalidInput

#: Names of annotations that ask for devices, for kubelets and users that know no better way (specification, 3).
ANNOTATION = "cdi.k8s.io/"
_LARGEST = 4 << 20
_MOST_FILES = 256
_KIND = r"[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]/[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?"
_QUALIFIED = re.compile(rf"(?P<kind>{_KIND})=(?P<name>[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?)\Z")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class _Device(NamedTuple):
    """A device that a file describes: its own edits, and those of the file."""

    path: str
    #: Position of the file's directory: the later, the more it counts.
    rank: int
    edits: dict[str, Any]
    common: dict[str, Any]


def asked_for(names: Iterable[str], annotations: dict[str, str]) -> tuple[str, ...]:
    """Devices of a request: those of its field, and those of its annotations; each once."""
    found = dict.fromkeys(names)
    for key, value in sorted(annotations.items()):
        if key.startswith(ANNOTATION):
            found.update(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    return tuple(found)


def apply(document: dict[str, Any], names: Sequence[str], directories: Sequence[str]) -> None:
    """Edit a container's config.json for the devices.

    Args:
        document: config.json, changed in place.
        names: Qualified names of devices.
        directories: Where specifications are.

    Raises:
        InvalidInput: A name is no device's, no file describes it, or a file that does is wrong; named by its field.
    """
    if not names:
        return
    known: dict[str, list[_Device]] = {}
    broken: list[str] = []
    for rank, directory in enumerate(directories):
        for path in _files(directory):
            try:
                _register(known, path, rank)
            except InvalidInput as error:
                broken.append(str(error))
    edited: list[str] = []
    for position, name in enumerate(names):
        device = _find(known, broken, name, f"CDI_devices[{position}]")
        # What is common to all devices of a file is done once.
        for edits in ([] if device.path in edited else [device.common]) + [device.edits]:
            _edit(document, edits, device.path)
        edited.append(device.path)


def _files(directory: str) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith((".json", ".yaml", ".yml")))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in names[:_MOST_FILES]]


def _find(known: dict[str, list[_Device]], broken: list[str], name: str, field: str) -> _Device:
    if not _QUALIFIED.match(name):
        raise InvalidInput(f"{name[:200]!r} is not of the form vendor.com/class=name", field=field)
    found = known.get(name, [])
    if not found:
        hint = f"and {len(broken)} files are wrong: {broken[0]}" if broken else ""
        raise InvalidInput(f'no CDI specification describes "{name}"', field=field, hint=hint)
    best = max(device.rank for device in found)
    chosen = [device for device in found if device.rank == best]
    if len(chosen) > 1:
        raise InvalidInput(f'"{name}" is described by {" and ".join(d.path for d in chosen)}', field=field)
    return chosen[0]


def _register(known: dict[str, list[_Device]], path: str, rank: int) -> None:
    document = _read(path)
    kind = document.get("kind")
    if not isinstance(kind, str) or not re.fullmatch(_KIND, kind):
        raise InvalidInput(f"{str(kind)[:100]!r} is not of the form vendor.com/class", field=f"{path}: kind")
    common = _object(document.get("containerEdits", {}), f"{path}: containerEdits")
    for position, device in enumerate(_list(document.get("devices", []), f"{path}: devices")):
        where = f"{path}: devices[{position}]"
        name = _object(device, where).get("name")
        if not isinstance(name, str):
            raise InvalidInput("is missing", field=f"{where}.name")
        edits = _object(device.get("containerEdits", {}), f"{where}.containerEdits")
        known.setdefault(f"{kind}={name}", []).append(_Device(path, rank, edits, common))


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise InvalidInput(error.strerror or str(error), field=path) from error
    if len(text) > _LARGEST:
        raise InvalidInput(f"is larger than {_LARGEST} bytes", field=path)
    try:
        document = _parse_yaml(text, path) if path.endswith((".yaml", ".yml")) else _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"can't be read: {' '.join(str(error).split())[:300]}", field=path) from None
    return _object(document, path)


def _parse_json(text: bytes) -> Any:
    import json

    return json.loads(text)


def _parse_yaml(text: bytes, path: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise InvalidInput("is YAML, which needs PyYAML", field=path, hint="install it, or write JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput("is not an object", field=field)
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput("is not a list", field=field)
    return value


def _edit(document: dict[str, Any], edits: dict[str, Any], path: str) -> None:
    """Apply ``containerEdits`` (specification, 5)."""
    process, linux = document["process"], document["linux"]
    for entry in _list(edits.get("env") or [], f"{path}: env"):
        name, equals, _ = str(entry).partition("=")
        if not name or not equals or "\0" in str(entry):
            raise InvalidInput(f"{str(entry)[:100]!r} is not NAME=VALUE", field=f"{path}: env")
        process["env"] = [*(old for old in process["env"] if not old.startswith(f"{name}=")), str(entry)]
    for node in _list(edits.get("deviceNodes") or [], f"{path}: deviceNodes"):
        _add_device(linux, _object(node, f"{path}: deviceNodes"), f"{path}: deviceNodes")
    for mount in _list(edits.get("mounts") or [], f"{path}: mounts"):
        document["mounts"].append(_mount(_object(mount, f"{path}: mounts"), f"{path}: mounts"))
    for hook in _list(edits.get("hooks") or [], f"{path}: hooks"):
        _add_hook(document, _object(hook, f"{path}: hooks"), f"{path}: hooks")
    groups = process["user"].setdefault("additionalGids", [])
    groups += [
        gid for gid in edits.get("additionalGids") or [] if isinstance(gid, int) and gid > 0 and gid not in groups
    ]
    if edits.get("intelRdt"):
        linux["intelRdt"] = _object(edits["intelRdt"], f"{path}: intelRdt")
    for device in _list(edits.get("netDevices") or [], f"{path}: netDevices"):
        given = _object(device, f"{path}: netDevices")
        linux.setdefault("netDevices", {})[str(given.get("hostInterfaceName"))] = {"name": str(given.get("name"))}


def _absolute(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise InvalidInput(f"{str(value)[:100]!r} is not an absolute path without ..", field=field)
    return value


def _add_device(linux: dict[str, Any], node: dict[str, Any], field: str) -> None:
    inside = _absolute(node.get("path"), f"{field}.path")
    source = _absolute(node.get("hostPath") or inside, f"{field}.hostPath")
    device: dict[str, Any] = {
        "path": inside,
        **{key: node[key] for key in ("type", "major", "minor", "fileMode") if key in node},
    }
    if "major" not in device or "type" not in device:
        try:
            status = os.stat(source)
        except OSError as error:
            raise InvalidInput(f"{source}: {error.strerror}", field=f"{field}.hostPath") from error
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise InvalidInput(f"{source} is no device", field=f"{field}.hostPath")
        device["type"] = "c" if stat.S_ISCHR(status.st_mode) else "b"
        device["major"], device["minor"] = os.major(status.st_rdev), os.minor(status.st_rdev)
        device.setdefault("fileMode", stat.S_IMODE(status.st_mode))
    device.update({key: node[key] for key in ("uid", "gid") if key in node})
    linux["devices"] = [*(old for old in linux["devices"] if old["path"] != inside), device]
    if device["type"] in ("c", "b", "u"):
        rule = {key: device[key] for key in ("type", "major", "minor")}
        access = str(node.get("permissions") or "rwm")
        linux["resources"].setdefault("devices", []).append({"allow": True, **rule, "access": access})


def _mount(mount: dict[str, Any], field: str) -> dict[str, Any]:
    destination = _absolute(mount.get("containerPath"), f"{field}.containerPath")
    kind = str(mount.get("type") or "bind")
    source = _absolute(mount.get("hostPath"), f"{field}.hostPath") if kind == "bind" else str(mount.get("hostPath", ""))
    options = [str(option) for option in mount.get("options") or ["ro", "nosuid", "nodev"]]
    if kind == "bind" and not {"bind", "rbind"}.intersection(options):
        options.insert(0, "rbind")
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _add_hook(document: dict[str, Any], hook: dict[str, Any], field: str) -> None:
    name = hook.get("hookName")
    if name not in _HOOKS:
        raise InvalidInput(f"{str(name)[:100]!r} is none of {', '.join(_HOOKS)}", field=f"{field}.hookName")
    made: dict[str, Any] = {"path": _absolute(hook.get("path"), f"{field}.path")}
    made.update({key: hook[key] for key in ("args", "env", "timeout") if hook.get(key)})
    document.setdefault("hooks", {}).setdefault(name, []).append(made)

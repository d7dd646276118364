"""A network's configuration as its files say it: read, checked as far as can be without running it.

A list of plugins, or a single one as a list of one. Plugins may also stand in files of their own, ``NETWORK/*.conf``
beside the conflist, and come behind those of the list. Everything that is wrong is told with file, plugin and field.
"""

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from sampan.errors import InvalidInput
from sampan.network import plugins
from sampan.network.call import decode
from sampan.network.plugins import hostlocal
from sampan.spec import cni

_MAX_FILE = 1 << 20
_MAX_PLUGINS = 64
#: A plugin's key by which a configuration says that the external binary shall run even if the type is built in.
RUN_KEY = "sampan"


class NetworkList(msgspec.Struct, kw_only=True, frozen=True):
    """A network: a name and the plugins that make it, in order."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]
    #: File it came from; empty for the one that is built in.
    path: str = ""
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """As a conflist says it."""
        return {"cniVersion": self.version, "name": self.name, "plugins": list(self.plugins)}


class _PluginHead(msgspec.Struct):
    type: str
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}


class _ListHead(msgspec.Struct, kw_only=True):
    name: str
    plugins: list[dict[str, Any]]
    cni_version: str = msgspec.field(name="cniVersion", default="")
    cni_versions: list[str] = msgspec.field(name="cniVersions", default_factory=list)
    disable_check: bool | str = msgspec.field(name="disableCheck", default=False)
    disable_gc: bool | str = msgspec.field(name="disableGC", default=False)


def read_file(path: str) -> NetworkList:
    """Read one configuration.

    Raises:
        InvalidInput: With the file, and the plugin's index and field where it is about one.
    """
    document = _read(path)
    beside: list[str] = []
    try:
        beside = _beside(path, document)
        return parse(document, path, [(at, _read(at)) for at in beside])
    except InvalidInput as error:
        # What a file beside is at fault for says so itself.
        if any(error.message.startswith(f"{at}: ") for at in beside):
            raise
        raise InvalidInput(f"{path}: {error.message}", hint=error.hint) from None


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise InvalidInput(f"{path}: more than {_MAX_FILE} bytes")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON: {error}") from None


def _beside(path: str, document: Any) -> list[str]:
    """The files of plugins that a conflist's network has in a directory of its name, in order."""
    name = document.get("name") if isinstance(document, dict) else None
    if not path.endswith(".conflist") or not isinstance(name, str) or not _is_name(name):
        return []
    if _flag(document.get("loadOnlyInlinedPlugins", False), "loadOnlyInlinedPlugins"):
        return []
    folder = os.path.join(os.path.dirname(path), name)
    try:
        found = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(".conf") and entry.is_file())
    except OSError:
        return []
    return found


def _flag(value: object, field: str) -> bool:
    """A key that libcni takes as a boolean or as a word."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InvalidInput(f"{value!r} is neither true nor false", field=field)


def parse(document: Any, path: str = "", beside: Sequence[tuple[str, Any]] = ()) -> NetworkList:
    """Check a configuration, a list or a single plugin's, as far as can be without running it.

    Args:
        document: The configuration.
        path: Its file.
        beside: Plugins that come behind its own, each with its file.
    """
    if not isinstance(document, dict):
        raise InvalidInput("a network configuration is a JSON object")
    if beside:
        document = {**document, "plugins": document.get("plugins") or []}
    if "plugins" not in document:
        if path.endswith(".conflist"):
            raise InvalidInput("a conflist has a list of plugins", field="plugins")
        document = {"name": document.get("name"), "cniVersion": document.get("cniVersion", ""), "plugins": [document]}
    head = decode(document, _ListHead)
    if not _is_name(head.name):
        raise InvalidInput(f"{head.name!r} is no name for a network", field="name")
    count = len(head.plugins) + len(beside)
    if not 0 < count <= _MAX_PLUGINS:
        raise InvalidInput(f"a network has 1 to {_MAX_PLUGINS} plugins, not {count}", field="plugins")
    version = _version(head)
    for index, plugin in enumerate(head.plugins):
        _check_plugin(plugin, f"plugins[{index}]", head.name, version)
    for file, plugin in beside:
        try:
            _check_plugin(plugin, "", head.name, version)
        except InvalidInput as error:
            raise InvalidInput(f"{file}: {error.message}", hint=error.hint) from None
    return NetworkList(
        name=head.name,
        version=version,
        plugins=(*head.plugins, *(plugin for _file, plugin in beside)),
        path=path,
        disable_check=_flag(head.disable_check, "disableCheck"),
        disable_gc=_flag(head.disable_gc, "disableGC"),
    )


def _is_name(name: str) -> bool:
    """Letters, digits, ``-``, ``_`` and ``.``, the first a letter or digit: CNI SPEC.md, section 1."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return name.isascii() and plain.isalnum() and name[0].isalnum() and len(name) <= 200


def _version(head: _ListHead) -> str:
    stated = [head.cni_version or cni.UNSTATED_VERSION, *head.cni_versions]
    known = [version for version in cni.VERSIONS if version in stated]
    if not known:
        raise InvalidInput(
            f"CNI {stated[0]} is not understood", field="cniVersion", hint=f"say one of {', '.join(cni.VERSIONS)}"
        )
    return known[-1]


def _check_plugin(plugin: dict[str, Any], at: str, name: str, version: str) -> None:
    head = decode(plugin, _PluginHead, at=at)
    if not head.type or "/" in head.type or head.type.startswith("."):
        raise InvalidInput(f"{head.type!r} is no plugin type", field=f"{at}.type".lstrip("."))
    whole = {**plugin, "name": name, "cniVersion": version}
    built_in = None if external(plugin) else plugins.find(head.type)
    if built_in is not None:
        decode(whole, built_in.Conf, at=at)
    if head.ipam:
        kind = head.ipam.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise InvalidInput(f"{kind!r} is no plugin type", field=f"{at}.ipam.type".lstrip("."))
        if kind == "host-local" and not _filled_in_later(plugin):
            decode(whole, hostlocal.Conf, at=at)


def _filled_in_later(plugin: dict[str, Any]) -> bool:
    """Whether the ranges come with each call, by the capability ``ipRanges``."""
    return bool((plugin.get("capabilities") or {}).get("ipRanges"))


def external(plugin: dict[str, Any]) -> bool:
    """Whether the plugin's configuration asks for the external binary."""
    return plugin.get(RUN_KEY) == "external"

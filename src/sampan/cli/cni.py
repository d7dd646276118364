"""``sampan-cni``: the built-in plugins as a CNI executable, for other runtimes. CNI SPEC.md, section 2.

Installed under a plugin's name (a link ``bridge`` -> ``sampan-cni`` in /opt/cni/bin), it is that plugin; under its
own, the one that the configuration's ``type`` names. SAMPAN_CNI_STATE in the environment says where leases and rules
are kept, if not in /run/sampan/network.
"""

import os
import sys
from typing import Any

import msgspec

from sampan.errors import AlreadyExists, InvalidInput, NotFound, SampanError, StageFailed, Unsupported
from sampan.network import execution, plugins
from sampan.network.attach import Delegation
from sampan.network.call import Call, Session
from sampan.network.config import Networks
from sampan.network.manage import forget
from sampan.network.state import State
from sampan.spec import cni

STATE = "/run/sampan/network"
_MAX_INPUT = 1 << 20
_CODES: tuple[tuple[type[SampanError], int], ...] = (
    (InvalidInput, cni.CODE_INVALID_CONFIG),
    (Unsupported, cni.CODE_UNSUPPORTED_FIELD),
    (NotFound, cni.CODE_UNKNOWN_CONTAINER),
    (AlreadyExists, cni.CODE_TRY_AGAIN),
    (StageFailed, cni.CODE_IO_FAILURE),
)


def main() -> int:
    """Run the call that the environment describes; print its result or an error object."""
    environment = os.environ
    command = environment.get("CNI_COMMAND", "")
    if not command:
        print(f"sampan-cni: CNI plugins {', '.join(sorted(plugins.TYPES))}", file=sys.stderr)
        return 0
    document: dict[str, Any] = {}
    try:
        document = _document()
        output = _run(command, document, dict(environment))
    except SampanError as error:
        return _fail(error, document)
    except OSError as error:
        return _fail(StageFailed(f"{command} of {document.get('type', 'a plugin')}", error), document)
    if output is not None:
        sys.stdout.buffer.write(msgspec.json.encode(output) + b"\n")
    return 0


def _document() -> dict[str, Any]:
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise InvalidInput(f"the configuration has more than {_MAX_INPUT} bytes")
    try:
        document = msgspec.json.decode(data or b"{}")
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the configuration is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the configuration is no JSON object")
    return document


def _fail(error: SampanError, document: dict[str, Any]) -> int:
    code = next((number for kind, number in _CODES if isinstance(error, kind)), cni.CODE_INTERNAL)
    if isinstance(error, execution.PluginFailed):
        code = error.code
    version = str(document.get("cniVersion") or cni.VERSIONS[-1])
    sys.stdout.buffer.write(cni.error_document(code, error.message, error.hint, version) + b"\n")
    return 1


def _run(command: str, conf: dict[str, Any], environment: dict[str, str]) -> dict[str, Any] | None:
    version = str(conf.get("cniVersion") or cni.VERSIONS[-1])
    if command == "VERSION":
        return {"cniVersion": version, "supportedVersions": list(cni.VERSIONS)}
    if version not in cni.VERSIONS:
        raise InvalidInput(f"{version} is none of {', '.join(cni.VERSIONS)}", field="cniVersion")
    conf["cniVersion"] = version
    called = os.path.basename(sys.argv[0])
    kind = called if called in plugins.TYPES else str(conf.get("type", ""))
    plugin = plugins.find(kind)
    if plugin is None:
        raise InvalidInput(f"{kind!r} is not built in", field="type")
    state = State(environment.get("SAMPAN_CNI_STATE") or STATE)
    if command == "STATUS":
        return None
    if command == "GC":
        _collect(state, conf)
        return None
    if command not in ("ADD", "DEL", "CHECK"):
        raise InvalidInput(f"{command!r} is no command of CNI", field="CNI_COMMAND")
    return _call(plugin, command, conf, state, environment)


def _call(
    plugin: plugins.Plugin, command: str, conf: dict[str, Any], state: State, environment: dict[str, str]
) -> dict[str, Any] | None:
    for name in ("CNI_CONTAINERID", "CNI_IFNAME", *(() if command == "DEL" else ("CNI_NETNS",))):
        if not environment.get(name):
            raise InvalidInput("is not set", field=name)
    path = environment.get("CNI_PATH", "")
    networks = Networks("", state, tuple(part for part in path.split(":") if part), default=False)
    args = dict(pair.split("=", 1) for pair in environment.get("CNI_ARGS", "").split(";") if "=" in pair)
    with Session(state, environment.get("CNI_NETNS", ""), Delegation(networks)) as session:
        call = Call(session, conf, environment["CNI_CONTAINERID"], environment["CNI_IFNAME"], args)
        try:
            result = plugins.run(plugin, command, call)
        except BaseException:
            if command == "ADD":
                _undo(plugin, call)
            raise
    return result if command == "ADD" else None


def _undo(plugin: plugins.Plugin, call: Call) -> None:
    try:
        plugin.delete(call)
    except (SampanError, OSError):
        pass


def _collect(state: State, conf: dict[str, Any]) -> None:
    """GC: free what no valid attachment of this network owns."""
    entries = conf.get("cni.dev/valid-attachments") or conf.get("cni.dev/attachments") or []
    valid = {(entry.get("containerID"), entry.get("ifname")) for entry in entries if isinstance(entry, dict)}
    for owner in state.owners_of(str(conf.get("name", ""))):
        if (owner.container, owner.ifname) not in valid:
            forget(state, owner)


if __name__ == "__main__":
    sys.exit(main())

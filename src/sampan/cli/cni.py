"""``sampan-cni``: the built-in plugins as a CNI executable, for other runtimes. CNI SPEC.md, section 2.

Installed under a plugin's name (a link ``bridge`` -> ``sampan-cni`` in /opt/cni/bin), it is that plugin; under its
own, the one that the configuration's ``type`` names. Leases and rules are kept with those of the machine's own daemon,
which leaves them to the runtime that asked for them; SAMPAN_CNI_STATE in the environment names another directory.
"""

import os
import sys
from typing import Any

import msgspec

from sampan.errors import AlreadyExists, InvalidInput, NotFound, SampanError, StageFailed, Unsupported
from sampan.network import conflist, execution, foreign, plugins
from sampan.network.attach import Delegation, check_id, check_interface
from sampan.network.call import Call, Session
from sampan.network.config import Networks
from sampan.network.manage import forget
from sampan.network.state import USUAL, State
from sampan.spec import cni

_MAX_INPUT = 1 << 20
#: The first version that has each command (CNI SPEC.md, section 2).
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
#: Key of GC's configuration that has what is to stay (CNI specification 1.1, "GC").
_VALID = "cni.dev/valid-attachments"
_CODES: tuple[tuple[type[SampanError], int], ...] = (
    (InvalidInput, cni.CODE_INVALID_CONFIG),
    (Unsupported, cni.CODE_UNSUPPORTED_FIELD),
    (NotFound, cni.CODE_UNKNOWN_CONTAINER),
    (AlreadyExists, cni.CODE_TRY_AGAIN),
    (StageFailed, cni.CODE_IO_FAILURE),
)


class _BadCall(InvalidInput):
    """Not the configuration but the call is wrong.

    Args:
        code: The specification's code for it.
        message: What is wrong.
        field: Variable of the environment, or key of the document.
    """

    def __init__(self, code: int, message: str, field: str = "") -> None:
        super().__init__(message, field=field)
        self.code = code


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
        raise _BadCall(cni.CODE_DECODING_FAILURE, f"the configuration has more than {_MAX_INPUT} bytes")
    try:
        document = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise _BadCall(cni.CODE_DECODING_FAILURE, f"the configuration is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _BadCall(cni.CODE_DECODING_FAILURE, "the configuration is no JSON object")
    return document


def _fail(error: SampanError, document: dict[str, Any]) -> int:
    code = next((number for kind, number in _CODES if isinstance(error, kind)), cni.CODE_INTERNAL)
    if isinstance(error, (execution.PluginFailed, _BadCall)):
        code = error.code
    version = str(document.get("cniVersion") or cni.VERSIONS[-1])
    sys.stdout.buffer.write(cni.error_document(code, error.message, error.hint, version) + b"\n")
    return 1


def _run(command: str, conf: dict[str, Any], environment: dict[str, str]) -> dict[str, Any] | None:
    version = str(conf.get("cniVersion") or cni.VERSIONS[-1])
    if command == "VERSION":
        return {"cniVersion": version, "supportedVersions": list(cni.VERSIONS)}
    if command not in ("ADD", "DEL", "CHECK", "STATUS", "GC"):
        raise _BadCall(cni.CODE_INVALID_ENVIRONMENT, f"{command!r} is no command of CNI", "CNI_COMMAND")
    if version not in cni.VERSIONS:
        text = f"{version} is none of {', '.join(cni.VERSIONS)}"
        raise _BadCall(cni.CODE_INCOMPATIBLE_VERSION, text, "cniVersion")
    since = _SINCE.get(command, version)
    if cni.VERSIONS.index(version) < cni.VERSIONS.index(since):
        raise _BadCall(cni.CODE_INCOMPATIBLE_VERSION, f"{version} has no {command}, {since} has", "cniVersion")
    conf["cniVersion"] = version
    called = os.path.basename(sys.argv[0])
    kind = called if called in plugins.TYPES else str(conf.get("type", ""))
    plugin = plugins.find(kind)
    if plugin is None:
        raise InvalidInput(f"{kind!r} is not built in", field="type")
    path = environment.get("CNI_PATH", "")
    state = State(environment.get("SAMPAN_CNI_STATE") or USUAL)
    networks = Networks("", state, tuple(part for part in path.split(":") if part), default=False)
    if command in ("STATUS", "GC"):
        _of_all(command, kind, conf, networks)
        return None
    return _call(kind, plugin, command, conf, networks, environment)


def _call(
    kind: str,
    plugin: plugins.Plugin,
    command: str,
    conf: dict[str, Any],
    networks: Networks,
    environment: dict[str, str],
) -> dict[str, Any] | None:
    for name in ("CNI_CONTAINERID", "CNI_IFNAME", *(() if command == "DEL" else ("CNI_NETNS",))):
        if not environment.get(name):
            raise _BadCall(cni.CODE_INVALID_ENVIRONMENT, "is not set", name)
    try:
        check_id(environment["CNI_CONTAINERID"])
        check_interface(environment["CNI_IFNAME"])
    except InvalidInput as error:
        raise _BadCall(cni.CODE_INVALID_ENVIRONMENT, error.message) from None
    args = dict(pair.split("=", 1) for pair in environment.get("CNI_ARGS", "").split(";") if "=" in pair)
    with Session(networks.state, environment.get("CNI_NETNS", ""), Delegation(networks)) as session:
        if command == "ADD" and kind not in plugins.IPAM:
            session.netns  # noqa: B018 - an error before anything is done
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


def _of_all(command: str, kind: str, conf: dict[str, Any], networks: Networks) -> None:
    """STATUS and GC, which are about a network and no container; an IPAM plugin that is external is asked in turn."""
    own = {**conf, "type": kind}
    own.pop(conflist.RUN_KEY, None)
    network = conflist.parse(own)
    if command == "GC":
        conf = _with_ours(networks.state, conf)
        _collect(networks.state, conf)
    for ipam, _ in foreign.calls(network):
        networks.call(ipam, command, conf)


def _with_ours(state: State, conf: dict[str, Any]) -> dict[str, Any]:
    """With our engines' own pods on that network among the valid attachments: the caller does not know of them."""
    entries = conf.get(_VALID) or conf.get("cni.dev/attachments") or []
    network = str(conf.get("name", ""))
    ours = [
        {"containerID": owner.container, "ifname": owner.ifname}
        for owner in state.attachments()
        if owner.network == network
    ]
    return {**conf, _VALID: [*entries, *ours]}


def _collect(state: State, conf: dict[str, Any]) -> None:
    """GC: free what no valid attachment of this network owns."""
    valid = {(entry.get("containerID"), entry.get("ifname")) for entry in conf[_VALID] if isinstance(entry, dict)}
    for owner in state.owners_of(str(conf.get("name", ""))):
        if (owner.container, owner.ifname) not in valid:
            forget(state, owner)


if __name__ == "__main__":
    sys.exit(main())

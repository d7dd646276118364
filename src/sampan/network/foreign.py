"""What external plugins are asked of a whole network: VERSION, and STATUS and GC of CNI 1.1."""

import math
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from sampan.errors import SampanError
from sampan.network import execution, plugins
from sampan.network.attach import plugin_conf
from sampan.network.call import decode
from sampan.network.config import Networks
from sampan.network.conflist import NetworkList, external
from sampan.spec import cni

#: Where containerd, CRI-O and Podman keep libcni's results of what they attached.
RESULTS_OF_OTHERS = "/var/lib/cni/results"
#: The kubelet asks for the status every few seconds, and waits; so does a person who looks at a network.
_STATUS_SECONDS = 10.0


def calls(network: NetworkList) -> Iterator[tuple[str, dict[str, Any]]]:
    """The external plugins of a network, and the external IPAM plugins of built-in ones, with their configuration."""
    for plugin in network.plugins:
        ipam = plugin.get("ipam") or {}
        kinds = [str(plugin["type"])]
        if plugins.find(kinds[0]) is not None and not external(plugin):
            # Who is run as a program asks its IPAM plugin itself.
            kinds = [str(ipam["type"])] if ipam.get("type") else []
            if not kinds or (plugins.find(kinds[0]) is not None and not external(ipam)):
                continue
        for kind in kinds:
            yield kind, plugin_conf(network, plugin, {}, None)


class Program(msgspec.Struct, frozen=True):
    """An external plugin of a network."""

    type: str
    path: str = ""
    #: Versions of CNI that it says to speak.
    versions: tuple[str, ...] = ()
    #: Why the network can't work with it; empty when it can.
    fault: str = ""


def programs(networks: Networks, network: NetworkList) -> tuple[Program, ...]:
    """The external plugins of a network, each asked for its VERSION; never raises."""
    return tuple(_ask_version(networks, kind, network.version) for kind, _conf in calls(network))


def _ask_version(networks: Networks, kind: str, wanted: str) -> Program:
    path = ""
    try:
        path = execution.find(kind, networks.bin_dirs)
        answer = execution.run(
            path, "VERSION", {"cniVersion": wanted}, bin_dirs=networks.bin_dirs, deadline=_STATUS_SECONDS
        )
        versions = tuple(decode(answer, cni.VersionInfo, at="answer to VERSION").supported_versions)
    except SampanError as error:
        return Program(kind, path, fault=str(error))
    fault = "" if wanted in versions else f"it does not speak CNI {wanted}, which the configuration asks for"
    return Program(kind, path, versions, fault)


def status(networks: Networks, network: NetworkList) -> None:
    """Ask each external plugin of a network of CNI 1.1 whether it can serve.

    Raises:
        SampanError: What one said, or how it failed.
    """
    if network.version != "1.1.0":
        return
    for kind, conf in calls(network):
        networks.call(kind, "STATUS", conf, deadline=_STATUS_SECONDS)


def collect(networks: Networks, network: NetworkList, until: float = math.inf) -> list[str]:
    """Have the external plugins of a network of CNI 1.1 free what belongs to no attachment; what failed.

    Nothing is collected on a network that another runtime has attached containers to, which the plugins could not tell
    from garbage.

    Args:
        networks: Where plugins are looked for.
        network: The network.
        until: Time on the monotonic clock at which who has not ended is ended, and who is left is not asked.
    """
    if network.version != "1.1.0" or network.disable_gc:
        return []
    asked = list(calls(network))
    if not asked or _shared(network.name):
        return []
    valid = [
        {"containerID": owner.container, "ifname": owner.ifname}
        for owner in networks.state.attachments()
        if owner.network == network.name
    ]
    errors = []
    for kind, conf in asked:
        # The second name is what libcni's first versions called it.
        conf |= {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
        deadline = min(networks.deadline, until - time.monotonic())
        if deadline <= 0:
            errors.append(f"network {network.name}: CNI plugin {kind} was not asked to collect: others took the time")
            continue
        try:
            networks.call(kind, "GC", conf, deadline=deadline)
        except SampanError as error:
            errors.append(f"network {network.name}: {error}")
    return errors


def _shared(name: str) -> bool:
    try:
        return any(entry.startswith(f"{name}-") for entry in os.listdir(RESULTS_OF_OTHERS))
    except OSError:
        return False

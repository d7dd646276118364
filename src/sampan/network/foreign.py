"""What external plugins are asked of a whole network: STATUS and GC of CNI 1.1."""

import os
from collections.abc import Iterator
from typing import Any

from sampan.errors import SampanError
from sampan.network import execution, plugins
from sampan.network.attach import plugin_conf
from sampan.network.config import NetworkList, Networks, external

#: Where containerd, CRI-O and Podman keep libcni's results of what they attached.
RESULTS_OF_OTHERS = "/var/lib/cni/results"
#: The kubelet asks for the status every few seconds, and waits.
_STATUS_SECONDS = 10.0


def _calls(network: NetworkList) -> Iterator[tuple[str, dict[str, Any]]]:
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


def status(networks: Networks, network: NetworkList) -> None:
    """Ask each external plugin of a network of CNI 1.1 whether it can serve.

    Raises:
        SampanError: What one said, or how it failed.
    """
    if network.version != "1.1.0":
        return
    for kind, conf in _calls(network):
        binary = execution.find(kind, networks.bin_dirs)
        execution.run(binary, "STATUS", conf, bin_dirs=networks.bin_dirs, deadline=_STATUS_SECONDS)


def collect(networks: Networks, network: NetworkList) -> list[str]:
    """Have the external plugins of a network of CNI 1.1 free what belongs to no attachment; what failed.

    Nothing is collected on a network that another runtime has attached containers to, which the plugins could not tell
    from garbage.
    """
    if network.version != "1.1.0" or network.disable_gc:
        return []
    calls = list(_calls(network))
    if not calls or _shared(network.name):
        return []
    valid = [
        {"containerID": owner.container, "ifname": owner.ifname}
        for owner in networks.state.attachments()
        if owner.network == network.name
    ]
    errors = []
    for kind, conf in calls:
        # The second name is what libcni's first versions called it.
        conf |= {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
        try:
            execution.run(execution.find(kind, networks.bin_dirs), "GC", conf, bin_dirs=networks.bin_dirs)
        except SampanError as error:
            errors.append(f"network {network.name}: {error}")
    return errors


def _shared(name: str) -> bool:
    try:
        return any(entry.startswith(f"{name}-") for entry in os.listdir(RESULTS_OF_OTHERS))
    except OSError:
        return False

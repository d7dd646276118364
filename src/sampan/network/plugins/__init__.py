"""The built-in plugins, one module for each: ``Conf``, ``add``, ``delete``, ``check``.

They take the configuration of the standard plugins of the same name (containernetworking/plugins) and give the same
results; they work over netlink and our nftables table, in the caller's process.
"""

from importlib import import_module
from typing import Any, Protocol

import msgspec

from sampan.network.call import Call
from sampan.spec.cni import Result


class Plugin(Protocol):
    """What a plugin's module has."""

    Conf: type[msgspec.Struct]

    @staticmethod
    def add(call: Call) -> Result:
        """Join the container; undone by the caller with ``delete`` when it raises."""

    @staticmethod
    def delete(call: Call) -> None:
        """Undo ``add``; what is not there is no error, and neither is a namespace that is gone."""

    @staticmethod
    def check(call: Call) -> None:
        """Raise when something that ``add`` made is no longer as it was."""


_MODULES = {
    "bandwidth": "bandwidth",
    "bridge": "bridge",
    "firewall": "firewall",
    "host-device": "hostdevice",
    "host-local": "hostlocal",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "portmap": "portmap",
    "ptp": "ptp",
    "sbr": "sbr",
    "static": "static",
    "tuning": "tuning",
    "vlan": "vlan",
}
#: Types of the plugins that are built in.
TYPES = frozenset(_MODULES)
#: Of these, those that hand out addresses and are called by another plugin.
IPAM = frozenset({"dhcp", "host-local", "static"})


def find(kind: str) -> Plugin | None:
    """The built-in plugin of a type, or None."""
    name = _MODULES.get(kind)
    if name is None:
        return None
    module: Plugin = import_module(f"sampan.network.plugins.{name}")  # type: ignore[assignment]
    return module


def run(plugin: Plugin, command: str, call: Call) -> dict[str, Any]:
    """Run one command of a built-in plugin; of ADD, the result in the configuration's version."""
    if command == "ADD":
        return plugin.add(call).as_version(str(call.conf["cniVersion"]))
    if command == "DEL":
        plugin.delete(call)
    else:
        plugin.check(call)
    return {}

"""Documents of the Container Network Interface: results, errors, cached results. SPEC.md of CNI 1.1.0.

Only what every plugin shares is here; a plugin's own configuration stands beside the plugin.
"""

from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec

#: Versions whose configurations and results are understood, oldest first.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
#: What is assumed of a configuration that says none, as libcni does; results of that age are not understood.
UNSTATED_VERSION = "0.1.0"

# Error codes of the specification, section "Error".
CODE_INCOMPATIBLE_VERSION = 1
CODE_UNSUPPORTED_FIELD = 2
CODE_UNKNOWN_CONTAINER = 3
CODE_INVALID_ENVIRONMENT = 4
CODE_IO_FAILURE = 5
CODE_DECODING_FAILURE = 6
CODE_INVALID_CONFIG = 7
CODE_TRY_AGAIN = 11
CODE_NOT_AVAILABLE = 50
CODE_LIMITED = 51
CODE_INTERNAL = 999


class Interface(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A network interface that a plugin made; without ``sandbox`` it is the machine's."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(name="socketPath", default="")
    pci_id: str = msgspec.field(name="pciID", default="")


class IpConfig(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An address, with its prefix length, and the interface (an index of the result's list) that has it."""

    address: str
    gateway: str = ""
    interface: int | None = None
    #: ``"4"`` or ``"6"``; required before 1.0, gone since.
    version: str = ""


class Route(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A route of the container."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None

    def __post_init__(self) -> None:
        # Addresses are said in their one canonical form, as Go's types do; what is none is left to who uses it.
        try:
            self.dst = str(ip_interface(self.dst)) if "/" in self.dst else self.dst
            self.gw = str(ip_address(self.gw)) if self.gw else self.gw
        except ValueError:
            return


class Dns(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a plugin says of name resolution."""

    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class Result(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What an ADD gave."""

    cni_version: str = msgspec.field(name="cniVersion", default=VERSIONS[-1])
    interfaces: list[Interface] = []
    ips: list[IpConfig] = []
    routes: list[Route] = []
    dns: Dns = msgspec.field(default_factory=Dns)

    def as_version(self, version: str) -> dict[str, Any]:
        """The result as a plugin of ``version`` says it."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        document["cniVersion"] = version
        document.setdefault("dns", {})
        if version.startswith("0."):
            for address in document.get("ips", ()):
                address["version"] = "6" if ":" in address["address"] else "4"
        else:
            for address in document.get("ips", ()):
                address.pop("version", None)
        if version != "1.1.0":
            for link in document.get("interfaces", ()):
                for name in ("mtu", "socketPath", "pciID"):
                    link.pop(name, None)
            for route in document.get("routes", ()):
                for name in ("mtu", "advmss", "priority", "table", "scope"):
                    route.pop(name, None)
        return document


class ErrorObject(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a plugin that failed prints."""

    code: int
    msg: str
    details: str = ""
    cni_version: str = msgspec.field(name="cniVersion", default="")


class VersionInfo(msgspec.Struct, kw_only=True):
    """What VERSION prints."""

    cni_version: str = msgspec.field(name="cniVersion")
    supported_versions: list[str] = msgspec.field(name="supportedVersions")


class PortEntry(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An entry of the ``portMappings`` capability."""

    host_port: int = msgspec.field(name="hostPort")
    container_port: int = msgspec.field(name="containerPort")
    protocol: str = "tcp"
    host_ip: str = msgspec.field(name="hostIP", default="")


class CachedResult(msgspec.Struct, kw_only=True):
    """A file of libcni's result cache."""

    kind: str = "cniCacheV1"
    container_id: str = msgspec.field(name="containerId")
    #: The network's configuration, as bytes (base64 in the file).
    config: bytes = b""
    if_name: str = msgspec.field(name="ifName")
    network_name: str = msgspec.field(name="networkName")
    netns: str = ""
    cni_args: list[tuple[str, str]] = msgspec.field(name="cniArgs", default_factory=list)
    capability_args: dict[str, Any] = msgspec.field(name="capabilityArgs", default_factory=dict)
    result: dict[str, Any] = msgspec.field(default_factory=dict)


def error_document(code: int, message: str, details: str, version: str) -> bytes:
    """An error object as a plugin prints it."""
    return msgspec.json.encode(ErrorObject(code=code, msg=message, details=details, cni_version=version))

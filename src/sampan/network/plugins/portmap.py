"""``portmap``: ports of the machine that lead to the container, as elements of our nftables maps.

``conditionsV4`` and ``conditionsV6`` are in the language of iptables or of nft. Sources, destinations and interfaces
are understood, which is what the plugin's documentation shows; what else the two can match needs the external plugin.
``markMasqBit`` and ``externalSetMarkChain`` say how iptables' rules mark packets for each other, which ours need not;
``backend`` says which of the two the standard plugin shall use.
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import Literal

import msgspec

from sampan.errors import InvalidInput, WrongState
from sampan.network import forwarding, interface
from sampan.network.call import Call
from sampan.network.masquerade import hairpin_elements, host_ports
from sampan.network.netns import set_sysctl
from sampan.spec.cni import PortEntry, Result
from sampan.wire.nfnetlink import Element, concatenation

_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}


class _Runtime(msgspec.Struct):
    port_mappings: list[PortEntry] = msgspec.field(name="portMappings", default_factory=list)


class Conf(msgspec.Struct, kw_only=True):
    """The plugin's configuration."""

    type: str = "portmap"
    backend: Literal["", "iptables", "nftables"] = ""
    snat: bool = True
    mark_masq_bit: int | None = msgspec.field(name="markMasqBit", default=None)
    external_set_mark_chain: str | None = msgspec.field(name="externalSetMarkChain", default=None)
    conditions_v4: list[str] | None = msgspec.field(name="conditionsV4", default=None)
    conditions_v6: list[str] | None = msgspec.field(name="conditionsV6", default=None)
    masq_all: bool = msgspec.field(name="masqAll", default=False)
    runtime_config: _Runtime = msgspec.field(name="runtimeConfig", default_factory=_Runtime)

    def __post_init__(self) -> None:
        if self.mark_masq_bit is not None and self.external_set_mark_chain is not None:
            raise ValueError("markMasqBit: cannot be set together with externalSetMarkChain")
        if self.mark_masq_bit is not None and not 0 <= self.mark_masq_bit <= 31:
            raise ValueError(f"markMasqBit: {self.mark_masq_bit} is not between 0 and 31")
        self.exceptions()

    def exceptions(self) -> tuple[str, ...]:
        """What keeps packets from the mappings: the conditions turned round, as matches of nft."""
        return tuple(
            match
            for version, words in ((4, self.conditions_v4), (6, self.conditions_v6))
            for match in _exceptions(version, words or [])
        )


#: How conditions of nft begin.
_NFT = (("ip", "saddr"), ("ip", "daddr"), ("ip6", "saddr"), ("ip6", "daddr"), ("iifname",), ("meta", "iifname"))


_MATCHES = {
    "-s": "saddr",
    "--source": "saddr",
    "--src": "saddr",
    "-d": "daddr",
    "--destination": "daddr",
    "--dst": "daddr",
    "-i": "iifname",
    "--in-interface": "iifname",
}


def _exceptions(version: int, words: list[str]) -> Iterator[str]:
    """Matches for the packets that the conditions do not let through."""
    field = f"conditionsV{version}"
    read = _of_nft if words and words[0] in {start[0] for start in _NFT} else _of_iptables
    for what, value, negated in read(words, field):
        sign = "" if negated else "!= "
        if what == "iifname":
            if len(value) > 15 or not value.replace("-", "").replace(".", "").replace("_", "").isalnum():
                raise ValueError(f"{field}: {value!r} is no interface name")
            yield f'meta nfproto ipv{version} iifname {sign}"{value}"'
            continue
        try:
            network = ip_network(value, strict=False)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        if network.version != version:
            raise ValueError(f"{field}: {value} is not of IPv{version}")
        yield f"{'ip6' if version == 6 else 'ip'} {what} {sign}{network}"


def _of_iptables(words: list[str], field: str) -> Iterator[tuple[str, str, bool]]:
    """What each condition is about, its value, and whether it is turned round: ``! -d 192.0.2.0/24``."""
    rest = iter(words)
    for word in rest:
        negated = word == "!"
        flag = next(rest, "") if negated else word
        value = next(rest, "")
        if flag not in _MATCHES or not value:
            raise ValueError(f'{field}: {flag!r} is not built in; add "sampan": "external"')
        yield _MATCHES[flag], value, negated


def _of_nft(words: list[str], field: str) -> Iterator[tuple[str, str, bool]]:
    """The same of ``ip daddr != 192.0.2.0/24``."""
    rest = list(words)
    while rest:
        start = next((start for start in _NFT if tuple(rest[: len(start)]) == start), None)
        if start is None:
            raise ValueError(f'{field}: {" ".join(rest[:2])!r} is not built in; add "sampan": "external"')
        del rest[: len(start)]
        operator = rest.pop(0) if rest[:1] in (["=="], ["!="]) else "=="
        if not rest:
            raise ValueError(f"{field}: {' '.join(start)} has no value")
        yield start[-1], rest.pop(0).strip('"'), operator == "!="


def add(call: Call) -> Result:
    """Map the ports of the ``portMappings`` capability to the first address of each family."""
    conf = call.decode(Conf)
    previous = call.previous
    ports = conf.runtime_config.port_mappings
    if not ports:
        return previous
    targets = _targets(previous)
    elements = [element for i, port in enumerate(ports) for element in _map(port, targets, i)]
    if conf.snat:
        if 4 in targets:
            _serve_loopback(call, previous)
        addresses = list(targets.values())
        elements += hairpin_elements(addresses, hide=conf.masq_all)
        host_ports(call, elements, addresses, conf.exceptions())
    else:
        host_ports(call, elements, (), conf.exceptions())
    _forget_stale(call, ports)
    forwarding.let_ports_through(call)
    return previous


def _targets(previous: Result) -> dict[int, IPv4Interface | IPv6Interface]:
    found: dict[int, IPv4Interface | IPv6Interface] = {}
    for config in previous.ips:
        at = config.interface
        if at is not None and at < len(previous.interfaces) and not previous.interfaces[at].sandbox:
            continue
        address = interface.address_of(config)
        found.setdefault(address.version, address)
    if not found:
        raise InvalidInput("no address to map ports to", field="prevResult.ips")
    return found


def _map(port: PortEntry, targets: dict[int, IPv4Interface | IPv6Interface], index: int) -> list[Element]:
    field = f"runtimeConfig.portMappings[{index}]"
    protocol = _PROTOCOLS.get(port.protocol.lower())
    if protocol is None:
        raise InvalidInput(f"{port.protocol!r} is none of tcp, udp, sctp", field=f"{field}.protocol")
    for name, value in (("hostPort", port.host_port), ("containerPort", port.container_port)):
        if not 0 < value < 65536:
            raise InvalidInput(f"{value} is not between 1 and 65535", field=f"{field}.{name}")
    what = concatenation(bytes((protocol,)), port.host_port.to_bytes(2, "big"))
    try:
        host = ip_address(port.host_ip) if port.host_ip else None
    except ValueError as error:
        raise InvalidInput(str(error), field=f"{field}.hostIP") from None
    if host is not None and host.is_unspecified:
        targets, host = {v: t for v, t in targets.items() if v == host.version}, None
    elements = [] if host is not None else [Element("mapped", what)]
    for version, target in targets.items():
        data = concatenation(target.ip.packed, port.container_port.to_bytes(2, "big"))
        if host is None:
            elements.append(Element(f"ports{version}", what, data))
        elif host.version == version:
            key = concatenation(host.packed) + what
            elements += [Element(f"hostports{version}", key, data), Element(f"mapped{version}", key)]
    return elements


def _serve_loopback(call: Call, previous: Result) -> None:
    """Let connections to 127.0.0.1 reach the container; see guard in :mod:`sampan.network.nft`."""
    names = [link.name for link in previous.interfaces if not link.sandbox]
    links = [call.session.host.find_link(name) for name in names]
    # Not the ifb that bandwidth puts behind the container's own: nothing comes in from the container by it.
    outside = [link for link in links if link is not None and link.kind != "ifb"]
    if not outside:
        return
    host = outside[-1]
    if host.master:
        host = call.session.host.link(index=host.master)
    call.shared_rules([Element("guarded", host.name.encode().ljust(16, b"\0"))])
    set_sysctl(f"net/ipv4/conf/{host.name}/route_localnet", "1")


def _forget_stale(call: Call, ports: list[PortEntry]) -> None:
    udp = [port.host_port for port in ports if port.protocol.lower() == "udp"]
    if udp:
        call.session.nft.forget_connections(socket.IPPROTO_UDP, udp)


def delete(call: Call) -> None:
    """Take the mappings back."""
    elements = call.session.state.rules(call.owner, call.plugin)
    call.drop_rules()
    udp = {
        int.from_bytes(element.key[-4:-2], "big")
        for element in elements
        if element.set_name.startswith(("ports", "hostports")) and element.key[-8] == socket.IPPROTO_UDP
    }
    if udp:
        call.session.nft.forget_connections(socket.IPPROTO_UDP, udp)


def check(call: Call) -> None:
    """See that each recorded element is in the kernel."""
    recorded = call.session.state.rules(call.owner, call.plugin)
    for set_name in {element.set_name for element in recorded}:
        present = {element.key for element in call.session.nft.elements(set_name)}
        for element in recorded:
            if element.set_name == set_name and element.key not in present:
                raise WrongState(
                    f"a rule of container {call.owner.container} is gone from our nftables set {set_name}",
                    hint="sampan network reconcile puts it back",
                )

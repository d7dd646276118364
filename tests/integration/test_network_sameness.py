"""The same conflist through Debian's containernetworking-plugins, through ours in process, and through ``sampan-cni``.

What is compared: the result, the container's links, addresses and routes, the machine's, and what packets do. What may
differ: hardware addresses and the names of veth ends.
"""

import copy
import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import network_world
from network_configurations import CONFIGURATIONS, DUAL, LOST_DNS, NEEDS, NO_CHECK, SUBNET, VERSIONS, describe, load
from network_world import Machine, Place
from sampan import network
from sampan.errors import InvalidInput, SampanError, Unsupported, WrongState
from sampan.network import Attachment, Bandwidth, Networks, PortMapping
from sampan.network.netns import inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists("/usr/lib/cni/bridge"), reason="containernetworking-plugins not installed"),
]


def normal(text: str, machine: Machine, pod: Place) -> str:
    """A document without what may differ."""
    text = re.sub(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", text)
    text = re.sub(r"(veth|bwp)[0-9a-f]+", r"\1", text)
    return text.replace(pod.path, "NETNS")


def live(folder: Path, name: str, how: str) -> dict[str, Any]:
    """One pod's life, and what was seen of it."""
    seen: dict[str, Any] = {}
    chain = CONFIGURATIONS[name]
    with network_world.machine() as machine:
        machine.neighbour()
        machine.run("ip link add spare address 02:00:00:00:77:01 type veth peer name other")
        pod = machine.place()
        before = describe(machine)
        nets = load(folder, chain, how=how, version=VERSIONS.get(name, "1.0.0"))
        result = network.attach(nets, Attachment(container_id="pod", netns=pod.path))
        (cached,) = (folder / "state/results").iterdir()
        said = json.loads(cached.read_bytes())["result"]
        seen["said"] = json.loads(normal(json.dumps(said), machine, pod))
        seen["result"] = json.loads(normal(json.dumps(result.as_dict()), machine, pod))
        seen["pod"] = describe(pod)
        seen["machine"] = describe(machine)
        seen["machine"]["routes"] = [r.replace("veth", "") for r in seen["machine"]["routes"]]
        seen["forward"] = machine.run("iptables -S") if chain[-1].get("backend") == "iptables" else ""
        seen["rules"] = pod.run("ip rule show")
        seen["tables"] = [pod.run(f"ip route show table {t}") for t in (100,)] if "100" in seen["rules"] else []
        if how != "external" or name not in NO_CHECK:
            network.check(nets, "pod")
        network.detach(nets, "pod", netns_ends=False)
        network.detach(nets, "pod", netns_ends=False)
        seen["after"] = describe(pod)
        left = describe(machine)
        if "br0" in left["links"]:
            for name in left["links"]:
                if name.startswith("br0."):
                    machine.run(f"ip link del {name}")
            machine.run("ip link del br0")
            left = describe(machine)
        assert left == before
    return seen


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_as_the_go_plugins(tmp_path: Path, name: str) -> None:
    if not network_world.kernel_has(*NEEDS.get(name, ())):
        pytest.skip(f"this kernel has not what `{NEEDS[name][-1]}` needs")
    theirs = live(tmp_path / "go", name, "external")
    ours = live(tmp_path / "ours", name, "in process")
    if name in LOST_DNS:
        for key in ("said", "result"):
            assert theirs[key].pop("dns") == {}
            assert ours[key].pop("dns")["nameservers"]
    assert ours == theirs


#: One of each plugin at least; more would take minutes.
AS_EXECUTABLES = (
    "bridge, dual stack",
    "bridge, vlan",
    "bridge, static",
    "ptp",
    "macvlan",
    "vlan",
    "host-device",
    "documentation: loopback",
    "documentation: host-local",
    "documentation: portmap",
    "documentation: firewall, iptables",
    "bandwidth",
    "tuning",
    "sbr",
)


@pytest.mark.parametrize("name", AS_EXECUTABLES)
def test_the_executable_is_the_same(tmp_path: Path, name: str) -> None:
    if not network_world.kernel_has(*NEEDS.get(name, ())):
        pytest.skip(f"this kernel has not what `{NEEDS[name][-1]}` needs")
    ours = live(tmp_path / "ours", name, "in process")
    assert live(tmp_path / "executable", name, "executable") == ours


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


#: What the documentation shows and cannot work as it stands; each plugin says no, and leaves nothing.
IMPOSSIBLE: dict[str, list[dict[str, Any]]] = {
    "static: gateways outside of the addresses' subnets": [
        {
            "type": "bridge",
            "bridge": "br0",
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
                    {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"},
                ],
                "routes": [
                    {"dst": "0.0.0.0/0"},
                    {"dst": "192.168.0.0/16", "gw": "10.10.5.1"},
                    {"dst": "3ffe:ffff:0:01ff::1/64"},
                ],
                "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]},
            },
        }
    ],
    "portmap: a mark of its own and another's": [
        {"type": "bridge", "bridge": "br0", "ipam": SUBNET},
        {
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "snat": True,
            "markMasqBit": 13,
            "externalSetMarkChain": "CNI-HOSTPORT-SETMARK",
            "conditionsV4": ["!", "-d", "192.0.2.0/24"],
            "conditionsV6": ["!", "-d", "fc00::/7"],
        },
    ],
    "macvlan by dhcp, whose daemon does not run": [
        {"type": "macvlan", "master": "up0", "linkInContainer": False, "ipam": {"type": "dhcp"}}
    ],
    "firewalld, which does not run": [
        {"type": "bridge", "bridge": "br0", "ipam": SUBNET},
        {"type": "firewall", "backend": "firewalld"},
    ],
    "host-device by an address that no device has": [{"type": "host-device", "pciBusID": "0000:3d:00.1"}],
    "host-device by a request that nobody made": [{"type": "host-device", "capabilities": {"deviceID": True}}],
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("how", ["in process", "external"])
def test_what_cannot_work_is_refused_by_both(machine: Machine, tmp_path: Path, name: str, how: str) -> None:
    machine.neighbour()
    before = describe(machine)
    nets, pod = load(tmp_path, IMPOSSIBLE[name], how=how), machine.place()
    with pytest.raises(SampanError):
        network.attach(nets, Attachment(container_id="a", netns=pod.path, port_mappings=(PortMapping(80, 8080),)))
    # The Go plugins leave the link where their IPAM fails to take its address back.
    if how == "in process" or "dhcp" not in name:
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
    assert nets.state.owners() == set()
    if "br0" in describe(machine)["links"]:
        machine.run("ip link del br0")
    assert describe(machine) == before


@pytest.mark.parametrize("how", ["in process", "external", "executable"])
class TestPackets:
    def test_bridge(self, machine: Machine, tmp_path: Path, how: str) -> None:
        """Between pods, to the machine, out of it and not back in; of both versions of IP."""
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "mtu": 1300, "ipam": DUAL}
        nets, one, two, other = load(tmp_path, [bridge], how=how), machine.place(), machine.place(), machine.neighbour()
        a = network.attach(nets, Attachment(container_id="a", netns=one.path)).addresses
        b = network.attach(nets, Attachment(container_id="b", netns=two.path)).addresses
        for version, (family, machines, others) in enumerate(
            (
                (socket.AF_INET, "192.168.77.1", "192.168.77.2"),
                (socket.AF_INET6, "fd77::1", "fd77::2"),
            )
        ):
            gateway = ("10.62.0.254", "fd62::1")[version]
            with one.serve(80, family=family), machine.serve(81, family=family), other.serve(82, family=family):
                assert two.ask(a[version], 80) == b[version]
                assert machine.ask(a[version], 80) in (gateway, machines)
                assert two.ask(gateway, 81) == b[version]
                assert two.ask(machines, 81) == b[version]
                assert two.ask(others, 82) == machines
        for place, peer in ((one, two), (two, one)):
            address = (a if peer is one else b)[0]
            assert largest_packet(place, address) == 1300
        assert largest_packet(machine, a[0]) == 1300
        network.detach(nets, "a", netns_ends=False)
        network.detach(nets, "b", netns_ends=False)

    def test_host_ports_without_masquerading(self, machine: Machine, tmp_path: Path, how: str) -> None:
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
        nets, pod, other = (
            load(tmp_path, [CONFIGURATIONS["bridge"][0], portmap], how=how),
            machine.place(),
            machine.neighbour(),
        )
        network.attach(nets, Attachment(container_id="a", netns=pod.path, port_mappings=(PortMapping(80, 8080),)))
        with pod.serve(80):
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert not machine.reaches("127.0.0.1", 8080)
            assert not pod.reaches("192.168.77.1", 8080)
        network.detach(nets, "a", netns_ends=False)

    def test_an_address_that_is_forced(self, machine: Machine, tmp_path: Path, how: str) -> None:
        machine.run("ip link add br0 type bridge")
        machine.run("ip addr add 172.16.9.1/24 dev br0")
        chain = [{**CONFIGURATIONS["bridge"][0], "forceAddress": True}]
        nets, pod = load(tmp_path, chain, how=how), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert machine.addresses("br0") == {"10.61.0.1/24"}
        with machine.serve(80):
            assert pod.reaches("10.61.0.1", 80)

    def test_ptp(self, machine: Machine, tmp_path: Path, how: str) -> None:
        chain = [*CONFIGURATIONS["ptp"], {"type": "portmap", "capabilities": {"portMappings": True}}]
        nets, one, two, other = load(tmp_path, chain, how=how), machine.place(), machine.place(), machine.neighbour()
        a = network.attach(nets, Attachment(container_id="a", netns=one.path, port_mappings=(PortMapping(80, 8080),)))
        b = network.attach(nets, Attachment(container_id="b", netns=two.path))
        with one.serve(80), other.serve(80):
            assert two.ask(a.addresses[0], 80) == b.addresses[0]
            assert two.ask("192.168.77.2", 80) == "192.168.77.1"
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert machine.reaches("127.0.0.1", 8080)
        network.detach(nets, "a", netns_ends=False)
        network.detach(nets, "b", netns_ends=False)

    def test_macvlan(self, machine: Machine, tmp_path: Path, how: str) -> None:
        other = machine.neighbour()
        static = {"type": "static", "addresses": [{"address": "192.168.77.50/24"}]}
        nets, pod = load(tmp_path, [{"type": "macvlan", "master": "up0", "ipam": static}], how=how), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        with pod.serve(80):
            assert other.reaches("192.168.77.50", 80)

    def test_a_forward_chain_that_drops(self, machine: Machine, tmp_path: Path, how: str) -> None:
        machine.run("iptables -P FORWARD DROP")
        machine.run("ip6tables -P FORWARD DROP")
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": DUAL}
        one, two, other = machine.place(), machine.place(), machine.neighbour()
        network.attach(load(tmp_path, [bridge], how=how), Attachment(container_id="a", netns=one.path))
        nets = load(tmp_path, [bridge, {"type": "firewall"}], how=how)
        address = network.attach(nets, Attachment(container_id="b", netns=two.path)).addresses[0]
        with other.serve(80), other.serve(81, family=socket.AF_INET6):
            assert not one.reaches("192.168.77.2", 80)
            assert two.ask("192.168.77.2", 80) == "192.168.77.1"
            assert two.ask("fd77::2", 81) == "fd77::1"
        rules = machine.run("iptables -S").splitlines()
        assert rules.index('-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD') > 0
        assert f"-A CNI-FORWARD -s {address}/32 -j ACCEPT" in rules
        assert f"-A CNI-FORWARD -d {address}/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" in rules
        network.detach(nets, "a", netns_ends=False)
        network.detach(nets, "b", netns_ends=False)
        assert address not in machine.run("iptables -S")

    def test_host_ports_as_documented(self, machine: Machine, tmp_path: Path, how: str) -> None:
        portmap = {
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "snat": True,
            "markMasqBit": 13,
            "conditionsV4": ["!", "-d", "192.0.2.0/24"],
            "conditionsV6": ["!", "-d", "fc00::/7"],
        }
        bridge = {
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": DUAL,
        }
        nets, one, two, other = (
            load(tmp_path, [bridge, portmap], how=how),
            machine.place(),
            machine.place(),
            machine.neighbour(),
        )
        machine.run("ip addr add 192.0.2.1/24 dev up0")
        machine.run("ip -6 addr add 2001:db8::1/64 dev up0 nodad")
        for destination in ("192.0.2.0/24", "2001:db8::/64"):
            other.run(f"ip route add {destination} dev eth0")
        ports = (PortMapping(80, 8080), PortMapping(81, 8081), PortMapping(82, 8082, "udp"))
        a = network.attach(nets, Attachment(container_id="a", netns=one.path, port_mappings=ports)).addresses[0]
        network.attach(nets, Attachment(container_id="b", netns=two.path))
        with (
            one.serve(80),
            one.serve(81, family=socket.AF_INET6),
            one.serve(82, kind=socket.SOCK_DGRAM),
        ):
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert not other.reaches("192.0.2.1", 8080)
            assert not other.reaches("fd77::1", 8081)
            assert other.reaches("2001:db8::1", 8081)
            assert other.ask("192.168.77.1", 8082, kind=socket.SOCK_DGRAM) == "192.168.77.2"
            assert machine.reaches("127.0.0.1", 8080)
            assert one.ask("192.168.77.1", 8080) == two.ask("192.168.77.1", 8080) == "10.62.0.254"  # hairpin
            assert one.ask("2001:db8::1", 8081) == two.ask("2001:db8::1", 8081) == "fd62::1"
            assert one.ask("192.168.77.1", 8082, kind=socket.SOCK_DGRAM) == "10.62.0.254"
            assert machine.reaches("192.168.77.1", 8080)
        assert a
        for container in ("a", "b"):
            network.detach(nets, container, netns_ends=False)
        assert not other.reaches("192.168.77.1", 8080)

    def test_requests(self, machine: Machine, tmp_path: Path, how: str) -> None:
        """What CNI_ARGS ask for."""
        bridge = {"type": "bridge", "bridge": "br0", "ipam": SUBNET}
        nets, pod = load(tmp_path, [bridge], how=how), machine.place()
        args = {"IP": "10.61.0.77", "MAC": "c2:11:22:33:44:55"}
        got = network.attach(nets, Attachment(container_id="a", netns=pod.path, args=args))
        assert got.addresses == ("10.61.0.77",)
        assert pod.ip("link show eth0")[0]["address"] == "c2:11:22:33:44:55"
        static = {"type": "static"}
        nets, pod = load(tmp_path, [{**bridge, "ipam": static}], how=how), machine.place()
        args = {"IP": "10.61.0.78/24", "GATEWAY": "10.61.0.1"}
        got = network.attach(nets, Attachment(container_id="b", netns=pod.path, args=args))
        assert [(ip.address, ip.gateway) for ip in got.results[0].ips] == [("10.61.0.78/24", "10.61.0.1")]

    def test_rates(self, machine: Machine, tmp_path: Path, how: str) -> None:
        chain = [CONFIGURATIONS["bridge"][0], {"type": "bandwidth", "capabilities": {"bandwidth": True}}]
        nets, pod = load(tmp_path, chain, how=how), machine.place()
        rates = Bandwidth(ingress_rate=8_000_000, ingress_burst=800_000, egress_rate=4_000_000, egress_burst=400_000)
        address = network.attach(nets, Attachment(container_id="a", netns=pod.path, bandwidth=rates)).addresses[0]
        # 1 MB/s in with 100 kB at once; 0.5 MB/s out with 50 kB at once.
        assert 0.25 < _seconds(machine, pod, address, 400_000) < 1.5
        gateway = "10.61.0.1"
        assert 0.25 < _seconds(pod, machine, gateway, 250_000) < 1.5


def largest_packet(place: Place, address: str) -> int:
    """Size of the largest IPv4 packet that leaves whole for an address."""
    with inside(place.fd), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never in pieces
        client.connect((address, 9))
        for size in range(1600, 0, -1):
            try:
                client.send(bytes(size - 28))
            except OSError as error:
                assert error.errno == errno.EMSGSIZE  # noqa: PT017 - the very thing that is asked
            else:
                return size
    return 0


def _seconds(sender: Place, receiver: Place, address: str, size: int) -> float:
    """How long ``size`` bytes take."""
    with inside(receiver.fd):
        listener = socket.create_server(("0.0.0.0", 5001))
    with inside(sender.fd):
        client = socket.socket()
    done: list[float] = []

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(65536):
                pass
        done.append(time.monotonic())

    thread = threading.Thread(target=receive)
    thread.start()
    started = time.monotonic()
    with client:
        client.connect((address, 5001))
        client.sendall(bytes(size))
    thread.join()
    listener.close()
    return done[0] - started


@pytest.mark.skipif(
    not network_world.kernel_has("ip link add probe0 type bridge vlan_filtering 1"),
    reason="this kernel's bridges know no VLANs",
)
class TestVlans:
    """Ports in VLANs of one bridge. Trunks are newer than Debian's plugins."""

    def pod(self, machine: Machine, folder: Path, number: int, **conf: Any) -> tuple[Networks, Place, str]:
        static = {"type": "static", "addresses": [{"address": f"10.66.0.{number}/24"}]}
        chain = [{"type": "bridge", "bridge": "br0", "ipam": static, **conf}]
        nets, place = load(folder / str(number), chain, how="in process"), machine.place()
        return nets, place, network.attach(nets, Attachment(container_id=f"c{number}", netns=place.path)).addresses[0]

    def test_access_ports_are_kept_apart(self, machine: Machine, tmp_path: Path) -> None:
        nets, one, address = self.pod(machine, tmp_path, 1, vlan=100)
        nets.state.set_fact("bridge/br0", "")
        _, two, _ = self.pod(machine, tmp_path, 2, vlan=100, preserveDefaultVlan=False)
        _, three, _ = self.pod(machine, tmp_path, 3, vlan=200, preserveDefaultVlan=False)
        with one.serve(80):
            assert two.reaches(address, 80)
            assert not three.reaches(address, 80)

    def test_trunk(self, machine: Machine, tmp_path: Path) -> None:
        trunk = [{"id": 5}, {"minID": 100, "maxID": 103}]
        self.pod(machine, tmp_path, 1, vlanTrunk=trunk, preserveDefaultVlan=False)
        (port,) = [p for p in json.loads(machine.run("bridge -j vlan show")) if p["ifname"].startswith("veth")]
        found = {v for entry in port["vlans"] for v in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)}
        assert found == {5, 100, 101, 102, 103}
        assert not any("PVID" in entry.get("flags", []) for entry in port["vlans"])

    def test_a_bridge_of_somebody_that_knows_no_vlans(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add br0 type bridge")
        with pytest.raises(WrongState, match="vlan_filtering 1"):
            self.pod(machine, tmp_path, 1, vlan=100)
        machine.run("ip link set br0 type bridge vlan_filtering 1")
        self.pod(machine, tmp_path, 2, vlan=100)

    def test_a_bridge_of_ours_learns_vlans_and_goes_with_its_gateway(self, machine: Machine, tmp_path: Path) -> None:
        plain: list[dict[str, Any]] = [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": SUBNET}]
        other = copy.deepcopy(plain)
        other[0] |= {"vlan": 100}
        other[0]["ipam"]["subnet"] = "10.67.0.0/24"
        nets, tagged = load(tmp_path / "1", plain, how="in process"), load(tmp_path / "2", other, how="in process")
        tagged.state = nets.state
        one, two = machine.place(), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=one.path))
        network.attach(tagged, Attachment(container_id="b", netns=two.path))
        assert machine.addresses("br0.100") == {"10.67.0.1/24"}
        with machine.serve(80):
            assert one.reaches("10.61.0.1", 80)
            assert two.reaches("10.67.0.1", 80)
        network.detach(nets, "a", netns_ends=False)
        network.detach(tagged, "b", netns_ends=False)
        assert network.tidy(nets)
        assert [link["ifname"] for link in machine.ip("link show")] == ["lo"]


@pytest.mark.skipif(
    network_world.kernel_has("ip link add probe0 type bridge vlan_filtering 1"),
    reason="this kernel's bridges know VLANs",
)
def test_a_kernel_without_vlans_on_bridges_is_named(machine: Machine, tmp_path: Path) -> None:
    nets = load(tmp_path, [{"type": "bridge", "bridge": "br0", "vlan": 5, "ipam": SUBNET}], how="in process")
    with pytest.raises(Unsupported, match="CONFIG_BRIDGE_VLAN_FILTERING"):
        network.attach(nets, Attachment(container_id="a", netns=machine.place().path))


class TestFirewall:
    """What the standard plugin does not do, or does otherwise."""

    @pytest.fixture
    def dropping(self, machine: Machine, tmp_path: Path) -> Networks:
        machine.run("iptables -P FORWARD DROP")
        chain = [{**CONFIGURATIONS["bridge"][0]}, {"type": "firewall"}]
        return load(tmp_path, chain, how="in process")

    @pytest.mark.parametrize("first", ["portmap", "firewall"])
    def test_host_ports_where_forward_drops(self, machine: Machine, tmp_path: Path, first: str) -> None:
        """Beside Docker, say, whose policy would keep other hosts from them; in whatever order the plugins come."""
        for program in ("iptables", "ip6tables"):
            machine.run(f"{program} -P FORWARD DROP")
        before = machine.run("iptables -S") + machine.run("ip6tables -S")
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": DUAL}
        rest: list[dict[str, Any]] = [
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
        ]
        chain = [bridge, *(rest if first == "portmap" else reversed(rest))]
        nets, pod, other = load(tmp_path, chain, how="in process"), machine.place(), machine.neighbour()
        ports = (PortMapping(80, 8080), PortMapping(81, 8081))
        network.attach(nets, Attachment(container_id="a", netns=pod.path, port_mappings=ports))
        with pod.serve(80), pod.serve(81, family=socket.AF_INET6), pod.serve(82):
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert other.ask("fd77::1", 8081) == "fd77::2"
            other.run("ip route add 10.62.0.0/24 via 192.168.77.1")
            assert not other.reaches("10.62.0.20", 82)
        network.check(nets, "a")
        network.detach(nets, "a", netns_ends=False)
        assert network.tidy(nets)
        assert machine.run("iptables -S") + machine.run("ip6tables -S") == before

    def test_a_flushed_chain_is_filled_again(self, machine: Machine, dropping: Networks) -> None:
        one, two, other = machine.place(), machine.place(), machine.neighbour()
        network.attach(dropping, Attachment(container_id="a", netns=one.path))
        network.check(dropping, "a")
        for command in ("-F", "-X"):
            machine.run(f"iptables {command}")
        with pytest.raises(WrongState, match="no longer lets"):
            network.check(dropping, "a")
        network.attach(dropping, Attachment(container_id="b", netns=two.path))
        with other.serve(80):
            assert one.reaches("192.168.77.2", 80)
            assert two.reaches("192.168.77.2", 80)

    def test_reconcile_puts_back_what_was_flushed(self, machine: Machine, dropping: Networks) -> None:
        pod, other = machine.place(), machine.neighbour()
        network.attach(dropping, Attachment(container_id="a", netns=pod.path))
        machine.run("iptables -F CNI-FORWARD")
        with other.serve(80):
            assert not pod.reaches("192.168.77.2", 80)
            assert network.reconcile(dropping, {"a"}).rules_restored == 2
            assert pod.reaches("192.168.77.2", 80)
            machine.run("iptables -F")
            machine.run("iptables -X CNI-FORWARD")
            assert network.reconcile(dropping, {"a"}).rules_restored == 2
            assert pod.reaches("192.168.77.2", 80)
        assert network.reconcile(dropping, {"a"}) == network.Reconciled()
        network.check(dropping, "a")

    def test_nothing_of_it_stays(self, machine: Machine, dropping: Networks) -> None:
        before = machine.run("iptables -S")
        network.attach(dropping, Attachment(container_id="a", netns=machine.place().path))
        network.detach(dropping, "a")
        assert network.tidy(dropping)
        assert machine.run("iptables -S") == before

    def test_where_nothing_drops_iptables_is_left_alone(self, machine: Machine, tmp_path: Path) -> None:
        nets = load(tmp_path, CONFIGURATIONS["firewall"], how="in process")
        network.attach(nets, Attachment(container_id="a", netns=machine.place().path))
        assert "table ip filter" not in machine.run("nft list tables")

    def test_others_that_drop_are_named_with_the_mend(self, machine: Machine, dropping: Networks) -> None:
        assert network.status(dropping).message == ""  # what the plugin gets round is no obstacle
        machine.run("nft add table inet office")
        machine.run("nft add chain inet office gate { type filter hook forward priority 0 ; policy drop ; }")
        found = network.status(dropping)
        assert found.ready
        assert "nft insert rule inet office gate iifname BRIDGE accept" in found.message
        machine.run("nft add table inet firewalld")
        machine.run("nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }")
        assert "firewall-cmd" in network.status(dropping).message


class TestOnlyOurs:
    def test_macspoofchk(self, machine: Machine, tmp_path: Path) -> None:
        chain = [{**CONFIGURATIONS["bridge"][0], "macspoofchk": True}]
        nets, pod = load(tmp_path, chain, how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        with machine.serve(80):
            assert pod.reaches("10.61.0.1", 80)
            pod.run("ip link set eth0 address 02:00:00:00:00:99")
            pod.run("ip neigh flush all")
            assert not pod.reaches("10.61.0.1", 80)
        network.detach(nets, "a", netns_ends=False)
        assert not network_world.nft_elements(machine, nets, "bridge")

    def test_isolated_ports(self, machine: Machine, tmp_path: Path) -> None:
        chain = [{**CONFIGURATIONS["bridge"][0], "portIsolation": True}]
        nets, one, two = load(tmp_path, chain, how="in process"), machine.place(), machine.place()
        address = network.attach(nets, Attachment(container_id="a", netns=one.path)).addresses[0]
        network.attach(nets, Attachment(container_id="b", netns=two.path))
        with one.serve(80):
            assert machine.reaches(address, 80)
            assert not two.reaches(address, 80)

    @pytest.mark.parametrize("how", ["in process", "external"])
    def test_same_bridge_policy(self, machine: Machine, tmp_path: Path, how: str) -> None:
        firewall = {"type": "firewall", "ingressPolicy": "same-bridge"}
        second = copy.deepcopy(CONFIGURATIONS["bridge"][0])
        second["bridge"] = "br1"
        second["ipam"]["subnet"] = "10.64.0.0/24"
        first = load(tmp_path / "1", [CONFIGURATIONS["bridge"][0], firewall], how=how)
        other = load(tmp_path / "2", [second, firewall], how=how)
        other.state = first.state
        one, two, three = machine.place(), machine.place(), machine.place()
        outside = machine.neighbour()
        address = network.attach(first, Attachment(container_id="a", netns=one.path)).addresses[0]
        network.attach(first, Attachment(container_id="b", netns=two.path))
        network.attach(other, Attachment(container_id="c", netns=three.path))
        outside.run("ip route add 10.61.0.0/24 via 192.168.77.1")
        with one.serve(80):
            assert two.reaches(address, 80)
            assert outside.reaches(address, 80)
            assert not three.reaches(address, 80)

    def test_a_table_of_the_administrators_own(self, machine: Machine, tmp_path: Path) -> None:
        chain = [CONFIGURATIONS["bridge"][0], {"type": "sbr", "table": 4711}]
        nets, pod = load(tmp_path, chain, how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert "from 10.61.0.2 lookup 4711" in pod.run("ip rule show")
        assert "default via 10.61.0.1" in pod.routes()
        network.detach(nets, "a", netns_ends=False)
        assert "4711" not in pod.run("ip rule show")

    def test_a_queue_for_broadcasts(self, machine: Machine, tmp_path: Path) -> None:
        machine.neighbour()
        chain = [{"type": "macvlan", "master": "up0", "bcqueuelen": 2000, "ipam": SUBNET}]
        nets, pod = load(tmp_path, chain, how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert "bcqueuelen 2000" in pod.run("ip -details link show eth0")

    def test_duplicate_addresses_are_detected(self, machine: Machine, tmp_path: Path) -> None:
        """By the kernel, where another host on the wire has the address that the next pod is to have."""
        static = {"type": "static", "addresses": [{"address": "fd61::7/64"}]}
        chain = [{"type": "bridge", "bridge": "br0", "enabledad": True, "ipam": static}]
        nets, pod, twin = load(tmp_path, chain, how="in process"), machine.place(), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert pod.addresses("eth0") == {"fd61::7/64"}
        assert not any(a.get("tentative") for a in pod.ip("-6 addr show dev eth0")[0]["addr_info"])
        network.detach(nets, "a", netns_ends=False)
        machine.run(f"ip link add wire master br0 up type veth peer name eth0 netns {twin.path}")
        twin.run("ip -6 addr add fd61::7/64 dev eth0 nodad")
        twin.run("ip link set eth0 up")
        with pytest.raises(WrongState, match="fd61::7 is another's"):
            network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]

    def test_an_interface_that_stays_down(self, machine: Machine, tmp_path: Path) -> None:
        chain = [{"type": "bridge", "bridge": "br0", "disableContainerInterface": True, "ipam": {}}]
        nets, pod = load(tmp_path, chain, how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        assert "UP" not in pod.ip("link show eth0")[0]["flags"]

    def test_dhcp_is_refused_with_a_hint(self, machine: Machine, tmp_path: Path) -> None:
        nets = load(tmp_path, [{"type": "bridge", "bridge": "br0", "ipam": {"type": "dhcp"}}], how="in process")
        with pytest.raises(Unsupported, match="daemon"):
            network.attach(nets, Attachment(container_id="a", netns=machine.place().path))

    def test_vlan_says_what_the_kernel_lacks(self, machine: Machine, tmp_path: Path) -> None:
        machine.neighbour()
        nets, pod = (
            load(tmp_path, [{"type": "vlan", "master": "up0", "vlanId": 5, "ipam": SUBNET}], how="in process"),
            machine.place(),
        )
        try:
            network.attach(nets, Attachment(container_id="a", netns=pod.path))
        except SampanError as error:
            assert "this kernel has no vlan" in str(error)  # noqa: PT017 - on a kernel that has it there is no error
        else:
            assert pod.ip("-details link show eth0")[0]["linkinfo"]["info_data"]["id"] == 5

    def test_device_returns_when_the_namespace_ends(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add spare type veth peer name other")
        nets, pod = load(tmp_path, CONFIGURATIONS["host-device"], how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        network.detach(nets, "a", netns_ends=True)
        assert machine.ip("link show spare")

    def test_check_sees_a_lost_rate(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = load(tmp_path, CONFIGURATIONS["bandwidth"], how="in process"), machine.place()
        network.attach(nets, Attachment(container_id="a", netns=pod.path))
        veth = next(link["ifname"] for link in machine.ip("link show") if link["ifname"].startswith("veth"))
        machine.run(f"tc qdisc del dev {veth} root")
        with pytest.raises(WrongState, match="no longer in force"):
            network.check(nets, "a")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ({"type": "bridge", "mtu": 3}, r"plugins\[0\].*mtu: 3 is not"),
        ({"type": "bridge", "mtu": "big"}, r"plugins\[0\]\.mtu: Expected `int`, got `str`"),
        ({"type": "bridge", "hairpinMode": True, "promiscMode": True}, "hairpinMode"),
        ({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.1/24"}}, "host bits set"),
        ({"type": "bridge", "ipam": {"type": "host-local"}}, "neither ranges nor a subnet"),
        ({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "gateway": "x"}}, "gateway"),
        ({"type": "bridge", "vlan": 4095}, "vlan: 4095 is not between"),
        ({"type": "bridge", "vlan": 7, "vlanTrunk": [{"id": 8}]}, "vlanTrunk: cannot be set together with vlan"),
        ({"type": "bridge", "vlanTrunk": [{}, {"minID": 8}]}, r"vlanTrunk\[1\]: minID and maxID"),
        ({"type": "bridge", "vlanTrunk": [{"minID": 8, "maxID": 7}]}, r"vlanTrunk\[0\].minID: 8 is greater"),
        ({"type": "portmap", "conditionsV4": ["-m", "string"]}, r"conditionsV4: '-m' is not built in"),
        ({"type": "portmap", "conditionsV4": ["-d", "10.0.0.0/33"]}, "conditionsV4"),
        ({"type": "portmap", "conditionsV4": ["ip", "daddr", "!="]}, "conditionsV4: ip daddr has no value"),
        ({"type": "portmap", "conditionsV4": ["ip", "dscp", "3"]}, "conditionsV4: 'ip dscp' is not built in"),
        ({"type": "portmap", "conditionsV4": ["ip6", "daddr", "fc00::/7"]}, "fc00::/7 is not of IPv4"),
        ({"type": "portmap", "backend": "ipchains"}, r"plugins\[0\]\.backend"),
        ({"type": "sbr", "table": 0}, "table: 0 is no number"),
        ({"type": "sbr", "addSourceHints": True}, "addSourceHints: it is not built in"),
        ({"type": "host-device", "device": "a", "hwaddr": "02:00:00:00:00:01"}, "one of device"),
        ({"type": "portmap", "conditionsV6": ["-i", 'x" accept']}, "no interface name"),
        ({"type": "portmap", "markMasqBit": 3, "externalSetMarkChain": "X"}, "together with externalSetMarkChain"),
        ({"type": "bandwidth", "ingressRate": 5}, "rate and burst"),
        ({"type": "tuning", "sysctl": {"kernel.panic": "1"}}, "not a sysctl of the network"),
        ({"type": "tuning", "sysctl": {"net/../kernel/panic": "1"}}, "not a sysctl of the network"),
        ({"type": "host-device"}, "one of device"),
        ({"type": "../bin/sh"}, "no plugin type"),
        ({}, r"plugins\[0\].*type"),
    ],
)
def test_bad_conflists_name_file_plugin_and_field(tmp_path: Path, plugin: dict[str, Any], message: str) -> None:
    conf = tmp_path / "10-bad.conflist"
    conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "bad", "plugins": [plugin]}))
    nets = network.load(str(tmp_path), state_dir=str(tmp_path / "state"))
    with pytest.raises(InvalidInput, match=message) as failure:
        nets.default()
    assert str(conf) in str(failure.value)
    assert not network.status(nets).ready

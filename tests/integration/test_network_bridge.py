"""A pod's life on a bridge network, as packets see it."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import network_world
from network_world import Machine, Place
from sampan import network
from sampan.errors import AlreadyExists, Exhausted, InvalidInput, NotFound, StageFailed, WrongState
from sampan.network import Attachment, Networks, PortMapping, nft
from sampan.network.netns import inside
from sampan.wire.nfnetlink import Element

pytestmark = pytest.mark.root

DUAL: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "dual",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br-dual",
            "isDefaultGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "mtu": 1400,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.123.0.0/24"}], [{"subnet": "fd12:3::/64"}]],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


def networks(folder: Path, *documents: dict[str, Any]) -> Networks:
    conf = folder / "net.d"
    conf.mkdir(exist_ok=True)
    for number, document in enumerate(documents):
        (conf / f"{number:02}-{document['name']}.conflist").write_text(json.dumps(document))
    return network.load(str(conf), state_dir=str(folder / "state"), bin_dirs=())


def join(nets: Networks, place: Place, container: str, *ports: PortMapping, **more: Any) -> network.Attached:
    return network.attach(nets, Attachment(container_id=container, netns=place.path, port_mappings=ports, **more))


class TestBuiltInNetwork:
    def test_a_pod_gets_an_address_a_route_and_loopback(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path), machine.place()
        assert network.status(nets).ready
        result = join(nets, pod, "pod1")
        assert result.addresses == ("10.88.0.2",)
        assert pod.addresses("eth0") == {"10.88.0.2/16"}
        assert "default via 10.88.0.1" in pod.routes()
        assert pod.ip("link show lo")[0]["operstate"] != "DOWN"
        assert machine.addresses(nets.built_in_bridge) == {"10.88.0.1/16"}
        assert machine.run("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
        network.check(nets, "pod1")

    def test_a_subnet_in_use_is_passed_over(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add other type bridge")
        machine.run("ip addr add 10.88.5.1/24 dev other")
        nets = networks(tmp_path)
        assert join(nets, machine.place(), "pod1").addresses == ("10.89.0.2",)
        # And the choice is remembered when the reason is gone.
        machine.run("ip link del other")
        again = networks(tmp_path)
        assert join(again, machine.place(), "pod2").addresses == ("10.89.0.3",)

    def test_the_kubelets_addresses_move_it(self, machine: Machine, tmp_path: Path) -> None:
        nets, of_another_process = networks(tmp_path), networks(tmp_path)
        join(nets, machine.place(), "pod1")
        network.detach(nets, "pod1", netns_ends=False)
        nets.set_pod_cidr("10.5.3.0/24,fd05::/64")
        nets.set_pod_cidr("10.5.3.0/24,fd05::/64")
        assert join(nets, machine.place(), "pod2").addresses == ("10.5.3.2", "fd05::2")
        assert join(of_another_process, machine.place(), "pod3").addresses == ("10.5.3.3", "fd05::3")
        assert machine.addresses(nets.built_in_bridge) == {"10.5.3.1/24", "fd05::1/64"}

    def test_result_is_a_cni_document(self, machine: Machine, tmp_path: Path) -> None:
        pod = machine.place()
        nets = networks(tmp_path)
        document = join(nets, pod, "pod1").as_dict()
        links = document["interfaces"]
        assert [link["name"] for link in links] == [nets.built_in_bridge, links[1]["name"], "eth0"]
        assert links[2]["sandbox"] == pod.path
        assert links[2]["mac"] == pod.ip("link show eth0")[0]["address"]
        assert links[1]["mac"] == machine.ip(f"link show {links[1]['name']}")[0]["address"]
        assert document["ips"] == [{"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2}]
        cached = json.loads((tmp_path / "state/results/sampan-pod1-eth0").read_text())
        assert cached["kind"] == "cniCacheV1"
        assert cached["result"] == document


class TestPackets:
    def test_between_pods_to_the_machine_and_out(self, machine: Machine, tmp_path: Path) -> None:
        nets, one, two, other = networks(tmp_path, DUAL), machine.place(), machine.place(), machine.neighbour()
        a, b = join(nets, one, "one").addresses, join(nets, two, "two").addresses
        assert a == ("10.123.0.2", "fd12:3::2")
        assert one.ip("link show eth0")[0]["mtu"] == 1400
        with one.serve(80), one.serve(81, family=socket.AF_INET6):
            assert two.ask(a[0], 80) == b[0]
            assert two.ask(a[1], 81) == b[1]
            assert machine.ask(a[0], 80) == "10.123.0.1"
        with other.serve(80), other.serve(81, family=socket.AF_INET6):
            assert one.ask("192.168.77.2", 80) == "192.168.77.1"
            assert one.ask("fd77::2", 81) == "fd77::1"

    def test_host_port(self, machine: Machine, tmp_path: Path) -> None:
        nets, one, two, other = networks(tmp_path, DUAL), machine.place(), machine.place(), machine.neighbour()
        join(nets, one, "one", PortMapping(80, 8080), PortMapping(81, 8081))
        join(nets, two, "two")
        with one.serve(80), one.serve(81, family=socket.AF_INET6):
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert other.ask("fd77::1", 8081) == "fd77::2"
            assert machine.ask("127.0.0.1", 8080) == "10.123.0.1"
            assert machine.reaches("192.168.77.1", 8080)
            assert two.ask("192.168.77.1", 8080) == "10.123.0.1"
            assert one.ask("192.168.77.1", 8080) == "10.123.0.1"
            assert one.ask("10.123.0.1", 8080)
            network.detach(nets, "one", netns_ends=False)
            assert not other.reaches("192.168.77.1", 8080)

    def test_host_address(self, machine: Machine, tmp_path: Path) -> None:
        nets, one, other = networks(tmp_path, DUAL), machine.place(), machine.neighbour()
        machine.run("ip addr add 192.168.77.9/24 dev up0")
        join(nets, one, "one", PortMapping(80, 8080, host_ip="192.168.77.9"), PortMapping(81, 8081, host_ip="0.0.0.0"))
        with one.serve(80), one.serve(81):
            assert other.reaches("192.168.77.9", 8080)
            assert not other.reaches("192.168.77.1", 8080)
            assert not machine.reaches("127.0.0.1", 8080)
            assert other.reaches("192.168.77.1", 8081)

    def test_udp_mapping_is_seen_by_a_flow_that_was_there_before(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod, other = networks(tmp_path, DUAL), machine.place(), machine.neighbour()
        join(nets, machine.place(), "other", PortMapping(9, 9, protocol="tcp"))  # connection tracking is on
        with pytest.raises(ConnectionRefusedError):
            other.ask("192.168.77.1", 5353, kind=socket.SOCK_DGRAM, source_port=4000)
        join(nets, pod, "pod", PortMapping(53, 5353, protocol="udp"))
        with pod.serve(53, kind=socket.SOCK_DGRAM):
            answer = other.ask("192.168.77.1", 5353, kind=socket.SOCK_DGRAM, source_port=4000)
        assert answer == "192.168.77.2"

    def test_sctp(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod, other = networks(tmp_path, DUAL), machine.place(), machine.neighbour()
        join(nets, pod, "pod", PortMapping(80, 8080, protocol="SCTP"))
        assert "sctp . 8080" in machine.run(f"nft list map inet {nets.state.table} ports4")
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
        except OSError:
            pytest.skip("this kernel has no SCTP; the rule is there")
        with inside(pod.fd):
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        with inside(other.fd):
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        with server, client:
            server.bind(("0.0.0.0", 80))
            server.listen()
            client.settimeout(10)
            client.connect(("192.168.77.1", 8080))

    def test_loopback_services_are_closed_to_pods(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080))
        pod.run("ip route add 127.0.0.2/32 via 10.123.0.1 table local")
        pod.run("sysctl -qw net.ipv4.conf.all.route_localnet=1")
        assert machine.run("cat /proc/sys/net/ipv4/conf/br-dual/route_localnet").strip() == "1"
        with machine.serve(7000):
            assert machine.reaches("127.0.0.2", 7000)
            assert not pod.reaches("127.0.0.2", 7000)

    @pytest.mark.skipif(
        not os.path.isdir("/proc/sys/net/bridge"), reason="needs br_netfilter: answers cross the bridge"
    )
    def test_another_dnat_keeps_the_source(self, machine: Machine, tmp_path: Path) -> None:
        # As a service proxy does on the same machine: only what our maps turned is masqueraded.
        nets, one, two = networks(tmp_path, DUAL), machine.place(), machine.place()
        join(nets, one, "one", PortMapping(80, 8080))
        source = join(nets, two, "two").addresses[0]
        machine.run("nft add table ip proxy")
        machine.run("nft add chain ip proxy pre { type nat hook prerouting priority -100 ; }")
        machine.run("nft add rule ip proxy pre ip daddr 10.96.0.1 tcp dport 80 dnat to 10.123.0.2:80")
        with one.serve(80):
            assert two.ask("10.96.0.1", 80) == source

    def test_conditions_keep_packets_from_a_host_port(self, machine: Machine, tmp_path: Path) -> None:
        conf = json.loads(json.dumps(DUAL))
        conf["plugins"][1] |= {"conditionsV4": ["!", "-d", "192.168.77.9/32"], "conditionsV6": ["!", "-d", "fd77::/64"]}
        nets, one, other = networks(tmp_path, conf), machine.place(), machine.neighbour()
        machine.run("ip addr add 192.168.77.9/24 dev up0")
        join(nets, one, "one", PortMapping(80, 8080), PortMapping(81, 8081), PortMapping(82, 8082, "tcp", "0.0.0.0"))
        with one.serve(80), one.serve(81, family=socket.AF_INET6), one.serve(82):
            assert other.reaches("192.168.77.1", 8080)
            assert not other.reaches("192.168.77.9", 8080)
            assert other.reaches("192.168.77.1", 8082)
            assert not other.reaches("192.168.77.9", 8082)
            assert not other.reaches("fd77::1", 8081)
            machine.run("nft flush ruleset")
            network.reconcile(nets, {"one"})
            assert other.reaches("192.168.77.1", 8080)
            assert not other.reaches("192.168.77.9", 8080)
        network.detach(nets, "one", netns_ends=False)
        assert network_world.nft_elements(machine, nets) == {}
        assert network.tidy(nets)
        assert machine.run("nft list tables") == ""

    def test_conditions_as_nft_says_them(self, machine: Machine, tmp_path: Path) -> None:
        """The documentation's configuration for the standard plugin's nftables backend."""
        conf = json.loads(json.dumps(DUAL))
        conf["plugins"][1] |= {
            "backend": "nftables",
            "snat": True,
            "conditionsV4": ["ip", "daddr", "!=", "192.0.2.0/24"],
            "conditionsV6": ["ip6", "daddr", "!=", "fc00::/7"],
        }
        nets, one, other = networks(tmp_path, conf), machine.place(), machine.neighbour()
        machine.run("ip addr add 192.0.2.1/24 dev up0")
        machine.run("ip -6 addr add 2001:db8::1/64 dev up0 nodad")
        for destination in ("192.0.2.0/24", "2001:db8::/64"):
            other.run(f"ip route add {destination} dev eth0")
        join(nets, one, "one", PortMapping(80, 8080), PortMapping(81, 8081))
        with one.serve(80), one.serve(81, family=socket.AF_INET6):
            assert other.reaches("192.168.77.1", 8080)
            assert not other.reaches("192.0.2.1", 8080)
            assert other.reaches("2001:db8::1", 8081)
            assert not other.reaches("fd77::1", 8081)

    @pytest.mark.parametrize("hidden", [False, True])
    def test_everything_masqueraded(self, machine: Machine, tmp_path: Path, hidden: bool) -> None:
        conf = json.loads(json.dumps(DUAL))
        conf["plugins"][1]["masqAll"] = hidden
        nets, one, other = networks(tmp_path, conf), machine.place(), machine.neighbour()
        join(nets, one, "one", PortMapping(80, 8080))
        with one.serve(80):
            assert other.ask("192.168.77.1", 8080) == ("10.123.0.1" if hidden else "192.168.77.2")

    def test_an_overlapping_subnet_of_another_network(self, machine: Machine, tmp_path: Path) -> None:
        inner = json.loads(json.dumps(DUAL).replace("dual", "inner").replace("10.123.0.0/24", "10.123.0.128/25"))
        inner["plugins"][0].update(isDefaultGateway=False, isGateway=False)
        inner["plugins"][0]["ipam"]["ranges"].pop()
        nets, pod = networks(tmp_path, DUAL, inner), machine.place()
        join(nets, machine.place(), "one")
        with pytest.raises(WrongState, match=r"10\.123\.0\.128/25 overlaps 10\.123\.0\.0/24 .*another subnet"):
            join(nets, pod, "two", networks=("inner",))
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
        # Once nobody is on the other one it is no obstacle.
        network.detach(nets, "one")
        join(nets, pod, "two", networks=("inner",))
        network.check(nets, "two")


class TestLeaving:
    def test_nothing_is_left(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080), PortMapping(53, 53, protocol="udp"))
        network.detach(nets, "pod", netns_ends=False)
        assert network_world.nft_elements(machine, nets) == {}
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
        assert not [link for link in machine.ip("link show") if link["ifname"].startswith("veth")]
        assert not os.listdir(tmp_path / "state/results")
        assert nets.state.owners() == set()

    def test_twice_and_without_the_namespace(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080))
        pod.close()
        network.detach(nets, "pod", netns_ends=False)
        network.detach(nets, "pod")
        network.detach(nets, "never-attached")
        assert nets.state.owners() == set()

    def test_after_the_configuration_is_gone(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080))
        (tmp_path / "net.d/00-dual.conflist").unlink()
        network.detach(nets, "pod")
        assert network_world.nft_elements(machine, nets) == {}

    def test_after_somebody_flushed_the_rules(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080))
        machine.run("nft flush ruleset")
        network.detach(nets, "pod")
        assert nets.state.owners() == set()

    def test_an_address_is_not_given_out_again_at_once(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        first = join(nets, machine.place(), "a").addresses[0]
        network.detach(nets, "a")
        assert join(nets, machine.place(), "b").addresses[0] != first

    def test_leases_of_another_boot_are_void(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "pod", PortMapping(80, 8080))
        for table in ("leases", "rules"):
            nets.state.database.execute(f"UPDATE {table} SET boot = 'an earlier one'")
        nets.state.close()
        with network_world.machine() as rebooted:
            again = networks(tmp_path, DUAL)
            assert join(again, rebooted.place(), "new", PortMapping(80, 8080), ips=()).addresses[0] == "10.123.0.3"
            network.detach(again, "pod")
            assert network_world.nft_elements(rebooted, again)["ports4"] == 1


class TestTidying:
    def test_table_and_bridge_go_when_nobody_is_left(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "one", PortMapping(80, 8080))
        join(nets, machine.place(), "two", PortMapping(80, 8081))
        network.detach(nets, "one", netns_ends=False)
        assert network_world.nft_elements(machine, nets)["guarded"] == 1
        assert not network.tidy(nets)
        network.detach(nets, "two", netns_ends=False)
        assert network.tidy(nets)
        assert machine.run("nft list tables") == ""
        assert [link["ifname"] for link in machine.ip("link show")] == ["lo"]
        assert network.tidy(nets)
        join(nets, machine.place(), "three", PortMapping(80, 8080))
        network.check(nets, "three")

    def test_bridges_of_others_stay(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add br-dual type bridge")
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "one")
        network.detach(nets, "one", netns_ends=False)
        assert network.tidy(nets)
        assert machine.ip("link show br-dual")


class TestFailures:
    def test_a_failure_half_way_leaves_nothing(self, machine: Machine, tmp_path: Path) -> None:
        broken = {**DUAL, "plugins": [*DUAL["plugins"], {"type": "no-such-plugin"}]}
        nets, pod = networks(tmp_path, broken), machine.place()
        with pytest.raises(NotFound, match="no-such-plugin"):
            join(nets, pod, "pod", PortMapping(80, 8080))
        assert network_world.nft_elements(machine, nets) == {}
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
        assert nets.state.database.execute("SELECT count(*) FROM leases").fetchone()[0] == 0

    def test_many_host_ports_come_together_or_not_at_all(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", *(PortMapping(80, port) for port in range(20000, 21200)))
        found = network_world.nft_elements(machine, nets)
        assert found["ports4"] == found["ports6"] == found["mapped"] == 1200
        with pod.serve(80):
            assert machine.reaches("127.0.0.1", 21199)
        table = nft.Table(nets.state.table)
        more = [Element("loopback", bytes((10, 9, n >> 8, n & 255))) for n in range(3000)]
        with pytest.raises(FileNotFoundError):
            table.add([*more, Element("no such set", b"1234")])
        assert network_world.nft_elements(machine, nets) == found
        network.detach(nets, "pod", netns_ends=False)
        assert network_world.nft_elements(machine, nets) == {}

    def test_a_host_port_is_given_once(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "first", PortMapping(80, 8080))
        with pytest.raises(AlreadyExists, match="host port 8080/tcp is taken by container first"):
            join(nets, machine.place(), "second", PortMapping(80, 8080))
        join(nets, machine.place(), "third", PortMapping(80, 8080, protocol="udp"))
        network.detach(nets, "first")
        join(nets, machine.place(), "second", PortMapping(80, 8080))

    def test_exhaustion_says_the_mend(self, machine: Machine, tmp_path: Path) -> None:
        small = json.loads(json.dumps(DUAL).replace("10.123.0.0/24", "10.123.0.0/30"))
        nets = networks(tmp_path, small)
        join(nets, machine.place(), "a")
        with pytest.raises(Exhausted, match="reconcile"):
            join(nets, machine.place(), "b")
        network.detach(nets, "a")
        join(nets, machine.place(), "b")

    def test_a_bridge_with_a_foreign_address(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add br-dual type bridge")
        machine.run("ip addr add 172.16.9.1/24 dev br-dual")
        nets = networks(tmp_path, DUAL)
        with pytest.raises(WrongState, match=r"172\.16\.9\.1/24.*ip addr del"):
            join(nets, machine.place(), "pod")
        machine.run("ip addr del 172.16.9.1/24 dev br-dual")
        join(nets, machine.place(), "pod")

    @pytest.mark.parametrize("subnet", ["192.168.77.128/25", "192.168.0.0/16", "192.168.77.0/24"])
    def test_a_subnet_of_the_machines_own(self, machine: Machine, tmp_path: Path, subnet: str) -> None:
        machine.neighbour()
        nets, pod = networks(tmp_path, json.loads(json.dumps(DUAL).replace("10.123.0.0/24", subnet))), machine.place()
        with pytest.raises(WrongState, match=r"overlaps 192\.168\.77\.0/24, which interface up0 .*another subnet"):
            join(nets, pod, "pod")
        assert nets.state.owners() == set()

    def test_a_sysctl_that_is_missing_or_read_only(self, machine: Machine, tmp_path: Path) -> None:
        conf = json.loads(json.dumps(DUAL))
        conf["plugins"].append({"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}})
        with pytest.raises(StageFailed, match=r"net/ipv4/no_such_thing=1.*this kernel lacks it"):
            join(networks(tmp_path, conf), machine.place(), "pod")
        program = 'from sampan.network.netns import set_sysctl; set_sysctl("net/ipv4/ip_forward", "1")'
        read_only = "mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
        script = f"{read_only} && {sys.executable} -c '{program}'"
        machine.run("sysctl -qw net.ipv4.ip_forward=0")
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
        assert "sysctl -w net.ipv4.ip_forward=1" in done.stderr

    def test_a_bridge_that_is_no_bridge(self, machine: Machine, tmp_path: Path) -> None:
        machine.run("ip link add br-dual type veth peer name zz")
        with pytest.raises(WrongState, match="not a bridge"):
            join(networks(tmp_path, DUAL), machine.place(), "pod")

    @pytest.mark.parametrize("path", ["/nonexistent", "/proc/self/ns/uts", "/etc/passwd"])
    def test_no_namespace(self, machine: Machine, tmp_path: Path, path: str) -> None:
        with pytest.raises(InvalidInput):
            network.attach(networks(tmp_path, DUAL), Attachment(container_id="pod", netns=path))

    def test_interface_is_taken(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        pod.run("ip link add eth0 type bridge")
        with pytest.raises(WrongState, match="already has an interface eth0"):
            join(nets, pod, "pod")


class TestRequests:
    def test_address_and_hardware_address(self, machine: Machine, tmp_path: Path) -> None:
        conf = json.loads(json.dumps(DUAL))
        conf["plugins"][0]["capabilities"] = {"ips": True, "mac": True}
        nets, pod = networks(tmp_path, conf), machine.place()
        got = join(nets, pod, "pod", ips=("10.123.0.77", "fd12:3::77"), mac="02:00:00:00:00:07")
        assert got.addresses == ("10.123.0.77", "fd12:3::77")
        assert pod.ip("link show eth0")[0]["address"] == "02:00:00:00:00:07"
        with pytest.raises(AlreadyExists, match="leased to container pod"):
            join(nets, machine.place(), "two", ips=("10.123.0.77",))
        with pytest.raises(InvalidInput, match="none of the network's ranges"):
            join(nets, machine.place(), "two", ips=("10.9.9.9",))

    def test_several_networks(self, machine: Machine, tmp_path: Path) -> None:
        second = json.loads(
            json.dumps(DUAL).replace("dual", "side").replace("10.123", "10.124").replace("12:3", "12:4")
        )
        nets, pod = networks(tmp_path, DUAL, second), machine.place()
        result = join(nets, pod, "pod", networks=("", "side"))
        assert result.addresses == ("10.123.0.2", "fd12:3::2", "10.124.0.2", "fd12:4::2")
        assert "default via 10.123.0.1" in pod.routes()  # the first network's
        assert {link["ifname"] for link in pod.ip("link show")} == {"lo", "eth0", "eth1"}
        network.detach(nets, "pod", netns_ends=False)
        assert {link["ifname"] for link in pod.ip("link show")} == {"lo"}

    def test_no_network(self, machine: Machine, tmp_path: Path) -> None:
        pod = machine.place()
        result = join(networks(tmp_path), pod, "pod", networks=())
        assert result.addresses == ()
        with pod.serve(80):
            assert pod.reaches("127.0.0.1", 80)


class TestReconcile:
    def test_frees_what_no_live_pod_owns(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "dead", PortMapping(80, 8080))
        join(nets, machine.place(), "live", PortMapping(80, 8081))
        done = network.reconcile(nets, lambda: {"live"})
        assert done.attachments == ("dead",)
        assert done.leases == 2
        assert nets.state.owners() == {"live"}
        assert network_world.nft_elements(machine, nets)["ports4"] == 1
        network.check(nets, "live")

    def test_puts_back_what_somebody_flushed(self, machine: Machine, tmp_path: Path) -> None:
        nets, pod = networks(tmp_path, DUAL), machine.place()
        join(nets, pod, "pod", PortMapping(80, 8080))
        machine.run("nft flush ruleset")
        with pytest.raises(WrongState, match="reconcile"):
            network.check(nets, "pod")
        assert network.reconcile(nets, {"pod"}).rules_restored > 4
        network.check(nets, "pod")
        with pod.serve(80):
            assert machine.reaches("127.0.0.1", 8080)

    def test_removes_elements_that_nobody_recorded(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, DUAL)
        join(nets, machine.place(), "pod", PortMapping(80, 8080))
        machine.run(f"nft add element inet {nets.state.table} ports4 {{ tcp . 99 : 10.9.9.9 . 80 }}")
        assert network.reconcile(nets, {"pod"}).rules_removed == 1
        assert network_world.nft_elements(machine, nets)["ports4"] == 1


@pytest.mark.slow
def test_250_pods_by_ten_workers(machine: Machine, tmp_path: Path) -> None:
    big = json.loads(json.dumps(DUAL).replace("10.123.0.0/24", "10.123.0.0/16"))
    nets = networks(tmp_path, big)
    pods = [machine.place() for _ in range(250)]
    errors: list[BaseException] = []
    found: list[str] = []

    def work(start: int) -> None:
        from sampan.linux.namespaces import CLONE_NEWNET, setns

        try:
            setns(machine.fd, CLONE_NEWNET)
            for i in range(start, 250, 10):
                addresses = join(nets, pods[i], f"pod{i}", PortMapping(80, 10000 + i)).addresses
                found.extend(addresses[:1])
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(set(found)) == 250
    assert network_world.nft_elements(machine, nets)["ports4"] == 250
    for place in pods:
        place.close()
    assert len(network.reconcile(nets, ()).attachments) == 250
    assert network_world.nft_elements(machine, nets) == {}

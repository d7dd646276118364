"""External plugins: the real ones of containernetworking-plugins, and ones that misbehave."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import network_world
from network_world import Machine
from sampan import network
from sampan.errors import Corrupt, InvalidInput, NotFound, TimedOut
from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.network import Attachment, Networks, PluginFailed, PortMapping, execution
from sampan.runtime.state import start_time

pytestmark = pytest.mark.root

GO = "/usr/lib/cni"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


def script(folder: Path, name: str, body: str) -> str:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def networks(folder: Path, document: dict[str, Any], *more: str) -> Networks:
    (folder / "net.d").mkdir(exist_ok=True)
    (folder / "net.d/10-net.conflist").write_text(json.dumps(document))
    return network.load(
        str(folder / "net.d"), state_dir=str(folder / "state"), bin_dirs=(str(folder / "bin"), GO, *more)
    )


def chain(*plugins: dict[str, Any], version: str = "1.0.0") -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", "plugins": [{"sampan": "external", **plugin} for plugin in plugins]}


def bridge(folder: Path) -> dict[str, Any]:
    return {
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "subnet": "10.44.0.0/24",
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(folder / "go-leases"),
        },
    }


@pytest.mark.skipif(not os.path.exists(f"{GO}/bridge"), reason="containernetworking-plugins is not installed")
class TestGoPlugins:
    @pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
    def test_a_pods_life(self, machine: Machine, tmp_path: Path, version: str) -> None:
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        nets = networks(tmp_path, chain(bridge(tmp_path), portmap, version=version))
        pod, other = machine.place(), machine.neighbour()
        args = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web", "K8S_POD_INFRA_CONTAINER_ID": "pod"}
        attachment = Attachment(container_id="pod", netns=pod.path, args=args, port_mappings=(PortMapping(80, 8080),))
        assert network.status(nets).ready
        result = network.attach(nets, attachment)
        assert result.addresses == ("10.44.0.2",)
        assert pod.addresses("eth0") == {"10.44.0.2/24"}
        with pod.serve(80):
            assert other.reaches("192.168.77.1", 8080)
        network.detach(nets, "pod", netns_ends=False)
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
        assert not (tmp_path / "go-leases/net/10.44.0.2").exists()
        network.detach(nets, "pod")

    def test_check(self, machine: Machine, tmp_path: Path) -> None:
        # Not of portmap: CHECK of version 1.1.1 asks for IPv6 rules that its ADD did not make.
        nets = networks(tmp_path, chain(bridge(tmp_path), {"type": "tuning"}))
        pod = machine.place()
        network.attach(nets, Attachment(container_id="pod", netns=pod.path))
        network.check(nets, "pod")
        pod.run("ip addr flush dev eth0")
        with pytest.raises(PluginFailed, match="failed CHECK"):
            network.check(nets, "pod")
        network.detach(nets, "pod")

    def test_our_bridge_with_their_ipam(self, machine: Machine, tmp_path: Path) -> None:
        conf = bridge(tmp_path)
        conf["ipam"]["sampan"] = "external"
        nets = networks(tmp_path, {"cniVersion": "1.0.0", "name": "net", "plugins": [conf]})
        assert network.attach(nets, Attachment(container_id="pod", netns=machine.place().path)).addresses
        assert (tmp_path / "go-leases/net/10.44.0.2").exists()
        network.detach(nets, "pod")
        assert not (tmp_path / "go-leases/net/10.44.0.2").exists()

    def test_our_bridge_under_their_portmap(self, machine: Machine, tmp_path: Path) -> None:
        portmap = {"type": "portmap", "sampan": "external", "capabilities": {"portMappings": True}}
        nets = networks(tmp_path, {"cniVersion": "1.0.0", "name": "net", "plugins": [bridge(tmp_path), portmap]})
        pod, other = machine.place(), machine.neighbour()
        network.attach(nets, Attachment(container_id="pod", netns=pod.path, port_mappings=(PortMapping(80, 8080),)))
        with pod.serve(80):
            assert other.reaches("192.168.77.1", 8080)
        network.detach(nets, "pod")

    @pytest.mark.parametrize("first", ["portmap", "bandwidth"])
    def test_our_chained_plugins_behind_their_bridge(self, machine: Machine, tmp_path: Path, first: str) -> None:
        """As flannel's conflist has it: a program makes the interface, built-in plugins do the rest."""
        outside = {**bridge(tmp_path), "hairpinMode": True, "sampan": "external"}
        inner: list[dict[str, Any]] = [
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}, "mtu": 1280},
            {"type": "firewall"},
        ]
        inner.sort(key=lambda plugin: plugin["type"] != first)
        machine.run("iptables -P FORWARD DROP")
        before = machine.run("iptables -S")
        nets = networks(tmp_path, {"cniVersion": "1.0.0", "name": "net", "plugins": [outside, *inner]})
        pod, other = machine.place(), machine.neighbour()
        attachment = Attachment(
            container_id="pod",
            netns=pod.path,
            port_mappings=(PortMapping(80, 8080),),
            bandwidth=network.Bandwidth(80_000_000, 8_000_000, 80_000_000, 8_000_000),
        )
        network.attach(nets, attachment)
        with pod.serve(80), other.serve(81):
            assert other.ask("192.168.77.1", 8080) == "192.168.77.2"
            assert machine.reaches("127.0.0.1", 8080)
            assert pod.ask("192.168.77.1", 8080) == "10.44.0.1"
            assert pod.ask("192.168.77.2", 81) == "192.168.77.1"
        assert pod.run("cat /proc/sys/net/core/somaxconn").strip() == "321"
        assert pod.ip("link show eth0")[0]["mtu"] == 1280
        assert machine.run("tc qdisc show").count("rate 80Mbit") == 2
        network.check(nets, "pod")
        network.detach(nets, "pod", netns_ends=False)
        assert network_world.nft_elements(machine, nets) == {}
        assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
        assert not any(link["ifname"].startswith(("veth", "bwp")) for link in machine.ip("link show"))
        assert network.tidy(nets)
        assert machine.run("iptables -S") == before

    def test_addresses_that_they_hold_are_left_to_them(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "go-leases/net").mkdir(parents=True)
        (tmp_path / "go-leases/net/10.44.0.2").write_text("somebody\neth0")
        nets = networks(tmp_path, {"cniVersion": "1.0.0", "name": "net", "plugins": [bridge(tmp_path)]})
        pod = network.attach(nets, Attachment(container_id="pod", netns=machine.place().path))
        assert pod.addresses == ("10.44.0.3",)

    def test_their_error_is_shown_whole(self, machine: Machine, tmp_path: Path) -> None:
        conf = bridge(tmp_path)
        conf["ipam"] = {"type": "host-local", "subnet": "10.44.0.0/33", "dataDir": str(tmp_path)}
        conf["capabilities"] = {"ipRanges": True}
        nets = networks(tmp_path, chain(conf))
        with pytest.raises(PluginFailed, match=r"bridge failed ADD: .*10\.44\.0\.0/33"):
            network.attach(nets, Attachment(container_id="pod", netns=machine.place().path))
        assert nets.state.owners() == set()


class TestMisbehaviour:
    def attach(self, machine: Machine, nets: Networks) -> None:
        network.attach(nets, Attachment(container_id="pod", netns=machine.place().path))

    def test_garbage(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "odd", 'echo "Segmentation fault"; echo "from the depths" >&2')
        with pytest.raises(Corrupt, match=r"odd .* printed 'Segmentation fault'.*stderr: from the depths"):
            self.attach(machine, networks(tmp_path, chain({"type": "odd"})))

    def test_death(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "odd", "kill -SEGV $$")
        with pytest.raises(Corrupt, match="odd was killed by SIGSEGV"):
            self.attach(machine, networks(tmp_path, chain({"type": "odd"})))

    def test_hang(self, tmp_path: Path) -> None:
        binary = script(tmp_path, "odd", f"echo waiting >&2; sleep 1000 & echo $! > {tmp_path}/child; wait")
        started = time.monotonic()
        with pytest.raises(TimedOut, match=r"did not end its ADD within 0\.3 s .*; stderr: waiting"):
            execution.run(binary, "ADD", {}, deadline=0.3)
        assert time.monotonic() - started < 5
        child = int((tmp_path / "child").read_text())
        deadline = time.monotonic() + 5
        while start_time(child):  # who is killed may still be on its way out
            assert time.monotonic() < deadline

    def test_a_child_that_keeps_the_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        binary = script(tmp_path, "odd", f"sleep 1000 & echo $! > {tmp_path}/child; echo '{{}}'")
        started = time.monotonic()
        assert execution.run(binary, "ADD", {}, deadline=20) == {}
        assert time.monotonic() - started < 5
        os.kill(int((tmp_path / "child").read_text()), 9)

    def test_one_that_hangs_holds_up_no_more_than_a_deadline(self, machine: Machine, tmp_path: Path) -> None:
        """However many pods have died over it: what they leave is freed when it answers again."""
        script(
            tmp_path,
            "odd",
            f"test $CNI_COMMAND != DEL -o ! -e {tmp_path}/ill || "
            f"{{ echo asked >> {tmp_path}/asked; exec cat {tmp_path}/pipe; }}; echo '{{}}'",
        )
        os.mkfifo(tmp_path / "pipe")
        nets = networks(tmp_path, chain({**bridge(tmp_path), "sampan": ""}, {"type": "odd"}))
        pods = [f"pod{number}" for number in range(5)]
        for pod in pods:
            network.attach(nets, Attachment(container_id=pod, netns=machine.place().path))
        (tmp_path / "ill").touch()
        nets.deadline = 0.5
        done = network.reconcile(nets, ())
        assert len(done.errors) == 5
        assert "did not end its DEL within 0.5 s" in done.errors[0]
        assert "it is asked again in a while" in done.errors[-1]
        assert (tmp_path / "asked").read_text() == "asked\n"
        assert nets.state.attached() == set(pods)
        (tmp_path / "ill").unlink()
        again = networks(tmp_path, chain({**bridge(tmp_path), "sampan": ""}, {"type": "odd"}))
        assert network.reconcile(again, ()).attachments == tuple(pods)

    def test_standard_error_is_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        binary = script(tmp_path, "odd", "echo using the old key >&2; echo '{}'")
        caplog.set_level("INFO", logger="sampan.network")
        assert execution.run(binary, "ADD", {"name": "net"}, container_id="pod") == {}
        assert caplog.messages == ["CNI plugin odd said at ADD of pod: using the old key"]

    def test_an_error_names_network_and_plugin(self, machine: Machine, tmp_path: Path) -> None:
        """And says what the plugin did: message, details, code, and what it wrote to standard error."""
        script(
            tmp_path,
            "odd",
            "echo why >&2\n"
            """echo '{"cniVersion":"1.0.0","code":99,"msg":"no uplink","details":"eth9 is down"}'; exit 3""",
        )
        nets = networks(tmp_path, chain({**bridge(tmp_path), "sampan": ""}, {"type": "odd"}))
        with pytest.raises(PluginFailed) as failure:
            self.attach(machine, nets)
        assert str(failure.value) == (
            "network net, plugins[1] (odd): CNI plugin odd failed ADD: no uplink; eth9 is down [code 99]; stderr: why"
        )

    def test_endless_output(self, tmp_path: Path) -> None:
        binary = script(tmp_path, "odd", "exec cat /dev/zero")
        with pytest.raises(Corrupt, match="printed more than 1048576 bytes"):
            execution.run(binary, "ADD", {}, deadline=20)

    def test_try_again(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "odd", """echo '{"cniVersion":"1.0.0","code":11,"msg":"busy"}'; exit 1""")
        with pytest.raises(PluginFailed, match="busy") as failure:
            self.attach(machine, networks(tmp_path, chain({"type": "odd"})))
        assert failure.value.retriable

    def test_a_result_that_is_no_result(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "odd", """echo '{"cniVersion":"1.0.0","ips":[{"address":5}]}'""")
        with pytest.raises(InvalidInput, match=r"result.ips\[0\].address"):
            self.attach(machine, networks(tmp_path, chain({"type": "odd"})))

    def test_no_binary(self, machine: Machine, tmp_path: Path) -> None:
        nets = networks(tmp_path, chain({"type": "absent"}))
        assert not network.status(nets).ready
        assert "plugins[0]" in network.status(nets).message
        with pytest.raises(NotFound, match="absent"):
            self.attach(machine, nets)

    @pytest.mark.parametrize(
        ("ipam", "message"),
        [
            ({"type": "absent"}, r"plugins\[0\]: CNI plugin absent is in none of"),
            ({"type": "static", "sampan": "external"}, r"plugins\[0\]: CNI plugin static is in none of"),
            ({"type": "dhcp"}, r"plugins\[0\]: IPAM by dhcp is not built in .*run its daemon"),
        ],
    )
    def test_no_addresses(self, tmp_path: Path, ipam: dict[str, Any], message: str) -> None:
        """What no pod could be given addresses by is told before the first pod comes."""
        script(tmp_path, "dhcp", "exit 1")
        nets = networks(tmp_path, chain({"type": "bridge", "bridge": "br0", "sampan": "", "ipam": ipam}))
        nets.bin_dirs = (str(tmp_path / "bin"),)
        found = network.status(nets)
        assert not found.ready
        assert re.search(message, found.message)

    @pytest.mark.parametrize("args", [{"K8S_POD_NAME": "a;IP=10.0.0.1"}, {"A=B": "c"}, {"A;B": "c"}])
    def test_arguments_that_would_be_others(self, tmp_path: Path, args: dict[str, str]) -> None:
        nets = networks(tmp_path, chain({"type": "odd"}))
        with pytest.raises(InvalidInput, match=r"args: .* cannot stand among"):
            network.attach(nets, Attachment(container_id="pod", netns="/proc/self/ns/net", args=args))


class TestProtocol:
    def test_what_a_plugin_is_told(self, machine: Machine, tmp_path: Path) -> None:
        script(
            tmp_path,
            "spy",
            f"env | grep CNI_ >> {tmp_path}/seen; cat >> {tmp_path}/seen; echo >> {tmp_path}/seen\n"
            'test $CNI_COMMAND = ADD && echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.1.1.1/24"}]}\'; true',
        )
        spy: dict[str, Any] = {
            "type": "spy",
            "capabilities": {"portMappings": True, "bandwidth": True, "aliases": False},
        }
        nets = networks(tmp_path, chain(spy, {"type": "spy"}))
        pod = machine.place()
        network.attach(
            nets,
            Attachment(
                container_id="pod",
                netns=pod.path,
                args={"K8S_POD_NAME": "web"},
                port_mappings=(PortMapping(80, 8080, "udp", "127.0.0.1"),),
                aliases=("x",),
            ),
        )
        network.check(nets, "pod")
        network.detach(nets, "pod")
        lines = (tmp_path / "seen").read_text().splitlines()
        commands = [line.split("=")[1] for line in lines if line.startswith("CNI_COMMAND")]
        assert commands == ["ADD", "ADD", "CHECK", "CHECK", "DEL", "DEL"]
        assert lines.count("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web") == 6
        assert lines.count(f"CNI_NETNS={pod.path}") == 6
        documents = [json.loads(line) for line in lines if line.startswith("{")]
        mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
        assert documents[0]["runtimeConfig"] == {"portMappings": [mapping]}
        assert "prevResult" not in documents[0]
        assert documents[0]["name"] == "net"
        for later in documents[1:]:
            assert later["prevResult"]["ips"][0]["address"] == "10.1.1.1/24"
        assert "runtimeConfig" not in documents[1]

    def test_every_capability(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "spy", f"cat > {tmp_path}/seen; echo '{{}}'")
        names = ("portMappings", "bandwidth", "dns", "ips", "mac", "aliases", "cgroupPath")
        nets = networks(tmp_path, chain({"type": "spy", "capabilities": dict.fromkeys(names, True)}))
        attachment = Attachment(
            container_id="pod",
            netns=machine.place().path,
            port_mappings=(PortMapping(80, 8080),),
            bandwidth=network.Bandwidth(1, 2, 3, 4),
            dns=network.Dns(("10.0.0.10",), ("cluster.local",), ("ndots:5",)),
            ips=("10.1.1.5",),
            mac="02:00:00:00:00:01",
            aliases=("web",),
            cgroup_path="/kubepods/pod1",
        )
        network.attach(nets, attachment)
        assert json.loads((tmp_path / "seen").read_text())["runtimeConfig"] == {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
            "dns": {"servers": ["10.0.0.10"], "searches": ["cluster.local"], "options": ["ndots:5"]},
            "ips": ["10.1.1.5"],
            "mac": "02:00:00:00:00:01",
            "aliases": ["web"],
            "cgroupPath": "/kubepods/pod1",
        }

    def test_version(self, tmp_path: Path) -> None:
        script(tmp_path, "old", """echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'""")
        script(tmp_path, "odd", "echo moo")
        ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "sampan": "external"}
        own = {"type": "bridge", "bridge": "br0", "sampan": "", "ipam": ipam}
        nets = networks(tmp_path, chain({"type": "old"}, {"type": "odd"}, {"type": "absent"}, own))
        old, odd, absent, *go = network.programs(nets, nets.get("net"))
        assert old.versions == ("0.3.1", "0.4.0")
        assert old.fault == "it does not speak CNI 1.0.0, which the configuration asks for"
        assert "printed 'moo'" in odd.fault
        assert "is in none of" in absent.fault
        if os.path.exists(f"{GO}/host-local"):
            assert [(one.type, one.path, one.fault) for one in go] == [("host-local", f"{GO}/host-local", "")]
            assert {"0.3.1", "0.4.0", "1.0.0"} <= set(go[0].versions)

    def test_status_and_gc(self, machine: Machine, tmp_path: Path) -> None:
        body = (
            f"test $CNI_COMMAND != STATUS -o ! -e {tmp_path}/ill || "
            """{ echo '{"cniVersion":"1.1.0","code":50,"msg":"no uplink","details":"eth9"}'; exit 1; }\n"""
            f"test $CNI_COMMAND != GC || cat > {tmp_path}/gc-$(basename $0)\necho '{{}}'"
        )
        for name in ("spy", "spy-ipam"):
            script(tmp_path, name, body)
        own = {"type": "bridge", "bridge": "br0", "sampan": "", "ipam": {"type": "spy-ipam"}}
        nets = networks(tmp_path, chain({"type": "spy"}, own, version="1.1.0"))
        assert network.status(nets).ready
        (tmp_path / "ill").touch()
        found = network.status(nets)
        assert not found.ready
        assert "spy failed STATUS: no uplink; eth9 [code 50]" in found.message
        only = networks(tmp_path, chain({"type": "spy"}, version="1.1.0"))
        for pod in ("dead", "live"):
            network.attach(only, Attachment(container_id=pod, netns=machine.place().path))
        networks(tmp_path, chain({"type": "spy"}, own, version="1.1.0"))
        assert network.reconcile(nets, {"live"}).errors == ()
        for name in ("spy", "spy-ipam"):
            told = json.loads((tmp_path / f"gc-{name}").read_text())
            assert told["cni.dev/valid-attachments"] == [{"containerID": "live", "ifname": "eth0"}]
            assert told["name"] == "net"
            (tmp_path / f"gc-{name}").unlink()
        networks(tmp_path, {**chain({"type": "spy"}, version="1.1.0"), "disableGC": True})
        network.reconcile(nets, {"live"})
        networks(tmp_path, chain({"type": "spy"}))
        network.reconcile(nets, {"live"})
        assert network.status(nets).ready
        assert not (tmp_path / "gc-spy").exists()

    def test_a_plugin_that_hangs_blocks_no_other_pod(self, machine: Machine, tmp_path: Path) -> None:
        script(tmp_path, "odd", f"cat > /dev/null; test $CNI_COMMAND != ADD || cat {tmp_path}/pipe; echo '{{}}'")
        os.mkfifo(tmp_path / "pipe")
        own = {**bridge(tmp_path), "sampan": ""}
        nets = networks(tmp_path, chain(own, {"type": "odd"}))
        (tmp_path / "good").mkdir()
        good = networks(tmp_path / "good", chain(own))
        good.state = nets.state
        hung = machine.place()
        outcome: list[object] = []

        def hang() -> None:
            setns(machine.fd, CLONE_NEWNET)
            outcome.append(network.attach(nets, Attachment(container_id="hung", netns=hung.path)).addresses)

        thread = threading.Thread(target=hang)
        thread.start()
        # The plugin holds the pipe's other end open from here on: it has begun, and will not end.
        with open(tmp_path / "pipe", "wb"):
            for number in range(3):
                network.attach(good, Attachment(container_id=f"pod{number}", netns=machine.place().path))
                network.detach(good, f"pod{number}", netns_ends=False)
            assert network.reconcile(good, {"hung"}).errors == ()
            assert thread.is_alive()
        thread.join(10)
        assert len(outcome) == 1

"""Pods' networks as a kubelet asks for them over CRI: what plugins are told, which configuration counts, who waits."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_daemon import Daemon, private_daemon

from sampan.cri import api_pb2 as pb
from sampan.network.state import State

pytestmark = pytest.mark.root

BRIDGE = "sampank8s"
SUBNET = "10.89.84.0/24"
CAPABILITIES = ("portMappings", "bandwidth", "dns", "ips", "mac", "aliases", "cgroupPath")

#: Hangs at a command of the pod that the command's file names: says so to who reads ``asked``, ends with ``pipe``.
SPY = r"""#!/bin/sh
case $CNI_ARGS in *K8S_POD_NAME=$(cat {folder}/hang-$CNI_COMMAND || echo /)\;*)
    echo $CNI_COMMAND $$ > {folder}/asked; cat {folder}/pipe > /dev/null;;
esac 2> /dev/null
test $CNI_COMMAND != GC -o ! -e {folder}/hang-GC || cat {folder}/pipe
{{ echo $CNI_COMMAND; echo $CNI_ARGS; echo $CNI_IFNAME; cat; echo; }} >> {folder}/seen
echo seen at $CNI_COMMAND >&2
test $CNI_COMMAND != ADD || echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.89.84.9/24"}}]}}'
"""

PORTS = {"type": "portmap", "capabilities": {"portMappings": True}}

TEMPLATE = """
{"cniVersion": "1.0.0", "name": "kubelets", "plugins": [{"type": "bridge", "bridge": "BRIDGE", "isGateway": true,
 "ipam": {"type": "host-local",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}
"""


class Node(Daemon):
    """A daemon that looks for plugins, and for a template, in its own folder."""

    def command(self) -> list[str]:
        words = super().command()
        config = self.folder / "config.toml"
        more = f'[network]\nplugin_dirs = ["{self.folder}/bin"]\nconf_template = "{self.folder}/template"\n'
        config.write_text(config.read_text().replace("[network]\n", more))
        return words

    @property
    def conf(self) -> Path:
        return self.folder / "cni/10-network.conflist"

    def configure(self, *plugins: dict[str, Any], version: str = "1.0.0") -> None:
        """Put another conflist in place."""
        staged = self.folder / "cni/staged"
        staged.write_text(json.dumps({"cniVersion": version, "name": "net", "plugins": plugins}))
        staged.rename(self.conf)

    def run(self, name: str, **more: Any) -> str:
        """Run a pod; its id."""
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="shop"),
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=f"/sampan-k8s-test/{name}"),
            **more,
        )
        return str(self.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def stop_pod(self, pod: str) -> None:
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))

    def ready(self) -> dict[str, bool]:
        """Every pod, and whether it is ready."""
        pods = self.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
        return {pod.id: pod.state == pb.SANDBOX_READY for pod in pods}

    def network(self) -> pb.RuntimeCondition:
        conditions = self.runtime.Status(pb.StatusRequest()).status.conditions
        found: pb.RuntimeCondition = next(each for each in conditions if each.type == "NetworkReady")
        return found

    def hang(self, command: str, pod: str) -> None:
        """Have the plugin hang at a command for a pod of this name."""
        (self.folder / f"hang-{command}").write_text(pod)

    def asked(self) -> tuple[str, int]:
        """At which command the plugin hangs, as soon as it does, and its pid."""
        command, pid = (self.folder / "asked").read_text().split()
        return command, int(pid)

    def release(self) -> None:
        """Let what hangs go on."""
        with open(self.folder / "pipe", "wb"):
            pass

    def attached(self) -> set[str]:
        """Pods that have addresses and rules, or had them and are not freed yet."""
        state = State(f"{self.folder}/root/network")
        try:
            return state.attached()
        finally:
            state.close()

    def crash(self, *pods: str) -> None:
        """End the daemon and the pods' monitors at once."""
        self.kill()
        for pod in pods:
            told = json.loads((self.folder / "state/pods" / pod / "monitor.json").read_text())
            os.kill(told["pid"], signal.SIGKILL)

    def addresses(self, pod: str) -> list[str]:
        told = self.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.network
        return [told.ip, *(more.ip for more in told.additional_ips)]


def bridge(**more: Any) -> dict[str, Any]:
    return {"type": "bridge", "bridge": BRIDGE, "ipam": {"type": "host-local", "subnet": SUBNET}, **more}


@pytest.fixture
def node() -> Iterator[Node]:
    with private_daemon(BRIDGE, SUBNET, Node) as daemon:
        (daemon.folder / "bin").mkdir()
        spy = daemon.folder / "bin/spy"
        spy.write_text(SPY.format(folder=daemon.folder))
        spy.chmod(0o755)
        for pipe in ("asked", "pipe"):
            os.mkfifo(daemon.folder / pipe)
        daemon.start()
        yield daemon
        for command in ("ADD", "DEL"):
            daemon.hang(command, "/")
    # What a kubelet makes for its pods is the kubelet's to remove.
    root = Path("/sys/fs/cgroup")
    for parent in (*root.glob("sampan-k8s-test"), *root.glob("*/sampan-k8s-test")):
        for group in filter(Path.is_dir, parent.iterdir()):
            group.rmdir()
        parent.rmdir()


def test_what_plugins_are_told(node: Node) -> None:
    node.configure(bridge(), {"type": "spy", "capabilities": dict.fromkeys(CAPABILITIES, True)})
    pod = node.run(
        "web",
        port_mappings=[
            pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=18053, host_ip="127.0.0.1"),
            pb.PortMapping(container_port=80),
        ],
        dns_config=pb.DNSConfig(servers=["10.96.0.10"], searches=["shop.svc.cluster.local"], options=["ndots:5"]),
        annotations={"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"},
    )
    assert node.addresses(pod) == ["10.89.84.9"]
    node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    lines = [line for line in (node.folder / "seen").read_text().splitlines() if line]
    assert [lines[0], lines[4]] == ["ADD", "DEL"]
    for args, ifname, conf in (lines[1:4], lines[5:8]):
        assert args.split(";") == [
            "IgnoreUnknown=1",
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_NAME=web",
            f"K8S_POD_INFRA_CONTAINER_ID={pod}",
            "K8S_POD_UID=uid-web",
        ]
        assert ifname == "eth0"
        assert json.loads(conf)["runtimeConfig"] == {
            "portMappings": [{"hostPort": 18053, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
            "bandwidth": {
                "ingressRate": 10_000_000,
                "ingressBurst": 0xFFFFFFFF,
                "egressRate": 1 << 30,
                "egressBurst": 0xFFFFFFFF,
            },
            "dns": {"servers": ["10.96.0.10"], "searches": ["shop.svc.cluster.local"], "options": ["ndots:5"]},
            "cgroupPath": "/sampan-k8s-test/web",
        }
    log = node.log.read_text()
    for command in ("ADD", "DEL"):
        assert f"CNI plugin spy said at {command} of {pod}: seen at {command}" in log


def test_a_conflist_counts_as_soon_as_it_changes(node: Node) -> None:
    assert node.network().status
    node.configure(bridge(), {"type": "tuning", "mtu": "big"})
    fault = f"{node.conf}: plugins[1].mtu: Expected `int`, got `str`"
    assert not node.network().status
    assert node.network().message == fault
    with pytest.raises(grpc.RpcError) as failure:
        node.run("web")
    assert fault in failure.value.details()
    node.configure(bridge(), {"type": "absent"})
    assert "plugins[1]: CNI plugin absent is in none of" in node.network().message
    node.configure(bridge())
    assert node.network().status
    assert node.addresses(node.run("web")) == ["10.89.84.2"]


def test_the_kubelets_addresses_fill_the_template(node: Node) -> None:
    node.conf.unlink()
    (node.folder / "template").write_text(TEMPLATE.replace("BRIDGE", BRIDGE))
    told = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.89.85.0/24,fd89:85::/64"))
    node.runtime.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=told))
    assert os.listdir(node.folder / "cni") == ["10-sampan-net.conflist"]
    assert node.network().status
    assert node.addresses(node.run("web")) == ["10.89.85.2", "fd89:85::2"]


def test_a_plugin_that_hangs_holds_up_its_own_pod_alone(node: Node) -> None:
    node.configure(bridge(), {"type": "spy"})
    node.hang("ADD", "slow")
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(node.run("slow")))
    thread.start()
    assert node.asked()[0] == "ADD"
    for name in ("one", "two"):
        pod = node.run(name)
        node.stop_pod(pod)
        node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert node.network().status
    assert thread.is_alive()
    assert outcome == []
    node.release()
    thread.join(20)
    assert len(outcome) == 1


def test_one_that_hangs_over_a_dead_pod_holds_up_no_start(node: Node) -> None:
    """The daemon serves others; what the pod held is nobody else's until the plugin has let go."""
    node.configure(bridge(), PORTS, {"type": "spy"})
    port = [pb.PortMapping(container_port=80, host_port=18187)]
    dead = node.run("stuck", port_mappings=port)
    node.hang("DEL", "stuck")
    node.crash(dead)
    node.start()
    assert node.asked()[0] == "DEL"
    assert node.ready() == {dead: False}
    other = node.run("other")
    assert node.ready() == {dead: False, other: True}
    with pytest.raises(grpc.RpcError) as failure:
        node.run("heir", port_mappings=port)
    assert f"host port 18187/tcp is taken by container {dead}" in failure.value.details()
    assert node.attached() == {dead, other}
    node.release()
    node.stop_pod(dead)  # waits for who takes it down
    assert node.attached() == {other}
    assert not (node.folder / "state/ns" / dead).exists()
    node.run("heir", port_mappings=port)


def test_one_that_hangs_over_garbage_holds_up_no_start(node: Node) -> None:
    """It is asked before others may join its network, which it could take for garbage; and ended soon."""
    node.configure(bridge(), {"type": "spy"}, version="1.1.0")
    pod = node.run("web")
    node.hang("GC", "")
    node.crash()
    node.start()
    assert "left to a later reconcile: network net: CNI plugin spy did not end its GC within" in node.log.read_text()
    other = node.run("other")
    assert node.ready() == {pod: True, other: True}
    (node.folder / "hang-GC").unlink()
    node.crash()
    node.start()
    garbage = [json.loads(line) for line in (node.folder / "seen").read_text().splitlines() if "valid-attach" in line]
    assert [{each["containerID"] for each in seen["cni.dev/valid-attachments"]} for seen in garbage] == [{pod, other}]


def test_one_that_hangs_over_a_half_made_pod_keeps_no_name(node: Node) -> None:
    node.configure(bridge(), {"type": "spy"})
    node.hang("ADD", "web")
    node.hang("DEL", "web")
    cut: list[grpc.RpcError] = []

    def ask() -> None:
        try:
            node.run("web")
        except grpc.RpcError as error:
            cut.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert node.asked()[0] == "ADD"
    (half,) = node.attached()
    node.crash(half)
    thread.join(20)
    assert [error.code() for error in cut] == [grpc.StatusCode.UNAVAILABLE]
    node.hang("ADD", "/")
    node.start()
    assert node.asked()[0] == "DEL"
    pod = node.run("web")
    assert node.ready() == {pod: True}
    assert node.attached() == {half, pod}
    node.release()
    deadline = time.monotonic() + 30
    while node.attached() != {pod} or (node.folder / "state/pods" / half).exists():
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.02)
    assert node.ready() == {pod: True}


def test_one_that_hangs_over_a_dead_pod_ends_with_the_daemon(node: Node) -> None:
    """And is asked again by the next one."""
    node.configure(bridge(), {"type": "spy"})
    dead = node.run("stuck")
    node.hang("DEL", "stuck")
    node.crash(dead)
    node.start()
    command, pid = node.asked()
    assert command == "DEL"
    process = node.process
    assert process is not None
    node.stop()
    assert process.returncode == 0
    assert not os.path.exists(f"/proc/{pid}")
    assert node.attached() == {dead}
    node.hang("DEL", "/")
    node.start()
    node.stop_pod(dead)
    assert node.attached() == set()
    assert node.ready() == {dead: False}


def test_one_that_fails_over_a_dead_pod_is_told_of(node: Node) -> None:
    """And asked again when the pod is removed."""
    node.configure(bridge(), {"type": "spy"})
    dead = node.run("web")
    spy = node.folder / "bin/spy"
    good = spy.read_text()
    spy.write_text("""#!/bin/sh\necho '{"cniVersion":"1.0.0","code":11,"msg":"no uplink"}'; exit 1""")
    node.crash(dead)
    node.start()
    assert f"left to a later reconcile: pod {dead[:12]}: network net, plugins[1] (spy)" in node.log.read_text()
    assert node.ready() == {dead: False}
    assert node.attached() == {dead}
    spy.write_text(good)
    node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=dead))
    assert node.attached() == set()
    assert node.ready() == {}

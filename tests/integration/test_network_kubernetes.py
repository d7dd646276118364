"""Pods' networks as a kubelet asks for them over CRI: what plugins are told, which configuration counts, who waits."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_daemon import Daemon, private_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root

BRIDGE = "sampank8s"
SUBNET = "10.89.84.0/24"
CAPABILITIES = ("portMappings", "bandwidth", "dns", "ips", "mac", "aliases", "cgroupPath")

SPY = """#!/bin/sh
case $CNI_ARGS in *K8S_POD_NAME=slow*) test $CNI_COMMAND != ADD || cat {folder}/pipe > /dev/null;; esac
{{ echo $CNI_COMMAND; echo $CNI_ARGS; echo $CNI_IFNAME; cat; echo; }} >> {folder}/seen
echo seen at $CNI_COMMAND >&2
test $CNI_COMMAND != ADD || echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.89.84.9/24"}}]}}'
"""

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

    def network(self) -> pb.RuntimeCondition:
        conditions = self.runtime.Status(pb.StatusRequest()).status.conditions
        found: pb.RuntimeCondition = next(each for each in conditions if each.type == "NetworkReady")
        return found

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
        daemon.start()
        yield daemon


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
    os.mkfifo(node.folder / "pipe")
    node.configure(bridge(), {"type": "spy"})
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(node.run("slow")))
    thread.start()
    # Opened once the plugin has opened its end: it hangs from here on.
    with open(node.folder / "pipe", "wb"):
        for name in ("one", "two"):
            pod = node.run(name)
            node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        assert node.network().status
        assert thread.is_alive()
        assert outcome == []
    thread.join(20)
    assert len(outcome) == 1

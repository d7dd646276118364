"""Conflists for every built-in plugin, those of the plugins' public documentation among them."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import network_world
from network_world import Place
from sampan import network
from sampan.network import Networks

SUBNET = {"type": "host-local", "subnet": "10.61.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
DUAL = {
    "type": "host-local",
    "ranges": [
        [{"subnet": "10.62.0.0/24", "rangeStart": "10.62.0.20", "gateway": "10.62.0.254"}],
        [{"subnet": "fd62::/64"}],
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.62.0.254"}, {"dst": "::/0"}],
}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.63.0.5/24", "gateway": "10.63.0.1"}, {"address": "fd63::5/64", "gateway": "fd63::1"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}

BRIDGE_OF_FIREWALL: dict[str, Any] = {
    "type": "bridge",
    "bridge": "br0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
}

CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "bridge": [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": SUBNET}],
    "bridge without gateway": [
        {"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}}
    ],
    "bridge, default gateway, mtu": [
        {
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": True,
            "mtu": 1300,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "subnet": "10.61.0.0/24"},
        }
    ],
    "bridge, dual stack": [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": DUAL}],
    "bridge, vlan": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "vlan": 100, "mtu": 1400, "ipam": DUAL}
    ],
    "bridge, vlan without gateway": [{"type": "bridge", "bridge": "br0", "vlan": 7, "ipam": STATIC}],
    "vlan": [{"type": "vlan", "master": "up0", "vlanId": 5, "mtu": 1400, "ipam": SUBNET}],
    "bridge, promiscuous": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "promiscMode": True, "ipam": SUBNET}
    ],
    "bridge, static": [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": STATIC}],
    "bridge, no addresses": [{"type": "bridge", "bridge": "br0", "ipam": {}}],
    "ptp": [{"type": "ptp", "ipMasq": True, "mtu": 1400, "ipam": SUBNET}],
    "ptp, dual stack": [{"type": "ptp", "ipam": DUAL, "dns": {"nameservers": ["10.1.1.1"]}}],
    "macvlan": [{"type": "macvlan", "master": "up0", "ipam": SUBNET}],
    "macvlan, passthru, mtu": [{"type": "macvlan", "master": "up0", "mode": "passthru", "mtu": 1300, "ipam": SUBNET}],
    "host-device": [{"type": "host-device", "device": "spare", "ipam": SUBNET}],
    "tuning": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": SUBNET},
        {
            "type": "tuning",
            "sysctl": {"net.core.somaxconn": "555", "net/ipv4/conf/IFNAME/arp_filter": "1"},
            "mac": "02:00:00:00:11:22",
            "mtu": 1234,
            "promisc": True,
            "allmulti": True,
        },
    ],
    "bandwidth": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": SUBNET},
        {
            "type": "bandwidth",
            "ingressRate": 800000,
            "ingressBurst": 160000,
            "egressRate": 400000,
            "egressBurst": 80000,
        },
    ],
    "firewall": [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": SUBNET},
        {"type": "firewall"},
    ],
    # As the plugins' documentation (cni.dev) has them; the bridge's and the device's names are ours.
    "documentation: bridge": [
        {
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": True,
            "forceAddress": False,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "subnet": "10.10.0.0/16"},
        }
    ],
    "documentation: bridge, layer 2 only": [{"type": "bridge", "bridge": "br0", "ipam": {}}],
    "documentation: ptp": [
        {
            "type": "ptp",
            "ipam": {"type": "host-local", "subnet": "10.1.1.0/24"},
            "dns": {"nameservers": ["10.1.1.1", "8.8.8.8"]},
        }
    ],
    "documentation: vlan": [
        {
            "type": "vlan",
            "master": "up0",
            "mtu": 1500,
            "vlanId": 5,
            "linkInContainer": False,
            "ipam": {"type": "host-local", "subnet": "10.1.1.0/24"},
            "dns": {"nameservers": ["10.1.1.1", "8.8.8.8"]},
        }
    ],
    # With addresses of its own: the documentation's come by dhcp.
    "documentation: macvlan": [
        {
            "type": "macvlan",
            "master": "up0",
            "linkInContainer": False,
            "ipam": {"type": "host-local", "subnet": "10.1.1.0/24"},
        }
    ],
    "documentation: host-local": [
        {
            "type": "bridge",
            "bridge": "br0",
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [
                        {
                            "subnet": "10.10.0.0/16",
                            "rangeStart": "10.10.1.20",
                            "rangeEnd": "10.10.3.50",
                            "gateway": "10.10.0.254",
                        },
                        {"subnet": "172.16.5.0/24"},
                    ],
                    [
                        {
                            "subnet": "3ffe:ffff:0:01ff::/64",
                            "rangeStart": "3ffe:ffff:0:01ff::0010",
                            "rangeEnd": "3ffe:ffff:0:01ff::0020",
                        }
                    ],
                ],
                "routes": [
                    {"dst": "0.0.0.0/0"},
                    {"dst": "192.168.0.0/16", "gw": "10.10.5.1"},
                    {"dst": "3ffe:ffff:0:01ff::1/64"},
                ],
            },
        }
    ],
    "documentation: host-local, one range": [
        {
            "type": "bridge",
            "bridge": "br0",
            "ipam": {
                "type": "host-local",
                "subnet": "3ffe:ffff:0:01ff::/64",
                "rangeStart": "3ffe:ffff:0:01ff::0010",
                "rangeEnd": "3ffe:ffff:0:01ff::0020",
                "routes": [{"dst": "3ffe:ffff:0:01ff::1/64"}],
                "resolvConf": "/etc/resolv.conf",
            },
        }
    ],
    "documentation: static": [
        {
            "type": "bridge",
            "bridge": "br0",
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
                    {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0:1ff::fe"},
                ],
                "routes": [
                    {"dst": "0.0.0.0/0"},
                    {"dst": "192.168.0.0/16", "gw": "10.10.0.7"},
                    {"dst": "3ffe:ffff:0:01ff::1/64"},
                ],
                "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]},
            },
        }
    ],
    "documentation: host-device": [{"type": "host-device", "device": "spare"}],
    "documentation: host-device by hardware address": [{"type": "host-device", "hwaddr": "02:00:00:00:77:01"}],
    "documentation: loopback": [{"type": "loopback"}],
    "documentation: tuning": [
        {"type": "ptp", "ipam": SUBNET},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"}},
        {"type": "tuning", "mac": "c2:b0:57:49:47:f1", "mtu": 1454, "promisc": True, "allmulti": True},
    ],
    "documentation: portmap": [
        {
            "type": "ptp",
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "172.16.30.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
    "documentation: bandwidth": [
        {
            "type": "ptp",
            "ipMasq": True,
            "mtu": 512,
            "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"},
            "dns": {"nameservers": ["10.1.0.1"]},
        },
        {
            "name": "slowdown",
            "type": "bandwidth",
            "ingressRate": 123,
            "ingressBurst": 456,
            "egressRate": 123,
            "egressBurst": 456,
        },
    ],
    "documentation: firewall": [BRIDGE_OF_FIREWALL, {"type": "firewall"}],
    "documentation: firewall, iptables": [BRIDGE_OF_FIREWALL, {"type": "firewall", "backend": "iptables"}],
    "documentation: firewall, another chain": [
        BRIDGE_OF_FIREWALL,
        {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "SOME-OTHER-CHAIN-NAME"},
    ],
    "sbr": [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": SUBNET}, {"type": "sbr"}],
}

NEEDS = {
    "bridge, vlan": ("ip link add probe0 type bridge vlan_filtering 1",),
    "bridge, vlan without gateway": ("ip link add probe0 type bridge vlan_filtering 1",),
    "documentation: vlan": (
        "ip link add probe0 type veth peer name probe1",
        "ip link add link probe0 name probe2 type vlan id 5",
    ),
    "vlan": ("ip link add probe0 type veth peer name probe1", "ip link add link probe0 name probe2 type vlan id 5"),
}

#: Where the CHECK of version 1.1.1 of the Go plugins fails on what its own ADD made.
NO_CHECK = {"bridge, no addresses", "tuning", "sbr", "host-device", "documentation: tuning"} | {
    "documentation: host-device",
    "documentation: host-device by hardware address",
    "documentation: bridge, layer 2 only",
    "documentation: host-local",
    "documentation: host-local, one range",
    "documentation: static",
}
#: Where the bridge plugin of version 1.1.1 drops what its IPAM plugin says of name resolution; later ones do not.
LOST_DNS = {"documentation: static", "documentation: host-local, one range"}
#: What the documentation says, so that every version is met.
VERSIONS = {
    "documentation: bridge": "0.3.1",
    "documentation: host-device": "0.3.1",
    "documentation: bandwidth": "0.3.1",
    "documentation: portmap": "0.3.1",
    "documentation: static": "0.4.0",
    "documentation: firewall": "0.4.0",  # the plugin itself refuses 0.3.1, which its documentation says
    "documentation: firewall, iptables": "0.4.0",
}


def load(folder: Path, chain: list[dict[str, Any]], *, how: str, version: str = "1.0.0") -> Networks:
    """The one network that a chain makes: ``in process``, by the ``external`` Go plugins, or by our ``executable``s."""
    chain = copy.deepcopy(chain)
    folder.mkdir(exist_ok=True)
    conf = folder / "net.d"
    conf.mkdir(exist_ok=True)
    bin_dir = "/usr/lib/cni"
    if how == "executable":
        bin_dir = str(network_world.executables(folder))
    for plugin in chain:
        if how != "in process":
            plugin["sampan"] = "external"
        if plugin.get("ipam", {}).get("type") == "host-local":
            plugin["ipam"]["dataDir"] = str(folder / "leases")
        if plugin["type"] == "tuning":
            plugin["dataDir"] = str(folder / "tuning")
    document = {"cniVersion": version, "name": "same", "plugins": chain}
    (conf / "10-same.conflist").write_text(json.dumps(document))
    return network.load(str(conf), state_dir=str(folder / "state"), bin_dirs=(bin_dir,))


def describe(place: Place) -> dict[str, Any]:
    """What ``ip``, ``bridge`` and ``tc`` say of a place, without what is random in it."""
    links = {}
    for link in place.ip("-details link show"):
        name = (
            link["ifname"].rstrip("0123456789abcdef") if link["ifname"].startswith(("veth", "bwp")) else link["ifname"]
        )
        data = link.get("linkinfo", {})
        port = data.get("info_slave_data", {})
        links[name] = (
            link["mtu"],
            "UP" in link["flags"],
            "PROMISC" in link["flags"],
            "ALLMULTI" in link["flags"],
            data.get("info_kind"),
            port.get("hairpin"),
            sorted(place.addresses(link["ifname"])),
        )
    ports = {
        re.sub(r"^(veth)[0-9a-f]+$", r"\1", port["ifname"]): port["vlans"]
        for port in json.loads(place.run("bridge -j vlan show"))
    }
    qdiscs = place.run("tc qdisc show").splitlines()
    rates = sorted(re.sub(r"dev \S+|[0-9a-f]+:|refcnt \d+", "", line) for line in qdiscs if "tbf" in line)
    # tc reckons a burst back from the time that it lasts, and loses a byte of so small a one where the time was ours.
    rates = [rate.replace("burst 56b lat 1us", "burst 57b lat 0us") for rate in rates]
    return {
        "rates": rates,
        "vlans": ports,
        "links": links,
        "routes": sorted(place.routes() if not links.get("none") else []),
    }

"""However an attachment ends, for every built-in plugin: nothing of it is left on the machine or in the records."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import network_world
from network_configurations import CONFIGURATIONS, NEEDS, describe, load
from network_world import Machine, Place
from sampan import network
from sampan.errors import NotFound
from sampan.network import Attachment, Networks, PortMapping
from sampan.network.state import State

pytestmark = pytest.mark.root

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
#: One for each plugin.
EACH = (
    "bridge, dual stack",
    "ptp",
    "macvlan",
    "host-device",
    "tuning",
    "bandwidth",
    "documentation: firewall, iptables",
    "sbr",
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


def chain_of(name: str) -> list[dict[str, Any]]:
    """A configuration, with host ports where it has addresses that can have them."""
    if not network_world.kernel_has(*NEEDS.get(name, ())):
        pytest.skip(f"this kernel has not what `{NEEDS[name][-1]}` needs")
    chain = CONFIGURATIONS[name]
    return [*chain, PORTMAP] if chain[0]["type"] in ("bridge", "ptp") and chain[0]["ipam"] else chain


def furnish(machine: Machine) -> dict[str, Any]:
    """Give a machine the devices that the configurations speak of; what it is like then."""
    machine.neighbour()
    machine.run("ip link add spare address 02:00:00:00:77:01 type veth peer name other")
    return describe(machine)


def links(machine: Machine) -> set[str]:
    return {link["ifname"] for link in machine.ip("link show")}


def join(nets: Networks, pod: Place) -> None:
    ports = (PortMapping(80, 8080), PortMapping(53, 5353, "udp"))
    network.attach(nets, Attachment(container_id="pod", netns=pod.path, port_mappings=ports))


def assert_nothing_is_left(nets: Networks, machine: Machine, before: dict[str, Any]) -> None:
    """Nothing recorded; and, when table and bridges are tidied away too, the machine as it was."""
    assert nets.state.owners() == set()
    assert os.listdir(nets.state.results) == []
    # A namespace that ended takes its links with it in the kernel's own time, and a bridge with ports stays.
    until = time.monotonic() + 10
    while network.tidy(nets) and links(machine) != set(before["links"]) and time.monotonic() < until:
        time.sleep(0.02)
    assert describe(machine) == before
    assert nets.state.facts("") == []
    assert nets.state.table not in machine.run("nft list tables")
    assert "CNI-FORWARD -s" not in machine.run("iptables -S")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_namespace_has_gone(machine: Machine, tmp_path: Path, name: str) -> None:
    before = furnish(machine)
    nets, pod = load(tmp_path, chain_of(name), how="in process"), machine.place()
    join(nets, pod)
    pod.close()
    network.detach(nets, "pod", netns_ends=False)
    network.detach(nets, "pod")
    if CONFIGURATIONS[name][0]["type"] == "host-device":
        # No driver stands behind a veth to bring it back: it ends with the namespace that it was in.
        before["links"] = {link: found for link, found in before["links"].items() if link not in ("spare", "other")}
    assert_nothing_is_left(nets, machine, before)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_machine_was_rebooted(machine: Machine, tmp_path: Path, name: str) -> None:
    furnish(machine)
    nets, pod = load(tmp_path, chain_of(name), how="in process"), machine.place()
    join(nets, pod)
    pod.close()
    for table in ("leases", "rules", "attachments"):
        nets.state.database.execute(f"UPDATE {table} SET boot = 'an earlier one'")
    nets.state.close()
    with network_world.machine() as rebooted:
        before = furnish(rebooted)
        again = load(tmp_path, chain_of(name), how="in process")
        assert network.reconcile(again, ()).errors == ()
        network.detach(again, "pod")
        assert_nothing_is_left(again, rebooted, before)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_fails_half_way(machine: Machine, tmp_path: Path, name: str) -> None:
    before = furnish(machine)
    nets, pod = load(tmp_path, [*chain_of(name), {"type": "no-such-plugin"}], how="in process"), machine.place()
    with pytest.raises(NotFound, match="no-such-plugin"):
        join(nets, pod)
    assert [link["ifname"] for link in pod.ip("link show")] == ["lo"]
    assert pod.run("ip rule show") == machine.place().run("ip rule show")
    assert_nothing_is_left(nets, machine, before)


JOINER = """
import sys
from sampan import network
from sampan.network import Attachment, PortMapping
conf, state, binaries, netns = sys.argv[1:]
nets = network.load(conf, state_dir=state, bin_dirs=(binaries,))
network.attach(nets, Attachment(container_id="pod", netns=netns, port_mappings=(PortMapping(80, 8080),)))
"""


@pytest.mark.parametrize("name", EACH)
def test_who_attaches_dies_half_way(machine: Machine, tmp_path: Path, name: str) -> None:
    """A plugin at the chain's end kills the process that runs it; what it had made is freed by the next reconcile."""
    (tmp_path / "bin").mkdir()
    killer = tmp_path / "bin/killer"
    killer.write_text('#!/bin/sh\ntest "$CNI_COMMAND" != ADD || kill -9 $PPID\n')
    killer.chmod(0o755)
    before = furnish(machine)
    nets, pod = load(tmp_path, [*chain_of(name), {"type": "killer"}], how="in process"), machine.place()
    nets.bin_dirs = (str(tmp_path / "bin"),)
    words = [sys.executable, "-c", JOINER, nets.conf_dir, nets.state.root, *nets.bin_dirs, pod.path]
    assert subprocess.run(words, check=False, timeout=60).returncode == -9
    assert {link["ifname"] for link in pod.ip("link show")} == {"lo", "eth0"}
    assert nets.state.attached() == {"pod"}
    assert network.reconcile(nets, {"another"}).attachments == ("pod",)
    pod.close()
    assert_nothing_is_left(nets, machine, before)


@pytest.mark.parametrize("ends", [True, False])
def test_a_tuned_device_returns_as_it_came(machine: Machine, tmp_path: Path, ends: bool) -> None:
    machine.run("ip link add spare mtu 1400 address 02:00:00:00:77:01 txqueuelen 77 type veth peer name other")
    before = machine.ip("link show spare")
    tuning = {"type": "tuning", "mtu": 1300, "mac": "02:00:00:00:77:02", "promisc": True, "allmulti": True, "txQLen": 5}
    nets = load(tmp_path, [{"type": "host-device", "device": "spare"}, tuning], how="in process")
    pod = machine.place()
    network.attach(nets, Attachment(container_id="pod", netns=pod.path))
    (inside,) = pod.ip("link show eth0")
    assert (inside["mtu"], inside["address"], inside["txqlen"]) == (1300, "02:00:00:00:77:02", 5)
    network.check(nets, "pod")
    network.detach(nets, "pod", netns_ends=ends)
    (after,) = machine.ip("link show spare")
    changes = {key for key in after if after[key] != before[0].get(key)}
    assert changes <= {"ifindex"}
    assert nets.state.facts("tuned/") == []


@pytest.mark.parametrize("how", ["gone", "twice"])
def test_the_executables_leave_nothing_either(machine: Machine, tmp_path: Path, how: str) -> None:
    before = furnish(machine)
    chain = [*CONFIGURATIONS["bandwidth"], PORTMAP]
    nets, pod = load(tmp_path, chain, how="executable"), machine.place()
    join(nets, pod)
    kept = State(str(tmp_path / "executable-state"))
    assert kept.owners() == {"pod"}
    if how == "gone":
        pod.close()
    network.detach(nets, "pod", netns_ends=False)
    join(nets, machine.place())
    network.detach(nets, "pod", netns_ends=False)
    of_executables = network.load(nets.conf_dir, state_dir=kept.root)
    assert_nothing_is_left(of_executables, machine, before)
    kept.close()


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy", "nft"])
def test_rules_of_others_stand(machine: Machine, tmp_path: Path, program: str) -> None:
    """Their tables read the same at each step of ours, and go on doing what they say."""
    other, pod = machine.neighbour(), machine.place()
    rules: list[str]
    if program == "nft":
        rules = [
            "nft add table ip office",
            "nft add chain ip office gate { type filter hook input priority 0 ; }",
            "nft add rule ip office gate tcp dport 7001 reject",
        ]
        show = "nft list table ip office"
    else:
        rules = [
            f"{program} -A INPUT -p tcp --dport 7001 -j REJECT",
            f"{program} -t nat -A PREROUTING -p tcp --dport 7002 -j REDIRECT --to-ports 7000",
        ]
        show = f"{program}-save"
    if not network_world.kernel_has(*rules):
        pytest.skip(f"{program} does not work here")
    for rule in rules:
        machine.run(rule)

    def theirs() -> list[str]:
        lines = machine.run(show).splitlines()
        return [line.split("[")[0] for line in lines if not line.startswith("#")]

    before = theirs()
    nets = load(tmp_path, [CONFIGURATIONS["bridge"][0], PORTMAP, {"type": "firewall"}], how="in process")
    steps: list[Callable[[], object]] = [
        lambda: join(nets, pod),
        lambda: network.reconcile(nets, {"pod"}),
        lambda: network.detach(nets, "pod", netns_ends=False),
        lambda: network.tidy(nets),
    ]
    with machine.serve(7000), machine.serve(7001):
        for step in steps:
            step()
            assert theirs() == before
            assert other.reaches("192.168.77.1", 7000)
            assert not other.reaches("192.168.77.1", 7001)
            assert program == "nft" or other.reaches("192.168.77.1", 7002)

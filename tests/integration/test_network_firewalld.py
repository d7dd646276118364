"""The firewall plugin beside the real firewalld, on a system bus and in a network namespace of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import network_world
from network_configurations import BRIDGE_OF_FIREWALL, load
from network_world import Machine
from sampan import network
from sampan.errors import Unavailable, WrongState
from sampan.network import Attachment, PortMapping

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not all(map(shutil.which, ("firewalld", "dbus-daemon", "busctl"))), reason="firewalld is not installed"
    ),
]

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


def zone(method: str, source: str) -> str:
    """Ask firewalld about a source of its zone ``trusted``; empty while it does not answer."""
    words = ["busctl", f"--address={os.environ['DBUS_SYSTEM_BUS_ADDRESS']}", "call", "org.fedoraproject.FirewallD1"]
    words += ["/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone", method, "ss", "trusted", source]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout.strip()


@pytest.fixture
def firewalld(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path / "bus"))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with ExitStack() as running:
        running.enter_context(process("dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--nopidfile"))
        until = time.monotonic() + 30
        while not (tmp_path / "bus").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        words = ["firewalld", "--nofork", "--nopid", "--system-config", f"{tmp_path}/etc"]
        started = running.enter_context(process(*words, "--log-target", "file", "--log-file", f"{tmp_path}/log"))
        while zone("querySource", "192.0.2.1/32") != "b false":
            assert time.monotonic() < until
            time.sleep(0.1)
        yield started


@pytest.mark.usefixtures("firewalld")
@pytest.mark.parametrize("backend", ["", "firewalld"])
@pytest.mark.parametrize("how", ["in process", "external"])
def test_containers_are_let_through(machine: Machine, tmp_path: Path, how: str, backend: str) -> None:
    if how == "external" and not os.path.exists("/usr/lib/cni/firewall"):
        pytest.skip("containernetworking-plugins is not installed")
    one, two, other = machine.place(), machine.place(), machine.neighbour()
    plain = load(tmp_path, [BRIDGE_OF_FIREWALL], how=how)
    network.attach(plain, Attachment(container_id="a", netns=one.path))
    chain = [BRIDGE_OF_FIREWALL, {"type": "firewall", **({"backend": backend} if backend else {})}]
    nets = load(tmp_path, chain, how=how, version="0.4.0")
    address = network.attach(nets, Attachment(container_id="b", netns=two.path)).addresses[0]
    with other.serve(80):
        assert not one.reaches("192.168.77.2", 80)
        assert two.ask("192.168.77.2", 80) == "192.168.77.1"
    assert zone("querySource", f"{address}/32") == "b true"
    assert network.status(nets).message == ""
    network.detach(nets, "b", netns_ends=False)
    network.detach(plain, "a", netns_ends=False)
    assert zone("querySource", f"{address}/32") == "b false"


@pytest.mark.usefixtures("firewalld")
def test_a_host_port(machine: Machine, tmp_path: Path) -> None:
    pod, other = machine.place(), machine.neighbour()
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    nets = load(tmp_path, [BRIDGE_OF_FIREWALL, portmap, {"type": "firewall"}], how="in process")
    network.attach(nets, Attachment(container_id="a", netns=pod.path, port_mappings=(PortMapping(80, 8080),)))
    with pod.serve(80):
        assert other.ask("192.168.77.1", 8080) == "192.168.77.2"


def test_one_that_forgets_and_one_that_ends(
    machine: Machine, tmp_path: Path, firewalld: subprocess.Popen[bytes]
) -> None:
    chain = [BRIDGE_OF_FIREWALL, {"type": "firewall", "backend": "firewalld"}]
    nets, pod = load(tmp_path, chain, how="in process"), machine.place()
    address = network.attach(nets, Attachment(container_id="a", netns=pod.path)).addresses[0]
    network.check(nets, "a")
    zone("removeSource", f"{address}/32")
    with pytest.raises(WrongState, match="no longer has"):
        network.check(nets, "a")
    assert network.reconcile(nets, {"a"}).rules_restored == 1
    network.check(nets, "a")
    firewalld.terminate()
    firewalld.wait(20)
    network.detach(nets, "a", netns_ends=False)
    assert nets.state.owners() == set()
    with pytest.raises(Unavailable, match=r"plugins\[1\] \(firewall\): firewalld does not run"):
        network.attach(nets, Attachment(container_id="b", netns=machine.place().path))

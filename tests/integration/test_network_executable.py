"""``sampan-cni`` as a runtime calls it: the commands, the error codes, whose leases and rules are whose."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import network_world
from network_configurations import CONFIGURATIONS, DUAL
from network_world import Machine, Place
from sampan import network
from sampan.daemon import config as daemon_configuration
from sampan.network import plugins
from sampan.network.state import USUAL, State
from sampan.spec import cni

pytestmark = pytest.mark.root

GO = "/usr/lib/cni"
BRIDGE = CONFIGURATIONS["bridge"][0]
PORTMAP = {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


def call(folder: str | Path, kind: str, command: str, conf: object, **environment: str) -> tuple[int, Any]:
    """One call of a plugin; its exit status, and what it printed as JSON."""
    text = conf if isinstance(conf, str) else json.dumps(conf)
    done = subprocess.run(
        [os.path.join(folder, kind)],
        input=text,
        env={"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def of(pod: str, netns: str = "", ifname: str = "eth0") -> dict[str, str]:
    return {"CNI_CONTAINERID": pod, "CNI_NETNS": netns, "CNI_IFNAME": ifname}


def named(conf: dict[str, Any], version: str = "1.1.0") -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", **conf}


def test_it_imports_little() -> None:
    """It is started for each call: what few calls need is imported by those."""
    program = "import sys, sampan.cli.cni; print(*sys.modules)"
    found = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert not found & {"argparse", "asyncio", "click", "dataclasses", "grpc", "json", "logging", "subprocess"}


@pytest.mark.parametrize("kind", sorted(plugins.TYPES))
def test_version(tmp_path: Path, kind: str) -> None:
    folder = network_world.executables(tmp_path)
    status, answer = call(folder, kind, "VERSION", {"cniVersion": "0.4.0"})
    assert status == 0
    assert answer["cniVersion"] == "0.4.0"
    assert {"0.3.1", "0.4.0", "1.0.0", "1.1.0"} <= set(answer["supportedVersions"])


@pytest.mark.parametrize("kind", sorted(plugins.TYPES))
def test_our_own_caller_asks_for_the_version(tmp_path: Path, kind: str) -> None:
    folder = network_world.executables(tmp_path)
    conf = {"type": kind, "sampan": "external"}
    document = {"cniVersion": "1.0.0", "name": "net", "plugins": [conf]}
    (tmp_path / "10-net.conflist").write_text(json.dumps(document))
    nets = network.load(str(tmp_path), state_dir=str(tmp_path / "state"), bin_dirs=(str(folder),))
    (program,) = network.programs(nets, nets.get("net"))
    assert program == network.Program(kind, f"{folder}/{kind}", cni.VERSIONS)


BAD_CALLS: list[tuple[str, Any, dict[str, str], int, str]] = [
    ("ADD", {**BRIDGE, "cniVersion": "9.9.9"}, of("a", "/proc/self/ns/net"), cni.CODE_INCOMPATIBLE_VERSION, "9.9.9"),
    ("CHECK", {**BRIDGE, "cniVersion": "0.3.1"}, of("a", "/proc/self/ns/net"), cni.CODE_INCOMPATIBLE_VERSION, "0.4.0"),
    ("STATUS", {**BRIDGE, "cniVersion": "1.0.0"}, {}, cni.CODE_INCOMPATIBLE_VERSION, "1.0.0 has no STATUS"),
    ("GC", {**BRIDGE, "cniVersion": "1.0.0"}, {}, cni.CODE_INCOMPATIBLE_VERSION, "1.0.0 has no GC"),
    ("ADD", BRIDGE, of("", "/proc/self/ns/net"), cni.CODE_INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    ("ADD", BRIDGE, of("a"), cni.CODE_INVALID_ENVIRONMENT, "CNI_NETNS"),
    ("ADD", BRIDGE, of("a", "/proc/self/ns/net", ""), cni.CODE_INVALID_ENVIRONMENT, "CNI_IFNAME"),
    ("ADD", BRIDGE, of("../a", "/proc/self/ns/net"), cni.CODE_INVALID_ENVIRONMENT, "no container id"),
    ("ADD", BRIDGE, of("a", "/proc/self/ns/net", "far/too"), cni.CODE_INVALID_ENVIRONMENT, "no interface name"),
    ("FETCH", BRIDGE, of("a"), cni.CODE_INVALID_ENVIRONMENT, "no command of CNI"),
    ("ADD", "{", of("a"), cni.CODE_DECODING_FAILURE, "not JSON"),
    ("ADD", "[]", of("a"), cni.CODE_DECODING_FAILURE, "no JSON object"),
    ("ADD", {**BRIDGE, "mtu": "big"}, of("a", "/proc/self/ns/net"), cni.CODE_INVALID_CONFIG, "mtu"),
    ("ADD", BRIDGE, of("a", "/nonexistent"), cni.CODE_INVALID_CONFIG, "/nonexistent"),
    ("STATUS", {**BRIDGE, "ipam": {"type": "host-local"}}, {}, cni.CODE_INVALID_CONFIG, "neither ranges"),
    ("STATUS", {**BRIDGE, "ipam": {"type": "absent"}}, {}, cni.CODE_UNKNOWN_CONTAINER, "absent"),
]


@pytest.mark.parametrize(("command", "conf", "environment", "code", "text"), BAD_CALLS)
def test_errors_have_the_specifications_codes(
    machine: Machine, tmp_path: Path, command: str, conf: Any, environment: dict[str, str], code: int, text: str
) -> None:
    document = named(conf) if isinstance(conf, dict) else conf
    status, answer = call(network_world.executables(tmp_path), "bridge", command, document, **environment)
    assert status == 1
    assert answer["code"] == code
    assert text in answer["msg"]
    assert [link["ifname"] for link in machine.ip("link show")] == ["lo"]


def test_the_documented_command_line(tmp_path: Path) -> None:
    """host-local's documentation calls it by hand, with no type and no namespace; ours says what the Go plugin says."""
    conf = {
        "cniVersion": "0.3.1",
        "name": "examplenet",
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "203.0.113.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
            "dataDir": str(tmp_path / "go"),
        },
    }
    environment = of("example", "/dev/null", "dummy0")
    ours = call(network_world.executables(tmp_path), "host-local", "ADD", conf, **environment)
    assert ours[0] == 0
    assert ours[1]["ips"] == [
        {"version": "4", "address": "203.0.113.2/24", "gateway": "203.0.113.1"},
        {"version": "6", "address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
    ]
    if os.path.exists(f"{GO}/host-local"):
        assert ours == call(GO, "host-local", "ADD", conf, **environment)


def test_requests_of_host_local(tmp_path: Path) -> None:
    """By CNI_ARGS, by ``args`` and by both capabilities, as documented; the Go plugin answers the same."""
    asked: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {"CNI_ARGS": "IgnoreUnknown=1;IP=203.0.113.9"}),
        ({"args": {"cni": {"ips": ["203.0.113.10"]}}}, {}),
        ({"runtimeConfig": {"ips": ["203.0.113.11"]}}, {}),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.7"}]]}}, {}),
        ({"runtimeConfig": {"ips": ["192.0.2.1"]}}, {}),
    ]
    folder = network_world.executables(tmp_path)
    for number, (more, environment) in enumerate(asked):
        ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(tmp_path / "go")}
        if "ipRanges" not in more.get("runtimeConfig", {}):
            ipam["subnet"] = "203.0.113.0/24"
        conf = {"cniVersion": "1.0.0", "name": "net", "ipam": ipam, **more}
        whom = {**of(f"pod{number}", "/dev/null"), **environment}
        status, ours = call(folder, "host-local", "ADD", conf, **whom)
        refused = number == len(asked) - 1
        assert status == (1 if refused else 0)
        if os.path.exists(f"{GO}/host-local"):
            theirs = call(GO, "host-local", "ADD", conf, **whom)
            assert theirs[0] == status
            assert refused or theirs[1] == ours


def chained(folder: Path, pod: str, netns: Place, port: int) -> None:
    """ADD of bridge and then portmap, as a runtime does it."""
    status, result = call(folder, "bridge", "ADD", named(BRIDGE), **of(pod, netns.path))
    assert status == 0, result
    mapping = {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80}]}}
    status, result = call(folder, "portmap", "ADD", named({**mapping, "prevResult": result}), **of(pod, netns.path))
    assert status == 0, result


def test_gc_and_status(machine: Machine, tmp_path: Path) -> None:
    folder = network_world.executables(tmp_path)
    live, dead, ours, other = machine.place(), machine.place(), machine.place(), machine.neighbour()
    chained(folder, "live", live, 8080)
    chained(folder, "dead", dead, 8081)
    chained(folder, "ours", ours, 8082)
    # As if it were a pod of an engine on the same network, of which the caller knows nothing.
    state = State(str(tmp_path / "executable-state"))
    (owner,) = state.owners_left("ours")
    state.record_attachment(owner, 0)
    for kind, conf in (("bridge", BRIDGE), ("portmap", {"type": "portmap"})):
        assert call(folder, kind, "STATUS", named(conf)) == (0, None)
    valid = {"cni.dev/valid-attachments": [{"containerID": "live", "ifname": "eth0"}]}
    with live.serve(80), dead.serve(80), ours.serve(80):
        assert other.reaches("192.168.77.1", 8081)
        for kind, conf in (("bridge", BRIDGE), ("portmap", {"type": "portmap"})):
            assert call(folder, kind, "GC", named({**conf, **valid})) == (0, None)
        assert other.reaches("192.168.77.1", 8080)
        assert not other.reaches("192.168.77.1", 8081)
        assert other.reaches("192.168.77.1", 8082)
    assert state.owners() == {"live", "ours"}
    state.close()


def test_gc_and_status_ask_an_external_ipam_too(machine: Machine, tmp_path: Path) -> None:
    folder = network_world.executables(tmp_path)
    spy = folder / "spy-ipam"
    spy.write_text(f"#!/bin/sh\necho $CNI_COMMAND >> {tmp_path}/asked; cat >> {tmp_path}/asked\n")
    spy.chmod(0o755)
    conf = named({**BRIDGE, "ipam": {"type": "spy-ipam"}, "cni.dev/valid-attachments": []})
    assert call(folder, "bridge", "STATUS", conf) == (0, None)
    assert call(folder, "bridge", "GC", conf) == (0, None)
    seen = (tmp_path / "asked").read_text()
    assert [word for word in ("STATUS", "GC") if word in seen] == ["STATUS", "GC"]
    assert seen.count("cni.dev/valid-attachments") == 2


def test_the_daemon_leaves_their_pods_alone(machine: Machine, tmp_path: Path) -> None:
    """Where a daemon and another runtime's ``sampan-cni`` share a machine they share the record, and so the table."""
    folder = network_world.executables(tmp_path)
    theirs, ours, other = machine.place(), machine.place(), machine.neighbour()
    chained(folder, "theirs", theirs, 8080)
    conflist = {"cniVersion": "1.1.0", "name": "dual", "plugins": [{**BRIDGE, "bridge": "br1", "ipam": DUAL}]}
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/10-dual.conflist").write_text(json.dumps(conflist))
    nets = network.load(str(tmp_path / "net.d"), state_dir=str(tmp_path / "executable-state"))
    with theirs.serve(80):
        network.attach(nets, network.Attachment(container_id="ours", netns=ours.path))
        assert network.reconcile(nets, {"ours"}) == network.Reconciled()
        network.detach(nets, "ours", netns_ends=False)
        assert network.reconcile(nets, ()) == network.Reconciled()
        assert not network.tidy(nets)
        assert other.reaches("192.168.77.1", 8080)
        assert machine.reaches("127.0.0.1", 8080)
    for kind, conf in (("portmap", {"type": "portmap"}), ("bridge", BRIDGE)):
        assert call(folder, kind, "DEL", named(conf), **of("theirs", theirs.path)) == (0, None)
    assert network.tidy(nets)
    assert machine.run("nft list tables") == ""


def test_both_keep_one_record(tmp_path: Path) -> None:
    """Two records of one table would each take the other's rules for strays."""
    assert f"{daemon_configuration.load('', {}).root}/network" == USUAL
    assert State(str(tmp_path / "state")).table != "sampan"

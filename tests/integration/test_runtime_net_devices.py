"""Network devices of the host that a container is given (``linux.netDevices``)."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box

from sampan.errors import StageFailed
from sampan.runtime import trace
from sampan.runtime.sandbox import create_sandbox, destroy_sandbox

pytestmark = pytest.mark.root

DEVICE = f"spnd{os.getpid() % 100000}"


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A container that is to have the device; the other end of it stays."""
    made = Box(tmp_path)
    made.linux["netDevices"] = {DEVICE: {"name": "eth7"}}
    _ip("link", "add", DEVICE, "mtu", "1400", "type", "veth", "peer", "name", f"{DEVICE}p")
    try:
        _ip("address", "add", "198.51.100.9/28", "broadcast", "198.51.100.15", "dev", DEVICE)
        _ip("address", "add", "192.0.2.1", "peer", "192.0.2.2", "dev", DEVICE)
        _ip("address", "add", "10.0.0.1/8", "scope", "link", "dev", DEVICE)
        _ip("address", "add", "2001:db8::9/64", "nodad", "dev", DEVICE)
        _ip("link", "set", DEVICE, "up")
        _ip("link", "set", f"{DEVICE}p", "up")
        yield made
    finally:
        trace.hook = None
        made.discard()
        subprocess.run(["ip", "link", "delete", f"{DEVICE}p"], check=False, capture_output=True)


def _addresses(listing: str) -> set[str]:
    return {" ".join(line.split("scope")[0].split()[2:]) for line in listing.splitlines() if "fe80" not in line}


LASTING = {
    "inet 198.51.100.9/28 brd 198.51.100.15",
    "inet 192.0.2.1 peer 192.0.2.2/32",
    "inet6 2001:db8::9/64",
}


def test_a_device_comes_up_with_its_lasting_addresses(box: Box) -> None:
    said = box.sh("busybox ip -o address show dev eth7; echo --; busybox ip -o link show dev eth7; ls /sys/class/net")
    addresses, _, rest = said.partition("--\n")
    assert _addresses(addresses) == LASTING
    assert "mtu 1400" in rest
    assert ",UP" in rest
    assert rest.split()[-2:] == ["eth7", "lo"]
    assert not os.path.exists(f"/sys/class/net/{DEVICE}")


def test_the_kernel_finds_a_free_number(box: Box) -> None:
    box.linux["netDevices"] = {DEVICE: {"name": "net%d"}}
    assert box.sh("ls /sys/class/net").split() == ["lo", "net0"]


def test_a_missing_device_is_named(box: Box) -> None:
    box.linux["netDevices"] = {DEVICE: {}, "nosuchdevice": {}}
    with pytest.raises(StageFailed, match="move network device at nosuchdevice: ENODEV"):
        box.create("true")
    # The first was moved before, and is back.
    assert _addresses(_ip("-o", "address", "show", "dev", DEVICE, "scope", "global", "up")) == LASTING


def test_a_name_that_is_taken_is_refused_before_the_move(box: Box) -> None:
    box.linux["netDevices"] = {DEVICE: {"name": "lo"}}
    with pytest.raises(StageFailed, match=f"move network device at {DEVICE}: EEXIST"):
        box.create("true")
    assert _addresses(_ip("-o", "address", "show", "dev", DEVICE, "scope", "global")) == LASTING


def test_a_device_goes_into_a_namespace_that_is_joined_and_comes_back_from_it(box: Box, tmp_path: Path) -> None:
    sandbox = create_sandbox(str(tmp_path / "ns"), ["network"])
    try:
        own = [one for one in box.linux["namespaces"] if one["type"] != "network"]
        box.linux["namespaces"] = [*own, {"type": "network", "path": sandbox.paths["network"]}]

        def fail(name: str) -> None:
            if name == "pivot root":
                raise OSError(5, "injected")

        trace.hook = fail
        with pytest.raises(StageFailed, match="injected"):
            box.create("true")
        trace.hook = None
        assert _addresses(_ip("-o", "address", "show", "dev", DEVICE, "scope", "global", "up")) == LASTING
        assert box.sh("ls /sys/class/net").split() == ["eth7", "lo"]
    finally:
        destroy_sandbox(str(tmp_path / "ns"))

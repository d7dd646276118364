"""Debian's containerd with ``sampan-cni`` for plugin binaries: ``ctr run --cni``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import network_world
from network_world import Machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not os.path.isdir("/etc/cni"), reason="ctr looks into /etc/cni, which is not there to be covered"
    ),
    pytest.mark.skipif(not shutil.which("containerd") or not shutil.which("ctr"), reason="containerd is not installed"),
]

CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "ours",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br-ctr",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.64.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ],
}


@contextmanager
def containerd(folder: Path) -> Iterator[str]:
    """A containerd of our own, without CRI; its socket."""
    socket = f"{folder}/containerd.sock"
    (folder / "config.toml").write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/run"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n'
    )
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(["containerd", "-c", str(folder / "config.toml")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while subprocess.run(["ctr", "-a", socket, "version"], capture_output=True, check=False).returncode:
            assert time.monotonic() < until, (folder / "log").read_text()
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield socket
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with network_world.machine() as made:
        yield made


def test_ctr_run_cni(machine: Machine, tmp_path: Path) -> None:
    plugins = network_world.executables(tmp_path)
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/10-ours.conflist").write_text(json.dumps(CONFLIST))
    root = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    other = machine.neighbour()
    # ctr knows only the usual places: in a mount namespace of its own they are ours.
    places = (
        f"mount -t tmpfs tmpfs /etc/cni && mkdir /etc/cni/net.d && mount --bind {tmp_path}/net.d /etc/cni/net.d && "
        "mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && "
        f"mount --bind {plugins} /opt/cni/bin"
    )
    script = (
        "/bin/busybox ip -o -4 addr show eth0; /bin/busybox ip route; "
        "/bin/busybox nc -w 5 192.168.77.2 80 < /dev/null; echo"
    )
    with containerd(tmp_path) as socket, other.serve(80):
        # Without a path of ctr's: runc leaves the parent that ctr would have it make.
        words = ["ctr", "-a", socket, "run", "--rm", "--cni", "--cgroup", "", "--rootfs", str(root), "one"]
        words += ["/bin/busybox", "sh", "-c", script]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f'{places} && exec "$@"', "sh", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "10.64.0.2/24" in done.stdout
    assert "default via 10.64.0.1" in done.stdout
    # The other host answers with the address that it saw: the machine's.
    assert "192.168.77.1" in done.stdout
    # DEL was called too: nothing is leased and no port is left on the bridge.
    assert [link["ifname"] for link in machine.ip("link show master br-ctr")] == []
    from sampan.network.state import State

    state = State(str(tmp_path / "executable-state"))
    assert state.owners() == set()
    state.close()

"""CRI servers on private directories and sockets: ``sampan daemon``, and containerd as the peer.

Both get the same CNI network and the same registry mirrors. ``stop`` ends the server only; what its pods were is for
the caller to have removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from debian import BIN, WORK

ROOT = WORK.parent
PLUGINS = "/usr/lib/cni"
#: How many times longer than a real machine's an emulated one's programs may take to come up.
SLOWNESS = int(os.environ.get("MACHINE_SLOWNESS", "1"))

CONTAINERD_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
                    "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{socket}"
[debug]
  level = "info"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{mirrors}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
"""

#: The places that containerd 2 moved these settings to.
CONTAINERD_2_CONFIG = """\
version = 3
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{socket}"
[debug]
  level = "info"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:3.9"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{mirrors}"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"""

SAMPAN_CONFIG = """\
root = "{folder}/root"
state = "{folder}/state"
socket = "{socket}"

[network]
conf_dir = "{folder}/cni"

[registry]
config_path = ["{mirrors}"]
"""


def write_network(folder: Path, bridge: str, subnet: str) -> None:
    """Writes the one CNI network of a server: bridge, host-local addresses, host ports."""
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge_plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": True,
        "promiscMode": True,
        "ipam": {**addresses, "dataDir": str(folder.parent / "ipam")},
    }
    plugins = [bridge_plugin, {"type": "portmap", "capabilities": {"portMappings": True}}]
    document = {"cniVersion": "0.4.0", "name": bridge, "plugins": plugins}
    (folder / "10-network.conflist").write_text(json.dumps(document, indent=2))


def discard(folder: Path) -> None:
    """Removes a directory; what is mounted below it is unmounted first, never emptied."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split()[4] for line in file]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", point], capture_output=True, check=True)
    shutil.rmtree(folder, ignore_errors=True)


def own_network(name: str) -> tuple[str, str]:
    """A bridge and a subnet for this process's server, so that two runs on one machine do not share them."""
    number = os.getpid()
    return f"{name}{number % 100000}", f"10.{100 + number // 250 % 100}.{number % 250}.0/24"


def nft_tables() -> set[str]:
    """Names of the nftables tables, with their families."""
    result = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return {line.removeprefix("table ") for line in result.stdout.splitlines()}


class Server:
    """A CRI server process; a context manager. Subclasses say what to run."""

    name = ""

    def __init__(self, folder: Path, mirrors: Path, *, bridge: str, subnet: str) -> None:
        self.folder = folder
        self.mirrors = mirrors
        self.bridge = bridge
        self.socket = folder / "cri.sock"
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        write_network(folder / "cni", bridge, subnet)

    @property
    def endpoint(self) -> str:
        """The socket as gRPC and critest name it."""
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        """The server's command line; writes its configuration."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The server's environment."""
        return {"PATH": f"{BIN}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "HOME": str(self.folder)}

    def start(self) -> None:
        """Starts the server and waits until its socket accepts."""
        command = self.command()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(), cwd=self.folder
            )
        deadline = time.monotonic() + 30 * SLOWNESS
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.stop()
                raise OSError(f"{self.name} did not come up on {self.socket}:\n{tail}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends the server; idempotent."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def clean(self) -> None:
        """Takes away what a network leaves by design (the bridge outlives its pods), and the server's directory."""
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        discard(self.folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.socket))
            except OSError:
                return False
        return True


class Sampan(Server):
    """``sampan daemon``."""

    name = "sampan"

    def command(self) -> list[str]:
        """Runs the command of the environment that runs us."""
        config = self.folder / "config.toml"
        config.write_text(SAMPAN_CONFIG.format(folder=self.folder, socket=self.socket, mirrors=self.mirrors))
        return [os.path.join(os.path.dirname(sys.executable), "sampan"), "--config", str(config), "daemon"]


class Containerd(Server):
    """containerd with runc: Debian's, or those of a folder with newer ones."""

    name = "containerd"

    def __init__(self, folder: Path, mirrors: Path, *, bridge: str, subnet: str) -> None:
        super().__init__(folder, mirrors, bridge=bridge, subnet=subnet)
        self.programs: Path | None = None
        self.runc = shutil.which("runc", path=os.environ.get("PATH", "") + ":/usr/sbin") or "runc"
        self._tables = nft_tables()

    def clean(self) -> None:
        """Takes away also the tables that the CNI plugins made for iptables, when there were none before."""
        super().clean()
        for table in nft_tables() - self._tables:
            subprocess.run(["nft", "delete", "table", *table.split()], capture_output=True, check=False)

    def use_programs(self, folder: Path, runc: str) -> None:
        """Takes containerd 2 and its shim from a folder, and this runc."""
        self.programs = folder
        self.runc = runc

    def command(self) -> list[str]:
        """containerd finds its shim on PATH."""
        config = self.folder / "config.toml"
        template = CONTAINERD_2_CONFIG if self.programs else CONTAINERD_CONFIG
        config.write_text(
            template.format(
                folder=self.folder, socket=self.socket, plugins=PLUGINS, mirrors=self.mirrors, runc=self.runc
            )
        )
        program = shutil.which("containerd", path=self.environment()["PATH"])
        if program is None:
            raise OSError("there is no containerd; run scripts/setup bench")
        return [program, "--config", str(config)]

    def environment(self) -> dict[str, str]:
        """With the newer programs first."""
        found = super().environment()
        if self.programs:
            found["PATH"] = f"{self.programs}:{found['PATH']}"
        return found

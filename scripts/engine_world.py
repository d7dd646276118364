"""A world of one engine for tests: private root, state and network configuration, and an image of busybox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import oci_image
import test_images

from sampan.engine.config import EngineConfig, HandlerConfig
from sampan.engine.engine import Engine
from sampan.registry.server import RegistryServer

BRIDGE = "spntest0"
SUBNET = "10.203.7.0/24"


class World:
    """Paths, an image in a registry of our own, and ways to work on them."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.image = image
        self.config_file = folder / "config.toml"
        (folder / "cni").mkdir()
        (folder / "cni/10-test.conflist").write_text(json.dumps(_conflist()))
        self.config_file.write_text(
            f'root = "{folder}/root"\nstate = "{folder}/state"\n'
            f'[network]\nconf_dir = "{folder}/cni"\n[runtimes.sampan]\n'
            '[runtimes.runc]\ntype = "external"\nbinary = "/usr/sbin/runc"\n'
        )

    def engine(self, namespace: str = "default") -> Engine:
        """A fresh engine on this world, without a zygote, as a command line has it."""
        config = EngineConfig(
            root=f"{self.folder}/root",
            state=f"{self.folder}/state",
            cni_conf_dir=f"{self.folder}/cni",
            log_root=f"{self.folder}/logs",
            handlers={
                "sampan": HandlerConfig(),
                "runc": HandlerConfig(type="external", binary="/usr/sbin/runc"),
            },
        )
        return Engine(config, namespace=namespace)

    def command(self, *words: str) -> list[str]:
        """The command line `sampan WORDS` on this world."""
        program = Path(sys.executable).with_name("sampan")
        return [str(program), "--config", str(self.config_file), *words]

    def sampan(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            self.command(*words),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )

    def remove_everything(self) -> None:
        """Remove every pod of every namespace."""
        for namespace in ("default", "k8s.io"):
            engine = self.engine(namespace)
            for record in engine.pod_records.list():
                engine.pods.discard(record) if record.state == "creating" else engine.pods.remove(record.id)
            engine.tidy()
            engine.close()
        subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)

    def mounts(self) -> list[str]:
        """Mounts below this world."""
        with open("/proc/self/mountinfo") as table:
            return [point for line in table if (point := line.split()[4]).startswith(str(self.folder))]


def _conflist() -> dict[str, object]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "test", "plugins": [bridge, portmap]}


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world with the image pulled; all of it is gone at the end."""
    os.chmod(folder, 0o711)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o111)
    image = test_images.busybox_image(Path("/bin/busybox"))
    server = RegistryServer(str(folder / "registry"))
    server.start()
    host = server.address.removeprefix("http://")
    try:
        oci_image.push(image, f"http://{host}", "test/busybox", "1")
        made = World(folder, f"{host}/test/busybox:1")
        with_image = made.engine()
        with_image.images.pull(made.image)
        with_image.close()
        in_kubernetes = made.engine("k8s.io")
        in_kubernetes.images.pull(made.image)
        in_kubernetes.close()
        try:
            yield made
        finally:
            made.remove_everything()
    finally:
        server.close()

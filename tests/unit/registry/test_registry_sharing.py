"""Two processes that want the same layers: one downloads, the other waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from registry_peers import Fault, FaultRegistry, noise_image
from sampan.registry import Event, Resolver, pull
from sampan.storage.store import Store

_PULL = """
import sys
from sampan.registry import Resolver, pull
from sampan.storage.store import Store
with Store(sys.argv[1]) as store:
    pull(store, "other", sys.argv[2], Resolver((), ()), unpack=False)
"""


def test_pulls_of_two_processes_share_one_download(tmp_path: Path) -> None:
    image = noise_image(2)
    with FaultRegistry(str(tmp_path / "registry")) as registry, Store(str(tmp_path / "store")) as store:
        image.put_into(registry.tree, "a", "1")
        image.put_into(registry.tree, "b", "1")
        host = registry.address.removeprefix("http://")
        for layer in image.layers:
            registry.faults.append(Fault("gate", where=f"/a/blobs/{layer.digest}"))
        command = [sys.executable, "-c", _PULL, str(tmp_path / "store"), f"{host}/a:1"]
        other = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            for layer in image.layers:  # the other process is at both
                while not registry.seen("GET", f"/a/blobs/{layer.digest}"):
                    assert other.poll() is None
                    registry.released.wait(0.01)

            def told(event: Event) -> None:
                if event.kind == "waiting":
                    registry.released.set()

            pulled = pull(store, "default", f"{host}/b:1", Resolver((), ()), unpack=False, progress=told)
            assert other.wait(60) == 0
        finally:
            registry.released.set()
            other.kill()
            other.communicate()
        for layer in image.layers:
            assert len(registry.seen("GET", layer.digest)) == 1
        assert store.images("default").get(pulled.name).target == image.target
        assert store.images("other").get(f"{host}/a:1").target == image.target

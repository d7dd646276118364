"""A 10 GB layer is pulled and unpacked in under 100 MB of memory, all processes together."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sampan.registry.server import Handler, RegistryServer
from sampan.spec.image import MT_OCI_CONFIG, MT_OCI_LAYER_GZIP, MT_OCI_MANIFEST, Descriptor, describe

pytestmark = pytest.mark.root

_FILE = 1 << 30
_FILES = 10
_BUDGET = 100 << 20


class Layer:
    """A layer of large files that is nowhere: a block of some 20:1, compressed once and sent again and again."""

    def __init__(self) -> None:
        noise = hashlib.shake_128(b"noise").digest(48 << 10)
        self._plain = noise + bytes((1 << 20) - len(noise))
        self._packed = gzip.compress(self._plain, 1, mtime=0)
        packed, plain, self.size = hashlib.sha256(), hashlib.sha256(), 0
        for compressed, expanded in self._pieces():
            packed.update(compressed)
            plain.update(expanded)
            self.size += len(compressed)
        self.digest, self.diff_id = f"sha256:{packed.hexdigest()}", f"sha256:{plain.hexdigest()}"

    def _pieces(self) -> Iterator[tuple[bytes, bytes]]:
        for number in range(_FILES):
            info = tarfile.TarInfo(f"large{number}")
            info.size = _FILE
            header = info.tobuf(tarfile.USTAR_FORMAT)
            yield gzip.compress(header, 1, mtime=0), header
            for _ in range(_FILE // len(self._plain)):
                yield self._packed, self._plain
        yield gzip.compress(bytes(1024), 1, mtime=0), bytes(1024)

    def chunks(self) -> Iterator[bytes]:
        for compressed, _ in self._pieces():
            yield compressed


class LargeRegistry(RegistryServer):
    """Serves the layer as blob of any repository."""

    def __init__(self, root: str, layer: Layer) -> None:
        super().__init__(root, intercept=self._give)
        self.layer = layer

    def _give(self, handler: Handler) -> bool:
        if not handler.path.endswith(self.layer.digest):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(self.layer.size))
        handler.end_headers()
        if handler.command == "GET":
            for piece in self.layer.chunks():
                handler.wfile.write(piece)
        return True


#: Pulls, and prints the most memory (PSS) that it and the processes below it had at a time.
_PULL = """
import os, sys, threading
from sampan.registry import Resolver, pull
from sampan.storage.store import Store

def pss(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0

def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = [int(child) for child in file.read().split()]
    except OSError:
        return []
    return found + [below for child in found for below in children(child)]

def tree():
    pids = {os.getpid()}
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                pids |= {int(child) for child in file.read().split()}
        except OSError:
            pass
    return pids | {below for pid in list(pids) for below in children(pid)}

most, done = 0, threading.Event()

def watch():
    global most
    while not done.wait(0.05):
        most = max(most, sum(map(pss, tree())))

watcher = threading.Thread(target=watch)
watcher.start()
try:
    with Store(sys.argv[1]) as store:
        pulled = pull(store, "default", sys.argv[2], Resolver((), ()))
        print(pulled.snapshot)
        used = store.snapshots.usage(pulled.snapshot)
finally:
    done.set()
    watcher.join()
print(used.bytes)
print(most)
"""


@pytest.mark.big
@pytest.mark.timeout(1800)
def test_a_layer_of_ten_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    layer = Layer()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
    ).encode()
    described = describe(config, MT_OCI_CONFIG)
    blob = Descriptor(media_type=MT_OCI_LAYER_GZIP, digest=layer.digest, size=layer.size)
    manifest = msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": MT_OCI_MANIFEST, "config": described, "layers": [blob]}
    )
    with LargeRegistry(str(tmp_path / "registry"), layer) as registry:
        upload = registry.tree.start_upload()
        registry.tree.append(upload, [config])
        registry.tree.finish_upload("large", upload, described.digest)
        registry.tree.link_blob("large", layer.digest)
        registry.tree.put_manifest("large", "1", manifest, MT_OCI_MANIFEST)
        name = registry.address.removeprefix("http://") + "/large:1"
        command = [sys.executable, "-c", _PULL, str(tmp_path / "root"), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": "/"})
    assert done.returncode == 0, done.stderr
    snapshot, used, most = done.stdout.split()
    print(f"layer of {used} bytes, {layer.size} compressed: {int(most) / (1 << 20):.1f} MiB of memory at most")
    assert snapshot == layer.diff_id
    assert int(used) >= _FILE * _FILES
    assert int(most) < _BUDGET

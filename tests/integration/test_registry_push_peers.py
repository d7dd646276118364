"""Pushes to Debian's docker-registry, read back by skopeo; skopeo against our own registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from registry_peers import busybox_image, docker_registry, noise_image
from sampan.errors import NotFound
from sampan.registry import Event, Limits, Resolver, pull, push
from sampan.registry.server import RegistryServer
from sampan.storage.store import Store

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo"),
]

LIMITS = Limits(backoff=0.01, attempts=2)
INSECURE = ["--insecure-policy", "copy", "--quiet"]


def skopeo(*arguments: str) -> str:
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("chunk", [32 << 20, 70_000])
def test_skopeo_reads_what_we_push(tmp_path: Path, chunk: int) -> None:
    image = noise_image()
    resolver = Resolver((), (), LIMITS)
    with Store(str(tmp_path / "store")) as store, docker_registry(tmp_path / "registry") as address:
        for data in image.blobs.values():
            store.content.put(data)
        name = f"{address}/team/noise:1"
        store.images("default").put(name, image.target)
        events: list[Event] = []
        assert push(store, "default", name, resolver, chunk=chunk, progress=events.append) == image.target
        assert [event.kind for event in events].count("uploaded") == 4
        folder = tmp_path / "copied"
        skopeo(*INSECURE, "--src-tls-verify=false", f"docker://{name}", f"dir:{folder}")
        assert (folder / "manifest.json").read_bytes() == image.blobs[image.target.digest]
        for layer in image.layers:
            assert (folder / layer.digest.partition(":")[2]).read_bytes() == image.blobs[layer.digest]
        # To another repository of the same registry: mounted, nothing sent.
        events.clear()
        push(store, "default", name, resolver, reference=f"{address}/other:2", progress=events.append)
        assert {event.kind for event in events} == {"mounted", "done"}
        repository = resolver.repository(f"{address}/other:2")
        assert repository.tags() == ["2"]
        assert sorted(resolver.registry(address).catalog()) == ["other", "team/noise"]
        repository.delete(image.target.digest)
        with pytest.raises(NotFound):
            repository.resolve()
        assert repository.referrers(image.target.digest) == []


def test_skopeo_against_our_registry(tmp_path: Path) -> None:
    layout = busybox_image().write_layout(tmp_path / "layout")
    with RegistryServer(str(tmp_path / "registry"), users={"me": "secret"}) as registry:
        there = f"docker://{registry.address}/a/busybox:1"
        open_source = ["--src-tls-verify=false", "--src-creds", "me:secret"]
        skopeo(*INSECURE, "--dest-tls-verify=false", "--dest-creds", "me:secret", f"oci:{layout}:latest", there)
        skopeo(*INSECURE, *open_source, there, f"oci:{tmp_path}/back:x")
        listed = skopeo("list-tags", "--tls-verify=false", "--creds", "me:secret", there.rsplit(":", 1)[0])
        assert json.loads(listed)["Tags"] == ["1"]
        skopeo("delete", "--tls-verify=false", "--creds", "me:secret", there)
        assert registry.tree.tags("a/busybox") == []
    blobs = {path.name for path in (tmp_path / "back/blobs/sha256").iterdir()}
    assert blobs >= {path.name for path in (layout / "blobs/sha256").iterdir()}


def test_what_skopeo_pushed_is_pulled_and_pushed_on(tmp_path: Path) -> None:
    layout = busybox_image().write_layout(tmp_path / "layout")
    resolver = Resolver((), (), LIMITS)
    with (
        Store(str(tmp_path / "store")) as store,
        docker_registry(tmp_path / "one") as one,
        RegistryServer(str(tmp_path / "two")) as two,
    ):
        docker_format = ["--format", "v2s2", "--dest-tls-verify=false"]
        skopeo(*INSECURE, *docker_format, f"oci:{layout}:latest", f"docker://{one}/x:1")
        pulled = pull(store, "default", f"{one}/x:1", resolver)
        push(store, "default", pulled.name, resolver, reference=f"{two.address}/y:2")
        assert two.tree.manifest("y", "2")[0] == pulled.target.digest

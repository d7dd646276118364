"""Pulls with unpacking from Debian's docker-registry, filled by skopeo; over HTTP, TLS and with a password."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import (
    Fault,
    FaultRegistry,
    busybox_image,
    check_busybox,
    docker_registry,
    make_certificates,
    noise_image,
    write_hosts,
)
from sampan.errors import Corrupt, SampanError, Unauthenticated, Unavailable
from sampan.registry import Credentials, Event, Limits, Resolver, pull
from sampan.registry.login import login, logout
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo"),
]

LIMITS = Limits(backoff=0.01, attempts=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store")) as opened:
        yield opened


def skopeo_push(tmp_path: Path, address: str, name: str, *options: str) -> None:
    layout = busybox_image().write_layout(tmp_path / "layout")
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy", *options, f"oci:{layout}:latest"]
    subprocess.run([*copy, f"docker://{address}/{name}"], check=True, capture_output=True)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_an_image_is_pulled_and_unpacked(tmp_path: Path, store: Store, form: str) -> None:
    events: list[Event] = []
    with docker_registry(tmp_path / "registry") as address:
        skopeo_push(tmp_path, address, "a/busybox:1", "--dest-tls-verify=false", "--format", form)
        resolver = Resolver((), (), LIMITS)
        pulled = pull(store, "default", f"{address}/a/busybox:1", resolver, progress=events.append)
    check_busybox(store, pulled.snapshot, tmp_path)
    assert store.images("default").get(pulled.name).target == pulled.target
    assert [event.kind for event in events][-2:] == ["unpacked", "done"]


def test_over_tls_with_own_ca_and_password(tmp_path: Path, store: Store) -> None:
    ca, certificate, key = make_certificates(tmp_path / "tls")
    auth = tmp_path / "auth.json"
    with docker_registry(tmp_path / "registry", htpasswd=True, certificate=(certificate, key)) as address:
        skopeo_push(tmp_path, address, "x:1", "--dest-tls-verify=false", "--dest-creds", "user:secret")
        name = f"{address}/x:1"
        certs = tmp_path / "certs.d"
        write_hosts(certs, address, f'server = "https://{address}"\n')
        resolver = Resolver((str(certs),), (str(auth),), LIMITS)
        with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED.*name its CA in hosts\.toml"):
            pull(store, "default", name, resolver)
        write_hosts(certs, address, f'server = "https://{address}"\nca = "{ca}"\n')
        with pytest.raises(Unauthenticated, match=r"401 Unauthorized as anonymous \(log in with `sampan login"):
            pull(store, "default", name, resolver)
        with pytest.raises(Unauthenticated, match="401 Unauthorized as user user"):
            pull(store, "default", name, resolver, credentials=Credentials("user", "wrong"))
        with pytest.raises(Unauthenticated):
            login(resolver, address, "user", "wrong", file=str(auth))
        assert not auth.exists()
        login(resolver, address, "user", "secret", file=str(auth))
        assert auth.stat().st_mode & 0o777 == 0o600
        pulled = pull(store, "default", name, resolver)
        assert logout(address, file=str(auth))
        assert not logout(address, file=str(auth))
        with pytest.raises(Unauthenticated):
            pull(store, "default", name, resolver)
        assert "secret" not in auth.read_text()
    check_busybox(store, pulled.snapshot, tmp_path)


FAULTS = [
    (Fault("flip", times=-1), Corrupt),
    (Fault("truncate", value=1000), Unavailable),
    (Fault("reset", value=1000), Unavailable),
    (Fault("status", value=500), Unavailable),
    (Fault("ignore_range"), None),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=lambda value: getattr(value, "kind", None))
def test_nothing_of_a_failed_pull_is_visible(
    tmp_path: Path, store: Store, fault: Fault, kind: type[SampanError] | None
) -> None:
    """The configuration comes well, so that layers are being applied when they fail."""
    image = noise_image(layers=3)
    with FaultRegistry(str(tmp_path / "registry")) as registry:
        image.put_into(registry.tree, "x", "1")
        fault.where = image.layers[1].digest
        registry.faults = [fault]
        resolver = Resolver((), (), LIMITS)
        if kind is not None:
            with pytest.raises(kind):
                pull(store, "default", f"{registry.address}/x:1", resolver)
            assert store.images("default").list() == []
            assert list(store.snapshots.walk()) == []
            registry.faults = []
        pulled = pull(store, "default", f"{registry.address}/x:1", resolver)
    assert store.snapshots.stat(pulled.snapshot)
    assert len(list(store.snapshots.walk())) == 3


def check_noise(store: Store, snapshot: str, folder: Path) -> None:
    target = folder / "mnt"
    target.mkdir()
    attach(store.snapshots.view("look", snapshot), str(target))
    try:
        for number in range(3):
            expected = hashlib.shake_128(str(number).encode()).digest(300_000)
            assert (target / f"noise{number}").read_bytes() == expected
    finally:
        detach(str(target))
        store.snapshots.remove("look")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_layer_that_a_mirror_damages_is_unpacked_from_the_server(tmp_path: Path, store: Store, number: int) -> None:
    image = noise_image(layers=3)
    mirror = FaultRegistry(str(tmp_path / "mirror"))
    with FaultRegistry(str(tmp_path / "registry")) as registry, mirror:
        for server in (registry, mirror):
            image.put_into(server.tree, "x", "1")
        mirror.faults = [Fault("flip", where=image.layers[number].digest)]
        text = f'server = "http://{registry.address}"\n[host."http://{mirror.address}"]\n'
        resolver = Resolver((str(write_hosts(tmp_path / "certs.d", "_default", text)),), (), LIMITS)
        pulled = pull(store, "default", "example.com/x:1", resolver)
        assert registry.seen("GET", "/blobs/") == [f"/v2/x/blobs/{image.layers[number].digest}"]
    check_noise(store, pulled.snapshot, tmp_path)
    assert len(os.listdir(store.snapshots.root)) == 1 + 3, "the lock, and no stage that was given up"


def test_a_layer_whose_first_part_was_left_damaged_is_unpacked(tmp_path: Path, store: Store) -> None:
    """What an earlier attempt left is gone on with, found to be bad, and fetched from the first byte."""
    image = noise_image(layers=3)
    with store.content.writer(image.layers[1]) as writer:
        writer.write(b"\x1f\x8b\x08" + b"\xff" * 997)
    with FaultRegistry(str(tmp_path / "registry")) as registry:
        image.put_into(registry.tree, "x", "1")
        pulled = pull(store, "default", f"{registry.address}/x:1", Resolver((), (), LIMITS))
        assert len(registry.seen("GET", image.layers[1].digest)) == 2
    check_noise(store, pulled.snapshot, tmp_path)


def test_an_image_whose_layer_is_not_what_its_config_says(tmp_path: Path, store: Store) -> None:
    image, other = busybox_image(), noise_image()
    assert image.config is not None
    assert other.config is not None
    # The layers of one image under the configuration of another: digests are right, diff IDs are not.
    text = image.blobs[image.target.digest].decode()
    mixed = text.replace(image.config.digest, other.config.digest).replace(
        f'"size": {image.config.size}', f'"size": {other.config.size}'
    )
    with FaultRegistry(str(tmp_path / "registry")) as registry:
        image.put_into(registry.tree, "x", "1")
        other.put_into(registry.tree, "x", "2")
        registry.tree.put_manifest("x", "3", mixed.encode(), image.target.media_type)
        with pytest.raises(Corrupt):
            pull(store, "default", f"{registry.address}/x:3", Resolver((), (), LIMITS))
    assert store.images("default").list() == []
    assert list(store.snapshots.walk()) == []

"""Pushes to our own registry, with and without faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import Fault, FaultRegistry, Image, make_image, make_index, noise_image
from sampan.errors import Denied, InvalidInput, NotFound, SampanError, Unavailable
from sampan.registry import Event, Limits, Resolver, pull, push
from sampan.storage.store import Store

LIMITS = Limits(backoff=0.01, backoff_limit=0.02, attempts=3, read=1.0, document=2.0)
ALL = ("GET", "HEAD", "POST", "PATCH", "PUT")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store"), snapshotter="native") as opened:
        yield opened


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultRegistry]:
    with FaultRegistry(str(tmp_path / "registry")) as server:
        yield server


@pytest.fixture
def resolver() -> Resolver:
    return Resolver(hosts_dirs=(), auth_files=(), limits=LIMITS)


def put(store: Store, image: Image, name: str) -> str:
    for digest, data in image.blobs.items():
        assert store.content.put(data).digest == digest
    store.images("default").put(name, image.target)
    return name


def held(registry: FaultRegistry, name: str, tag: str, image: Image) -> bool:
    digest, media_type, data = registry.tree.manifest(name, tag)
    same = (digest, media_type, data) == (
        image.target.digest,
        image.target.media_type,
        image.blobs[image.target.digest],
    )
    known = {one.digest for one in image.manifests}
    return same and all(
        Path(registry.tree.blob_path(blob)).read_bytes() == content
        for blob, content in image.blobs.items()
        if blob in known or registry.tree.has_blob(name, blob)
    )


@pytest.mark.parametrize("chunk", [32 << 20, 100_000])
def test_what_is_pushed_is_what_is_stored(
    store: Store, registry: FaultRegistry, resolver: Resolver, chunk: int
) -> None:
    image = noise_image()
    name = put(store, image, f"{registry.address}/a/b:1")
    events: list[Event] = []
    stop = threading.Event()
    assert push(store, "default", name, resolver, progress=events.append, stop=stop, chunk=chunk) == image.target
    assert not stop.is_set()
    assert held(registry, "a/b", "1", image)
    assert bool(registry.seen("PATCH", "/uploads/")) == (chunk == 100_000)
    assert [event.kind for event in events].count("uploaded") == 4
    # Once more: nothing but questions, and the manifest.
    registry.requests.clear()
    push(store, "default", name, resolver)
    assert {method for method, _, _ in registry.requests} == {"HEAD", "PUT"}


def test_an_index_goes_with_all_its_images(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    one, two = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="arm64")
    index = make_index({"linux/amd64": one, "linux/arm64": two})
    name = put(store, index, f"{registry.address}/m:1")
    push(store, "default", name, resolver)
    assert held(registry, "m", "1", index)
    alone = push(store, "default", name, resolver, reference=f"{registry.address}/m:arm", platform="linux/arm64")
    assert alone.digest == two.target.digest
    assert held(registry, "m", "arm", two)


def test_an_index_of_which_a_part_was_pulled(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    one, two = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="arm64")
    make_index({"linux/amd64": one, "linux/arm64": two}).put_into(registry.tree, "m", "1")
    name = f"{registry.address}/m:1"
    pull(store, "default", name, resolver, platform="linux/amd64", unpack=False)
    with pytest.raises(NotFound, match="only one platform of the index"):
        push(store, "default", name, resolver, reference=f"{registry.address}/n:1")
    push(store, "default", name, resolver, reference=f"{registry.address}/n:1", platform="linux/amd64")
    assert held(registry, "n", "1", one)


def test_a_blob_of_another_repository_is_mounted(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    image = noise_image()
    image.put_into(registry.tree, "from", "1")
    pull(store, "default", f"{registry.address}/from:1", resolver, unpack=False)
    events: list[Event] = []
    there = f"{registry.address}/to:1"
    push(store, "default", f"{registry.address}/from:1", resolver, reference=there, progress=events.append)
    kinds = [event.kind for event in events]
    assert kinds.count("mounted") == 4
    assert "uploaded" not in kinds
    assert held(registry, "to", "1", image)


def test_a_mount_that_is_not_granted_is_uploaded(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    image = noise_image()
    image.put_into(registry.tree, "from", "1")
    pull(store, "default", f"{registry.address}/from:1", resolver, unpack=False)
    registry.faults.append(Fault("status", "mount=", methods=("POST",), value=403))
    push(store, "default", f"{registry.address}/from:1", resolver, reference=f"{registry.address}/to:1")
    assert held(registry, "to", "1", image)


@pytest.mark.parametrize("chunk", [32 << 20, 100_000])
def test_a_broken_upload_goes_on(store: Store, registry: FaultRegistry, resolver: Resolver, chunk: int) -> None:
    image = noise_image(layers=1)
    name = put(store, image, f"{registry.address}/a:1")
    verb = "PUT" if chunk > 1_000_000 else "PATCH"
    registry.faults.append(Fault("status", "/uploads/", times=2, methods=(verb,), value=503))
    push(store, "default", name, resolver, chunk=chunk)
    assert held(registry, "a", "1", image)


@pytest.mark.parametrize(
    ("fault", "kind", "cause"),
    [
        (Fault("status", "/uploads/", methods=ALL, value=500), Unavailable, "500: FAULT: ordered"),
        (Fault("status", "/uploads/", methods=ALL, value=403), Denied, "403"),
        (Fault("status", "/manifests/", methods=("PUT",), value=400), InvalidInput, "400: FAULT"),
        (Fault("status", "/uploads/", methods=("POST",), value=202), Unavailable, "without the upload's address"),
        (Fault("status", "/uploads/", methods=("POST",), value=429), Unavailable, "429"),
    ],
    ids=["500", "403", "manifest", "no-location", "429"],
)
def test_a_failed_push_leaves_no_tag(
    store: Store, registry: FaultRegistry, resolver: Resolver, fault: Fault, kind: type[SampanError], cause: str
) -> None:
    name = put(store, noise_image(), f"{registry.address}/a:1")
    registry.faults.append(fault)
    with pytest.raises(kind, match=cause) as caught:
        push(store, "default", name, resolver)
    assert registry.address in str(caught.value)
    with pytest.raises(NotFound):
        registry.tree.manifest("a", "1")


def test_what_is_not_there_is_not_pushed(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    with pytest.raises(NotFound, match="not in namespace default"):
        push(store, "default", f"{registry.address}/a:1", resolver)
    assert not registry.requests

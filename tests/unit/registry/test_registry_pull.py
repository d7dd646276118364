"""Pulls without root: content and names, not snapshots; against our own registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import Fault, FaultRegistry, Image, make_image, make_index, noise_image, write_hosts
from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError, TimedOut, Unauthenticated, Unavailable
from sampan.registry import Event, Limits, Resolver, pull
from sampan.storage.store import Store

LIMITS = Limits(backoff=0.01, backoff_limit=0.02, attempts=3, read=1.0, document=2.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store"), snapshotter="native") as opened:
        yield opened


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultRegistry]:
    with FaultRegistry(str(tmp_path / "registry")) as server:
        yield server


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver(hosts_dirs=(), auth_files=(), limits=LIMITS)
    yield made
    made.close()


@pytest.fixture
def image(registry: FaultRegistry) -> Image:
    made = noise_image()
    made.put_into(registry.tree, "some/image", "1")
    return made


def fetch(
    store: Store, registry: FaultRegistry, resolver: Resolver, name: str = "some/image:1", **options: object
) -> None:
    pull(store, "default", f"{registry.address}/{name}", resolver, unpack=False, **options)  # type: ignore[arg-type]


def names(store: Store) -> list[str]:
    return [entry.name for entry in store.images("default").list()]


def whole(store: Store, image: Image) -> bool:
    return all(store.content.read(digest, 1 << 30) == data for digest, data in image.blobs.items())


def test_a_pull_stores_all_content_and_the_name(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    events: list[Event] = []
    pulled = pull(store, "default", f"{registry.address}/some/image:1", resolver, unpack=False, progress=events.append)
    assert pulled.name == f"{registry.address}/some/image:1"
    assert pulled.target == pulled.manifest == image.target
    assert image.config is not None
    assert pulled.config == image.config.digest
    assert pulled.size == image.config.size + sum(layer.size for layer in image.layers)
    assert names(store) == [pulled.name]
    assert whole(store, image)
    kinds = [event.kind for event in events]
    assert kinds[0] == "resolving"
    assert kinds[-1] == "done"
    assert {event.digest for event in events if event.kind == "downloaded"} >= {one.digest for one in image.layers}


def test_a_second_pull_downloads_nothing(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    fetch(store, registry, resolver)
    registry.requests.clear()
    fetch(store, registry, resolver)
    assert [method for method, _, _ in registry.requests] == ["HEAD"]


def test_a_pull_by_digest_has_the_digest_in_its_name(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    fetch(store, registry, resolver, f"some/image:other@{image.target.digest}")
    assert names(store) == [f"{registry.address}/some/image@{image.target.digest}"]


def test_of_an_index_the_platform_is_pulled(store: Store, registry: FaultRegistry, resolver: Resolver) -> None:
    one, other = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="arm64")
    index = make_index({"linux/amd64": one, "linux/arm64": other})
    index.put_into(registry.tree, "multi", "1")
    pulled = pull(store, "default", f"{registry.address}/multi:1", resolver, platform="linux/arm64", unpack=False)
    assert pulled.target.digest == index.target.digest
    assert pulled.manifest.digest == other.target.digest
    assert whole(store, other)
    assert not store.content.exists(one.target.digest)
    with pytest.raises(NotFound, match=r"no image for linux/s390x .* linux/amd64, linux/arm64"):
        fetch(store, registry, resolver, "multi:1", platform="linux/s390x")


def test_two_pulls_share_one_download(store: Store, registry: FaultRegistry, resolver: Resolver, image: Image) -> None:
    registry.faults.append(Fault("gate"))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fetch(store, registry, resolver)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    registry.released.set()
    for thread in threads:
        thread.join()
    assert not failures
    for digest in image.blobs:
        assert len(registry.seen("GET", digest)) <= 1
    assert whole(store, image)


FAULTS = [
    (Fault("truncate", value=100), Unavailable, "ended .* bytes early|ended after"),
    (Fault("short", value=10), Corrupt, "the manifest says"),
    (Fault("long", value=10), Corrupt, "more than the .* bytes"),
    (Fault("flip"), Corrupt, "have digest"),
    (Fault("reset", value=1000), Unavailable, "reset|broken"),
    (Fault("status", value=500), Unavailable, "500: FAULT: ordered"),
    (Fault("status", value=404), NotFound, "404"),
    (Fault("status", value=(429, {"Retry-After": "0"})), Unavailable, "429"),
    (Fault("status", value=(429, {"Retry-After": "3600"})), Unavailable, "pause of 3600 s"),
    (Fault("status", value=(401, {"WWW-Authenticate": 'Basic realm="x"'})), Unauthenticated, "401 .* as anonymous"),
    (Fault("status", value=401), Unauthenticated, "offering nothing"),
    (Fault("loop"), Unavailable, "redirects more than 5 times"),
    (Fault("redirect", value="ftp://127.0.0.1/"), Unavailable, "not an http or https address"),
    (Fault("hang"), TimedOut, "no answer in time"),
    (Fault("endless", "/manifests/"), Corrupt, "more than the 4194304 bytes"),
    (Fault("flip", "/manifests/"), Corrupt, "has digest"),
    (Fault("drip", "/manifests/", value=0.02), TimedOut, "not done within 2 s"),
    (Fault("status", "/manifests/", methods=("HEAD", "GET"), value=500), Unavailable, "500"),
    (Fault("status", "/manifests/", methods=("HEAD", "GET"), value=404), NotFound, "404"),
    (Fault("body", "/manifests/", methods=("HEAD", "GET"), value=("text/html", b"<html>")), Corrupt, "not JSON|digest"),
    (
        Fault("body", "/manifests/", methods=("HEAD", "GET"), value=("application/json", b"[" * 100_000)),
        Corrupt,
        "nested|digest|not JSON",
    ),
    (
        Fault(
            "body",
            "/manifests/",
            methods=("HEAD", "GET"),
            value=("application/json", b'{"schemaVersion":1,"fsLayers":[]}'),
        ),
        SampanError,
        "schema 1|digest",
    ),
]


@pytest.mark.parametrize(("fault", "kind", "cause"), FAULTS, ids=lambda value: getattr(value, "kind", None))
def test_a_bad_registry_leaves_nothing_and_is_named(
    store: Store,
    registry: FaultRegistry,
    resolver: Resolver,
    image: Image,
    fault: Fault,
    kind: type[SampanError],
    cause: str,
) -> None:
    registry.faults.append(fault)
    with pytest.raises(kind, match=cause) as caught:
        fetch(store, registry, resolver)
    assert registry.address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(store) == []
    registry.faults.clear()
    fetch(store, registry, resolver)
    assert whole(store, image)
    assert names(store) == [f"{registry.address}/some/image:1"]


def test_a_broken_download_goes_on_where_it_broke(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    digest = image.layers[0].digest
    registry.faults.append(Fault("truncate", digest, times=2, value=100_000))
    fetch(store, registry, resolver)
    ranges = [headers.get("range") for method, path, headers in registry.requests if digest in path and method == "GET"]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert whole(store, image)


def test_a_failed_pull_is_resumed_by_the_next(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    digest = image.layers[0].digest
    registry.faults += [Fault("truncate", digest, times=1, value=70_000), Fault("status", digest, value=500)]
    with pytest.raises(Unavailable):
        fetch(store, registry, resolver)
    registry.faults.clear()
    registry.requests.clear()
    fetch(store, registry, resolver)
    ranges = [headers.get("range") for _, path, headers in registry.requests if digest in path]
    assert ranges == ["bytes=70000-"]
    assert whole(store, image)


@pytest.mark.parametrize("kind", ["ignore_range", "flip"])
def test_a_host_that_resumes_wrongly_is_asked_for_the_whole(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image, kind: str
) -> None:
    digest = image.layers[0].digest
    registry.faults += [Fault("truncate", digest, times=1, value=70_000), Fault("status", digest, value=500)]
    with pytest.raises(Unavailable):
        fetch(store, registry, resolver)
    registry.faults[:] = [Fault(kind, digest, times=1)]
    fetch(store, registry, resolver)
    assert whole(store, image)


def test_a_wrong_range_is_told(store: Store, registry: FaultRegistry, resolver: Resolver, image: Image) -> None:
    digest = image.layers[0].digest
    registry.faults += [Fault("truncate", digest, times=1, value=70_000), Fault("wrong_range", digest)]
    with pytest.raises(Corrupt, match="asked from byte 70000, it sends 'bytes 0-"):
        fetch(store, registry, resolver)


def test_a_drip_is_too_slow(tmp_path: Path, store: Store, registry: FaultRegistry, image: Image) -> None:
    registry.faults.append(Fault("drip", value=0.01))
    slow = Resolver((), (), Limits(minimum_rate=100_000, rate_window=0.2, attempts=1, read=2.0))
    with pytest.raises(Unavailable, match=r"too slow: \d+ bytes in"):
        fetch(store, registry, slow)
    assert names(store) == []


def test_a_host_has_its_own_patience(tmp_path: Path, store: Store, registry: FaultRegistry, image: Image) -> None:
    registry.faults.append(Fault("drip", value=0.01))
    host = registry.address.removeprefix("http://")
    certs = write_hosts(tmp_path / "certs.d", host, f'server = "http://{host}"\nminimum_rate = 100000\n')
    with pytest.raises(Unavailable, match=r"too slow: .*100000 bytes a second"):
        fetch(store, registry, Resolver((str(certs),), (), Limits(rate_window=0.2, attempts=1)))
    registry.faults[:] = [Fault("hang")]
    write_hosts(certs, host, f'server = "http://{host}"\nread_timeout = "200ms"\n')
    with pytest.raises(TimedOut, match="no answer in time"):
        fetch(store, registry, Resolver((str(certs),), (), Limits(attempts=1)))
    assert names(store) == []


def test_passing_faults_are_retried(store: Store, registry: FaultRegistry, resolver: Resolver, image: Image) -> None:
    registry.faults += [
        Fault("status", "/manifests/", times=1, methods=("HEAD",), value=503),
        Fault("status", "/manifests/", times=1, value=(429, {"Retry-After": "0"})),
        Fault("reset", times=2, value=10),
    ]
    events: list[Event] = []
    fetch(store, registry, resolver, progress=events.append)
    assert whole(store, image)
    retried = [event for event in events if event.kind == "retrying"]
    assert len(retried) == 4
    assert all(event.host == registry.address for event in retried)


def test_a_registry_that_is_down(store: Store, resolver: Resolver, tmp_path: Path) -> None:
    with FaultRegistry(str(tmp_path / "gone")) as gone:
        address = gone.address
    with pytest.raises(Unavailable, match=rf"{address}: HEAD .*: Connection refused"):
        pull(store, "default", f"{address}/x", resolver, unpack=False)
    assert names(store) == []


def test_the_mirror_is_asked_first_and_the_server_after(
    tmp_path: Path, store: Store, registry: FaultRegistry, image: Image
) -> None:
    with FaultRegistry(str(tmp_path / "mirror")) as mirror:
        image.put_into(mirror.tree, "some/image", "1")
        hosts = write_hosts(
            tmp_path / "certs.d",
            "registry.k8s.io",
            f'server = "http://{registry.address}"\n'
            f'[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]\n',
        )
        resolver = Resolver((str(hosts),), (), LIMITS)
        pull(store, "k8s.io", "registry.k8s.io/some/image:1", resolver, unpack=False)
        assert not registry.requests
        assert all("ns=registry.k8s.io" in path for _, path, _ in mirror.requests)
        assert [entry.name for entry in store.images("k8s.io").list()] == ["registry.k8s.io/some/image:1"]
    other = noise_image(seed="other")
    other.put_into(registry.tree, "some/image", "2")
    pull(store, "k8s.io", "registry.k8s.io/some/image:2", resolver, unpack=False)
    assert not any("ns=" in path for _, path, _ in registry.requests)
    assert whole(store, other)


def test_a_mirror_that_may_not_resolve_is_asked_for_content_only(
    tmp_path: Path, store: Store, registry: FaultRegistry, image: Image
) -> None:
    with FaultRegistry(str(tmp_path / "mirror")) as mirror:
        image.put_into(mirror.tree, "some/image", "1")
        hosts = write_hosts(
            tmp_path / "certs.d",
            "_default",
            f'server = "http://{registry.address}"\n[host."http://{mirror.address}"]\ncapabilities = ["pull"]\n',
        )
        resolver = Resolver((str(hosts),), (), LIMITS)
        pull(store, "default", "example.com/some/image:1", resolver, unpack=False)
        assert registry.seen("HEAD", "/manifests/1")
        assert not registry.seen("GET", "/blobs/")
        assert not mirror.seen("HEAD", "/manifests/1")


def test_the_error_tells_what_each_host_said(tmp_path: Path, store: Store, registry: FaultRegistry) -> None:
    with FaultRegistry(str(tmp_path / "mirror")) as mirror:
        mirror.faults.append(Fault("status", "/", methods=("HEAD", "GET"), value=500))
        text = f'server = "http://{registry.address}"\n[host."http://{mirror.address}"]\n'
        resolver = Resolver((str(write_hosts(tmp_path / "certs.d", "_default", text)),), (), LIMITS)
        with pytest.raises(NotFound) as caught:
            pull(store, "default", "example.com/some/image:1", resolver, unpack=False)
    assert f"{mirror.address}: HEAD /v2/some/image/manifests/1: 500" in str(caught.value)
    assert f"{registry.address}: HEAD /v2/some/image/manifests/1: 404" in str(caught.value)


def test_a_bad_blob_of_a_mirror_comes_from_the_server(
    tmp_path: Path, store: Store, registry: FaultRegistry, image: Image
) -> None:
    with FaultRegistry(str(tmp_path / "mirror")) as mirror:
        image.put_into(mirror.tree, "some/image", "1")
        mirror.faults.append(Fault("flip", image.layers[1].digest))
        text = f'server = "http://{registry.address}"\n[host."http://{mirror.address}"]\n'
        resolver = Resolver((str(write_hosts(tmp_path / "certs.d", "_default", text)),), (), LIMITS)
        pull(store, "default", "example.com/some/image:1", resolver, unpack=False)
        assert registry.seen("GET", "/blobs/") == [f"/v2/some/image/blobs/{image.layers[1].digest}"]
        assert whole(store, image)


def test_a_pull_that_is_stopped_ends_soon(
    store: Store, registry: FaultRegistry, resolver: Resolver, image: Image
) -> None:
    registry.faults.append(Fault("drip", value=0.01))
    stop = threading.Event()

    def on(event: Event) -> None:
        if event.kind == "downloading":
            stop.set()

    with pytest.raises(Unavailable, match="given up"):
        fetch(store, registry, resolver, progress=on, stop=stop)
    assert names(store) == []


@pytest.mark.parametrize("reference", ["", "UPPER", "a@sha256:zz", "a:b:c", "http://x/y", "x" * 300])
def test_a_bad_reference_is_refused(store: Store, resolver: Resolver, reference: str) -> None:
    with pytest.raises(InvalidInput):
        pull(store, "default", reference, resolver)

"""Copies between all kinds of places."""

from __future__ import annotations

import gzip
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from registry_peers import Fault, FaultRegistry, Image, make_image, make_index, noise_image
from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError, Unavailable, WrongState
from sampan.image import layout, model, mutate, validate
from sampan.image.layout import Layout
from sampan.registry import Event, Limits, Resolver, copy, open_image, write_image
from sampan.spec.image import Platform, decode_manifest
from sampan.storage.store import Store

RESOLVER = Resolver((), (), Limits(backoff=0.01, attempts=3, read=2.0))


class Places:
    """A place of each kind, by name."""

    def __init__(self, folder: Path, registry: FaultRegistry, store: Store) -> None:
        self.folder, self.registry, self.store = folder, registry, store

    def __call__(self, kind: str, name: str) -> str:
        return {
            "docker": f"docker://{self.registry.address}/{name}:1",
            "oci": f"oci:{self.folder}/{name}:1",
            "oci-archive": f"oci-archive:{self.folder}/{name}.tar:1",
            "docker-archive": f"docker-archive:{self.folder}/{name}.dtar:{name}:1",
            "dir": f"dir:{self.folder}/{name}.d",
            "store": f"store:{name}:1",
        }[kind]

    def copy(self, source: str, destination: str, **options: object) -> str:
        return copy(source, destination, resolver=RESOLVER, store=self.store, **options).digest  # type: ignore[arg-type]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with (
        FaultRegistry(str(tmp_path / "registry")) as registry,
        Store(str(tmp_path / "store"), snapshotter="native") as store,
    ):
        yield Places(tmp_path, registry, store)


@pytest.fixture
def image(places: Places) -> Image:
    made = noise_image()
    made.put_into(places.registry.tree, "app", "1")
    return made


KINDS = ["docker", "oci", "oci-archive", "dir", "store"]


def holds(places: Places, image: Image) -> bool:
    """Whether the registry's repository ``back`` has just this image."""
    digest, _, data = places.registry.tree.manifest("back", "1")
    blobs = {blob: Path(places.registry.tree.blob_path(blob)).read_bytes() for blob in image.blobs}
    return digest == image.target.digest and data == image.blobs[digest] and blobs == image.blobs


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_an_image_survives_any_way(places: Places, image: Image, first: str, second: str) -> None:
    assert places.copy(places("docker", "app"), places(first, "one")) == image.target.digest
    assert places.copy(places(first, "one"), places(second, "two")) == image.target.digest
    assert places.copy(places(second, "two"), places("docker", "back")) == image.target.digest
    assert holds(places, image)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_goes_whole_or_in_part(places: Places, kind: str) -> None:
    one, two = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="arm64")
    index = make_index({"linux/amd64": one, "linux/arm64": two})
    index.put_into(places.registry.tree, "app", "1")
    places.copy(places("docker", "app"), places(kind, "one"))
    assert places.copy(places(kind, "one"), places("docker", "back")) == index.target.digest
    assert holds(places, index)
    assert places.copy(places(kind, "one"), places("docker", "back"), platform="linux/arm64") == two.target.digest
    assert holds(places, two)


@pytest.mark.parametrize("kind", [*KINDS, "docker-archive"])
def test_an_image_anywhere_is_a_value(places: Places, image: Image, kind: str) -> None:
    copied = places.copy(places("docker", "app"), places(kind, "one"))
    with open_image(places(kind, "one"), resolver=RESOLVER, store=places.store) as found:
        assert isinstance(found, model.Image)
        if kind != "docker-archive":  # which has no manifests
            assert found.digest == copied
        assert validate.faults(found) == []
        layer = found.layers[0]
        archive = gzip.decompress(image.blobs[image.layers[0].digest])
        assert b"".join(layer.uncompressed()) == archive
        with layer.blobs.open(layer.descriptor) as file:
            assert file.read(2) == (b"\x1f\x8b" if kind != "docker-archive" else archive[:2])
        changed = mutate.append_layer(found, b"\0" * 1024)
        layout.write(Layout(str(places.folder / "changed"), create=True), changed, "2")
        write_image(changed, places("docker", "straight"), resolver=RESOLVER)
    places.copy(f"oci:{places.folder}/changed:2", places("docker", "back"))
    for name in ("back", "straight"):
        assert places.registry.tree.manifest(name, "1")[0] == changed.digest
    with open_image(places("docker", "straight"), resolver=RESOLVER) as found:
        assert validate.faults(found) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_anywhere_is_a_value_and_what_differs_is_found(places: Places, kind: str) -> None:
    one, two = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="arm64")
    index = make_index({"linux/amd64": one, "linux/arm64": two})
    index.put_into(places.registry.tree, "app", "1")
    places.copy(places("docker", "app"), places(kind, "one"))
    with open_image(places(kind, "one"), resolver=RESOLVER, store=places.store) as found:
        assert isinstance(found, model.ImageIndex)
        assert found.raw_manifest == index.blobs[index.target.digest]
        assert [child.descriptor.digest for child in found.children()] == [one.target.digest, two.target.digest]
        chosen = found.select(Platform.parse("linux/arm64"))
        assert (chosen.digest, chosen.config.architecture) == (two.target.digest, "arm64")
        wrong = model.Image(found.blobs, msgspec.structs.replace(one.target, size=one.target.size + 1))
        with pytest.raises(Corrupt):
            _ = wrong.manifest


def test_a_docker_archive(places: Places, image: Image) -> None:
    places.copy(places("docker", "app"), places("docker-archive", "saved"))
    with tarfile.open(places.folder / "saved.dtar") as archive:
        opened = archive.extractfile("manifest.json")
        assert opened is not None
        (entry,) = json.load(opened)
        assert entry["RepoTags"] == ["saved:1"]
        names = set(archive.getnames())
        assert {entry["Config"], *entry["Layers"]} < names
        layer = archive.extractfile(entry["Layers"][0])
        assert layer is not None
        assert layer.read() == gzip.decompress(image.blobs[image.layers[0].digest])
    places.copy(places("docker-archive", "saved"), places("store", "loaded"))
    # Once more through an archive: the manifest that is made is the same.
    places.copy(places("store", "loaded"), places("docker-archive", "again"))
    places.copy(places("docker-archive", "again"), places("store", "reloaded"))
    first, second = (places.store.images("default").get(f"docker.io/library/{n}:1") for n in ("loaded", "reloaded"))
    assert first.target == second.target
    document = decode_manifest(places.store.content.read(first.target))
    assert document.config.digest == image.config.digest  # type: ignore[union-attr]


def test_an_archive_may_be_compressed(places: Places, image: Image) -> None:
    places.copy(places("docker", "app"), places("oci-archive", "a"))
    plain = places.folder / "a.tar"
    (places.folder / "b.tar").write_bytes(gzip.compress(plain.read_bytes()))
    places.copy(places("oci-archive", "b"), places("docker", "back"))
    assert holds(places, image)


def test_what_an_index_lists_again_and_again_is_copied_once(places: Places) -> None:
    """Three levels of a hundred entries each that are all the same: a million ways to one image."""
    top = make_image([{"a": b"1"}])
    for _ in range(3):
        top = make_index({f"linux/a{number}": top for number in range(100)})
        top.manifests = list({one.digest: one for one in top.manifests}.values())
    top.put_into(places.registry.tree, "app", "1")
    before = len(places.registry.requests)
    assert places.copy(places("docker", "app"), places("store", "one")) == top.target.digest
    assert len(places.registry.requests) - before < 20


def test_a_layout_holds_several_images(places: Places, image: Image) -> None:
    other = noise_image(seed="other")
    other.put_into(places.registry.tree, "app", "2")
    folder = f"oci:{places.folder}/l"
    places.copy(f"docker://{places.registry.address}/app:1", f"{folder}:one")
    places.copy(f"docker://{places.registry.address}/app:2", f"{folder}:two")
    places.copy(f"docker://{places.registry.address}/app:2", f"{folder}:one")
    places.copy(f"docker://{places.registry.address}/app:1", f"{folder}:one")
    with pytest.raises(InvalidInput, match=r"holds 2 images \(one, two\): say which"):
        places.copy(folder, places("docker", "back"))
    with pytest.raises(NotFound, match='has no image "three", but one, two'):
        places.copy(f"{folder}:three", places("docker", "back"))
    places.copy(f"{folder}:one", places("docker", "back"))
    assert holds(places, image)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "dir", "store", "docker"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault("flip"), Corrupt), (Fault("truncate", value=1000), Unavailable), (Fault("long", value=5), Corrupt)],
    ids=["flip", "truncate", "long"],
)
def test_a_failed_copy_leaves_no_image(
    places: Places, image: Image, kind: str, fault: Fault, error: type[SampanError]
) -> None:
    fault.where, fault.met = image.layers[2].digest, 0
    places.registry.faults.append(fault)
    with pytest.raises(error):
        places.copy(places("docker", "app"), places(kind, "one"))
    places.registry.faults.clear()
    with pytest.raises((NotFound, InvalidInput)):
        places.copy(places(kind, "one"), places("docker", "back"))
    assert not [path for path in places.folder.rglob(".*") if "store" not in path.parts]
    places.copy(places("docker", "app"), places(kind, "one"))
    places.copy(places(kind, "one"), places("docker", "back"))
    assert kind == "docker-archive" or holds(places, image)


@pytest.mark.parametrize("kind", ["oci", "store", "docker"])
def test_a_copy_that_is_given_up_leaves_no_image(places: Places, image: Image, kind: str) -> None:
    stop = threading.Event()

    def give_up(event: Event) -> None:
        if event.kind in ("downloaded", "uploaded"):
            stop.set()

    resolver = Resolver((), (), Limits(backoff=0.01, attempts=3, read=2.0, parallel=1))
    with pytest.raises(SampanError):
        copy(
            places("docker", "app"),
            places(kind, "one"),
            resolver=resolver,
            store=places.store,
            progress=give_up,
            stop=stop,
        )
    with pytest.raises((NotFound, InvalidInput)):
        places.copy(places(kind, "one"), places("docker", "back"))
    places.copy(places("docker", "app"), places(kind, "one"))


def test_a_broken_download_goes_on(places: Places, image: Image) -> None:
    places.registry.faults.append(Fault("truncate", image.layers[0].digest, times=2, value=100_000))
    events: list[Event] = []
    places.copy(places("docker", "app"), places("oci", "one"), progress=events.append)
    places.copy(places("oci", "one"), places("docker", "back"))
    assert holds(places, image)


@pytest.mark.parametrize(
    ("source", "error", "cause"),
    [
        ("nginx", InvalidInput, "begins with none of docker://"),
        ("oci:", InvalidInput, "says no place"),
        ("oci:/nowhere:", InvalidInput, "no name after the colon"),
        ("oci:/nowhere", NotFound, "/nowhere: is no OCI layout"),
        ("oci-archive:/nowhere", NotFound, "/nowhere: does not exist"),
        ("docker-archive:/etc/passwd", Corrupt, "not a tar archive"),
        ("dir:/nowhere", NotFound, r"has no manifest\.json"),
        ("store:nothing", NotFound, "not in namespace default"),
    ],
)
def test_a_bad_place_is_said(places: Places, source: str, error: type[SampanError], cause: str) -> None:
    with pytest.raises(error, match=cause):
        places.copy(source, places("oci", "one"))


def test_a_directory_of_something_else_is_left_alone(places: Places, image: Image) -> None:
    (places.folder / "mine").mkdir()
    (places.folder / "mine/file").write_text("mine")
    for place in (f"oci:{places.folder}/mine", f"dir:{places.folder}/mine"):
        with pytest.raises(WrongState, match="is neither empty nor"):
            places.copy(places("docker", "app"), place)
    assert [path.name for path in (places.folder / "mine").iterdir()] == ["file"]

"""Images and indexes to a sink: order, parts that are missing, failures, forms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import IO

import msgspec
import pytest

from sampan.errors import Corrupt, Exhausted, NotFound, Unavailable
from sampan.image import converting, model, mutate, validate, writing
from sampan.image.model import Image, ImageIndex, MemoryBlobs
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, Platform


class Memory:
    """A sink that keeps what it gets, in its order."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.named: Descriptor | None = None

    def has(self, target: Descriptor) -> bool:
        return target.digest in self.blobs

    def put_blob(self, target: Descriptor, pieces: Iterator[bytes]) -> str:
        self.blobs[target.digest] = b"".join(pieces)
        return "copied"

    def put_document(self, target: Descriptor, data: bytes) -> None:
        assert target.digest not in self.blobs
        self.blobs[target.digest] = data

    def finish(self, target: Descriptor, data: bytes) -> None:
        self.put_document(target, data)
        self.named = target

    def close(self) -> None:
        """Nothing is open."""

    def image(self) -> Image | ImageIndex:
        assert self.named is not None
        return model.at(MemoryBlobs(self.blobs), self.named)


def one(platform: str, *layers: bytes) -> Image:
    image = mutate.empty(Platform.parse(platform))
    for layer in layers:
        image = mutate.append_layer(image, layer.ljust(1024, b"\0"))
    return image


def index(*images: Image, media_type: str = spec.MT_OCI_INDEX) -> ImageIndex:
    blobs: model.Blobs = MemoryBlobs({})
    for image in images:
        blobs = Both(image.blobs, blobs)
    listed = tuple(
        msgspec.structs.replace(image.descriptor, platform=Platform.parse(f"linux/a{number}"))
        for number, image in enumerate(images)
    )
    data = spec.encode(spec.Index(schema_version=2, media_type=media_type, manifests=listed))
    target = spec.describe(data, media_type)
    return ImageIndex(MemoryBlobs({target.digest: data}, blobs), target)


class Both:
    """Two sources of blobs as one."""

    def __init__(self, first: model.Blobs, second: model.Blobs) -> None:
        self.first, self.second = first, second

    def read(self, target: Descriptor) -> bytes:
        try:
            return self.first.read(target)
        except NotFound:
            return self.second.read(target)

    def open(self, target: Descriptor) -> IO[bytes]:
        try:
            return self.first.open(target)
        except NotFound:
            return self.second.open(target)


IMAGE = one("linux/amd64", b"a", b"b")
OTHER = one("linux/arm64", b"b", b"c")


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_is_spoken_of_comes_first_and_the_image_last(parallel: int) -> None:
    sink, told = Memory(), list[tuple[str, str]]()
    whole = index(IMAGE, OTHER, IMAGE)
    written = writing.write(
        whole, sink, parallel=parallel, notice=lambda how, target: told.append((how, target.digest))
    )
    assert written == whole.descriptor
    assert list(sink.blobs)[-3:] == [IMAGE.digest, OTHER.digest, whole.digest]
    # Both have layer b: three layers and two configurations, each once.
    assert sorted(told) == sorted(("copied", digest) for digest in list(sink.blobs)[:-3])
    assert len(told) == 5
    assert validate.faults(sink.image()) == []
    told.clear()
    again = Memory()
    again.blobs = {digest: data for digest, data in sink.blobs.items() if digest in list(sink.blobs)[:5]}
    writing.write(whole, again, parallel=parallel, notice=lambda how, _: told.append((how, "")))
    assert told == [("exists", "")] * 5


def test_indexes_that_share_an_image() -> None:
    one, two = index(IMAGE), index(IMAGE, OTHER)
    listed = (one.descriptor, two.descriptor)
    data = spec.encode(spec.Index(schema_version=2, media_type=spec.MT_OCI_INDEX, manifests=listed))
    target = spec.describe(data, spec.MT_OCI_INDEX)
    everything = MemoryBlobs({target.digest: data}, Both(one.blobs, two.blobs))
    for whole in (True, False):
        gathered = writing.gather(ImageIndex(everything, target), whole=whole)
        assert list(gathered.documents) == [IMAGE.digest, one.digest, OTHER.digest, two.digest, target.digest]
    # Of the second index only what the first has, too, is there.
    blobs = {value.digest: value.raw_manifest for value in (one, two)} | {target.digest: data}
    gathered = writing.gather(ImageIndex(MemoryBlobs(blobs, IMAGE.blobs), target), whole=False)
    assert list(gathered.documents) == [IMAGE.digest, one.digest, two.digest, target.digest]


def test_a_part_that_is_missing() -> None:
    whole = index(IMAGE, OTHER)
    gone = OTHER.layers[1].descriptor.digest
    sink = Memory()
    writing.write(whole, sink)
    del sink.blobs[gone]
    for value in (sink.image(), OTHER):
        lacking = model.at(MemoryBlobs(sink.blobs), value.descriptor)
        with pytest.raises(NotFound, match=gone):
            writing.write(lacking, Memory())
    part = Memory()
    writing.write(sink.image(), part, whole=False)
    assert IMAGE.digest in part.blobs
    assert OTHER.digest not in part.blobs
    del sink.blobs[IMAGE.layers[0].descriptor.digest]
    with pytest.raises(NotFound, match="none of its platforms is there"):
        writing.gather(sink.image(), whole=False)
    assert [fault.split(":")[0] for fault in validate.faults(sink.image())] == ["manifests[0]", "manifests[1]"]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_blob_that_is_another_keeps_the_image_nameless(parallel: int) -> None:
    layer = IMAGE.layers[1].descriptor
    data = {layer.digest: bytes(layer.size)}
    sink = Memory()
    with pytest.raises(Corrupt, match=f"the {layer.size} bytes that came have digest"):
        writing.write(Image(MemoryBlobs(data, IMAGE.blobs), IMAGE.descriptor), sink, parallel=parallel)
    assert sink.named is None
    assert IMAGE.digest not in sink.blobs


def test_the_first_failure_stops_the_others_and_is_the_one_that_is_told() -> None:
    stop, waiting = threading.Event(), threading.Barrier(2)

    def fail() -> None:
        waiting.wait(20)
        raise Corrupt("the cause")

    def wait() -> None:
        waiting.wait(20)
        assert stop.wait(20)
        raise Unavailable("given up")

    def never() -> None:
        raise AssertionError

    with pytest.raises(Corrupt, match="the cause"):
        writing.side_by_side([wait, fail, *[never] * 10], 2, stop)


def test_documents_that_are_too_large_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "DOCUMENTS_LIMIT", len(IMAGE.raw_manifest) + 10)
    writing.gather(IMAGE)
    with pytest.raises(Exhausted, match="to be held"):
        writing.gather(index(IMAGE, OTHER))


def test_an_index_follows_what_becomes_of_its_images() -> None:
    """Even if its own words need no change: here an image of OCI's form has a layer of Docker's."""
    layer = msgspec.structs.replace(IMAGE.manifest.layers[0], media_type=spec.MT_DOCKER_LAYER_GZIP)
    manifest = spec.encode(msgspec.structs.replace(IMAGE.manifest, layers=(layer, *IMAGE.manifest.layers[1:])))
    target = spec.describe(manifest, spec.MT_OCI_MANIFEST)
    mixed = Image(MemoryBlobs({target.digest: manifest}, IMAGE.blobs), target)
    whole = index(mixed, OTHER)
    made = converting.in_form(whole, "oci")
    assert isinstance(made, ImageIndex)
    assert [child.digest for child in made.children()] == [IMAGE.digest, OTHER.digest]
    assert [child.descriptor.platform for child in made.children()] == [
        child.descriptor.platform for child in whole.children()
    ]
    assert validate.faults(made) == []


@pytest.mark.parametrize("value", [IMAGE, index(IMAGE, OTHER)], ids=["image", "index"])
def test_a_form_and_back(value: Image | ImageIndex) -> None:
    docker = converting.in_form(value, "docker")
    assert docker.descriptor.media_type in (spec.MT_DOCKER_MANIFEST, spec.MT_DOCKER_LIST)
    assert validate.faults(docker) == []
    assert converting.in_form(docker, "docker").digest == docker.digest
    assert converting.in_form(docker, "oci").digest == value.digest
    assert converting.in_form(value, "oci").descriptor == value.descriptor

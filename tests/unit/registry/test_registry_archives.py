"""Save and load: several images in one archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import Image, make_image, make_index, noise_image
from sampan.errors import Corrupt, InvalidInput, NotFound
from sampan.registry.archives import load, save
from sampan.storage.store import Store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    with (
        Store(str(tmp_path / "one"), snapshotter="native") as one,
        Store(str(tmp_path / "two"), snapshotter="native") as two,
    ):
        yield one, two


def put(store: Store, image: Image, name: str) -> None:
    for data in image.blobs.values():
        store.content.put(data)
    store.images("default").put(name, image.target)


def names(store: Store) -> dict[str, str]:
    return {entry.name: entry.target.digest for entry in store.images("default").list()}


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_what_is_saved_is_loaded(stores: tuple[Store, Store], tmp_path: Path, form: str) -> None:
    one, two = stores
    first, second = noise_image(), noise_image(seed="x")
    put(one, first, "docker.io/library/first:1")
    put(one, second, "r.example:5000/team/second:2")
    file = str(tmp_path / "images.tar")
    save(one, "default", ["first:1", "r.example:5000/team/second:2"], file, form=form)
    loaded = load(two, "default", file)
    assert loaded == ["docker.io/library/first:1", "r.example:5000/team/second:2"]
    if form == "oci-archive":
        assert names(two) == names(one)
    assert first.config is not None
    assert two.content.exists(first.config.digest)


def test_of_an_index_what_is_stored_is_saved(stores: tuple[Store, Store], tmp_path: Path) -> None:
    one, two = stores
    here, other = make_image([{"a": b"1"}]), make_image([{"a": b"2"}], architecture="s390x")
    index = make_index({"linux/amd64": here, "linux/s390x": other})
    put(one, here, "docker.io/library/alone:1")
    one.content.put(index.blobs[index.target.digest])
    one.images("default").put("docker.io/library/multi:1", index.target)
    save(one, "default", ["multi:1"], str(tmp_path / "part.tar"))
    put(one, index, "docker.io/library/multi:1")
    save(one, "default", ["multi:1"], str(tmp_path / "whole.tar"))
    load(two, "default", str(tmp_path / "part.tar"))
    assert names(two) == {"docker.io/library/multi:1": here.target.digest}
    load(two, "default", str(tmp_path / "whole.tar"))
    assert names(two) == {"docker.io/library/multi:1": index.target.digest}
    assert two.content.exists(other.target.digest)


def test_an_image_without_a_whole_name(stores: tuple[Store, Store], tmp_path: Path) -> None:
    _, two = stores
    layout = noise_image().write_layout(tmp_path / "My Layout.d", tag="latest")
    assert load(two, "default", str(layout)) == ["localhost/my-layout-d:latest"]
    assert load(two, "default", str(layout), name="r.example/a:1") == ["r.example/a:1"]


def test_what_is_wrong_is_said_and_leaves_nothing(stores: tuple[Store, Store], tmp_path: Path) -> None:
    one, two = stores
    put(one, noise_image(), "docker.io/library/a:1")
    file = tmp_path / "x.tar"
    with pytest.raises(NotFound, match="not in namespace default"):
        save(one, "default", ["a:1", "b:1"], str(file))
    with pytest.raises(InvalidInput, match="neither oci-archive"):
        save(one, "default", ["a:1"], str(file), form="zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    with pytest.raises(NotFound, match="does not exist"):
        load(two, "default", str(file))
    with tarfile.open(file, "w"):
        pass
    with pytest.raises(Corrupt, match="holds neither an OCI layout nor a docker archive"):
        load(two, "default", str(file))
    save(one, "default", ["a:1"], str(file))
    whole = file.read_bytes()
    for position in range(600, len(whole) - 1, len(whole) // 20):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        file.write_bytes(damaged)
        try:
            load(two, "default", str(file))
        except (Corrupt, NotFound, InvalidInput):
            assert names(two) == {}
        else:
            two.images("default").delete("docker.io/library/a:1")

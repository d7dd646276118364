"""Images found by whatever a user calls them, and listed once however many names they have."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oci_image
import pytest

from sampan.engine.images import PINNED_LABEL, Images
from sampan.errors import InvalidInput, NotFound
from sampan.storage.store import Store

TEAM = "registry.example/team"


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    with Store(str(tmp_path / "store"), snapshotter="native") as store:
        engine: Any = SimpleNamespace(
            store=store, namespace="k8s.io", config=SimpleNamespace(pinned_images=[f"{TEAM}/pause:*"]), zygote=None
        )
        yield Images(engine)


def image_of(text: str) -> oci_image.Image:
    return oci_image.Image([oci_image.layer([oci_image.file("/text", text)])])


def load(images: Images, folder: Path, name: str, text: str) -> str:
    """An image whose layer holds a text; the digest that the name leads to."""
    archive = folder / "image.tar"
    digest = oci_image.write_archive(image_of(text), archive, name)
    assert images.load(str(archive)) == [name]
    return digest


def test_an_image_is_listed_once_with_all_its_names(images: Images, tmp_path: Path) -> None:
    digest = load(images, tmp_path, f"{TEAM}/app:1", "a")
    images.tag(f"{TEAM}/app:1", f"{TEAM}/app:stable")
    images.tag(f"{TEAM}/app:1", "other.example/app:1")
    load(images, tmp_path, f"{TEAM}/pause:1", "b")
    one, other = images.list()
    assert one.repo_tags == ("other.example/app:1", f"{TEAM}/app:1", f"{TEAM}/app:stable")
    assert one.repo_digests == (f"other.example/app@{digest}", f"{TEAM}/app@{digest}")
    assert (one.pinned, other.pinned) == (False, True)
    for text in (*one.repo_tags, *one.repo_digests, one.id, one.id.removeprefix("sha256:")[:12]):
        found = images.resolve(text)
        assert found.record == one, text
        assert found.target_digest == digest
    with pytest.raises(NotFound):
        images.get(f"registry.example/elsewhere/app@{digest}")
    assert images.find("") is images.find(f"{TEAM}/app:2") is None


def test_a_name_may_pin_an_image(images: Images, tmp_path: Path) -> None:
    load(images, tmp_path, f"{TEAM}/app:1", "a")
    names = images._engine.store.images("k8s.io")
    names.put(f"{TEAM}/app:kept", names.get(f"{TEAM}/app:1").target, {PINNED_LABEL: "pinned"})
    assert images.get(f"{TEAM}/app:1").pinned


def test_what_is_half_there_is_in_nobodys_way(images: Images, tmp_path: Path) -> None:
    broken = load(images, tmp_path, f"{TEAM}/app:0", "broken")
    whole = load(images, tmp_path, f"{TEAM}/app:1", "whole")
    content = images._engine.store.content
    content.delete(images.resolve(f"{TEAM}/app:0").record.id)
    reopened = Images(images._engine)  # which remembers nothing of it
    assert [record.repo_tags for record in reopened.list()] == [(f"{TEAM}/app:1",)]
    assert reopened.get(f"{TEAM}/app@{whole}").repo_tags == (f"{TEAM}/app:1",)
    with pytest.raises(NotFound):
        reopened.get(f"{TEAM}/app@{broken}")


def test_the_beginning_of_several_ids_is_refused(images: Images, tmp_path: Path) -> None:
    seen: dict[str, str] = {}
    for text in map(str, range(100_000)):
        config, _ = image_of(text).documents(oci_image.host_architecture())
        begins = oci_image.digest_of(config).removeprefix("sha256:")[:4]
        if begins in seen:
            break
        seen[begins] = text
    load(images, tmp_path, f"{TEAM}/app:1", seen[begins])
    assert images.get(begins).repo_tags == (f"{TEAM}/app:1",)
    load(images, tmp_path, f"{TEAM}/app:2", text)
    with pytest.raises(InvalidInput, match="is the beginning of 2 image ids"):
        images.get(begins)


def test_the_last_tag_of_a_repository_takes_its_names_by_digest_along(images: Images, tmp_path: Path) -> None:
    digest = load(images, tmp_path, f"{TEAM}/app:1", "a")
    for name in (f"{TEAM}/app:2", f"{TEAM}/app@{digest}", f"other.example/app@{digest}"):
        images.tag(f"{TEAM}/app:1", name)
    images.untag(f"{TEAM}/app:1")
    (left,) = images.list()
    assert left.repo_digests == (f"other.example/app@{digest}", f"{TEAM}/app@{digest}")
    images.untag(f"{TEAM}/app:2")
    (left,) = images.list()
    assert left.repo_digests == (f"other.example/app@{digest}",)
    images.untag(f"other.example/app@{digest}")
    assert images.list() == []
    with pytest.raises(NotFound):
        images.untag(f"{TEAM}/app:1")

"""Images made for tests are the same bytes each time, and what they say of themselves is true."""

import gzip
import io
import json
import tarfile
from pathlib import Path

from oci_image import Image, digest_of, directory, file, hard_link, index_of, layer, symlink, write_archive

ENTRIES = [directory("/bin"), file("/bin/a", "text", 0o755), hard_link("/bin/b", "/bin/a"), symlink("/bin/c", "a")]


def test_layer_is_deterministic_and_its_diff_id_true() -> None:
    first, second = layer(ENTRIES), layer(ENTRIES)
    assert first == second
    assert digest_of(gzip.decompress(first.data)) == first.diff_id


def test_layer_holds_what_was_asked() -> None:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer(ENTRIES).data))) as archive:
        members = {item.name: item for item in archive.getmembers()}
    assert list(members) == ["bin", "bin/a", "bin/b", "bin/c"]
    assert members["bin/b"].islnk()
    assert members["bin/b"].linkname == "bin/a"
    assert members["bin/a"].mode == members["bin/b"].mode == 0o755
    assert members["bin/c"].linkname == "a"


def test_index_lists_a_manifest_for_each_architecture() -> None:
    index, blobs, manifests = index_of(Image([layer(ENTRIES)], {"Cmd": ["a"]}), ["arm64", "amd64"])
    listed = json.loads(index)["manifests"]
    assert [item["platform"]["architecture"] for item in listed] == ["arm64", "amd64"]
    assert [item["digest"] for item in listed] == [digest_of(manifest) for manifest in manifests]
    for manifest in manifests:
        document = json.loads(manifest)
        assert all(item["digest"] in blobs for item in [document["config"], *document["layers"]])


def test_archive_is_an_oci_layout(tmp_path: Path) -> None:
    digest = write_archive(Image([layer(ENTRIES)]), tmp_path / "image.tar", "demo:1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        names = archive.getnames()
    assert {"oci-layout", "index.json", "blobs/sha256/" + digest.removeprefix("sha256:")} <= set(names)
    assert [path.name for path in tmp_path.iterdir()] == ["image.tar"]

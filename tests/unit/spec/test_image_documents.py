"""Manifests, indexes, configs: decoding with bounds, platform choice."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError, Unsupported
from sampan.spec import image
from sampan.spec.image import Descriptor, Index, Manifest, Platform

D = "sha256:" + "0" * 64


def doc(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


CONFIG = {"mediaType": image.MT_OCI_CONFIG, "digest": D, "size": 2}
LAYER = {"mediaType": image.MT_OCI_LAYER_GZIP, "digest": D, "size": 2}


def test_manifest_and_index_are_told_apart() -> None:
    assert isinstance(image.decode_manifest(doc(config=CONFIG, layers=[LAYER])), Manifest)
    assert isinstance(image.decode_manifest(doc(manifests=[])), Index)


@pytest.mark.parametrize(
    ("data", "media_type", "error"),
    [
        (doc(config=CONFIG, layers=[], manifests=[]), "", Corrupt),
        (doc(layers=[LAYER], manifests=[]), "", Corrupt),
        (doc(mediaType=image.MT_OCI_INDEX, config=CONFIG, layers=[]), "", Corrupt),
        (doc(mediaType=image.MT_OCI_MANIFEST, config=CONFIG), image.MT_OCI_INDEX, Corrupt),
        (doc(config=CONFIG, layers=[]), image.MT_DOCKER_LIST, Corrupt),
        (doc(manifests=[]), image.MT_OCI_MANIFEST, Corrupt),
        (json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), "", Unsupported),
        (doc(config={**CONFIG, "digest": "sha256:../../etc"}, layers=[]), "", Corrupt),
        (doc(config={**CONFIG, "size": -1}, layers=[]), "", Corrupt),
        (doc(config=CONFIG, layers=[{"size": "x"}]), "", Corrupt),
        (b"[" * 100_000, "", Corrupt),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "", Corrupt),
        (b"", "", Corrupt),
        (b"\xff\xfe", "", Corrupt),
        (b" " * (image.MANIFEST_LIMIT + 1), "", Corrupt),
        (doc(), "", Corrupt),
    ],
)
def test_bad_manifests_are_refused(data: bytes, media_type: str, error: type[SampanError]) -> None:
    with pytest.raises(error):
        image.decode_manifest(data, media_type)


def test_the_faulty_field_is_named() -> None:
    with pytest.raises(Corrupt, match=r"layers\[.*\]\.size|layers\[.*\]"):
        image.decode_manifest(doc(config=CONFIG, layers=[{**LAYER, "size": "x"}]))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_one_of_our_errors(data: bytes) -> None:
    for decode in (image.decode_manifest, image.decode_config):
        try:
            decode(data)
        except SampanError:
            pass


def test_lists_that_a_document_must_have_are_written_empty() -> None:
    manifest = json.loads(image.encode(Manifest(schema_version=2, config=Descriptor(media_type="x", digest=D, size=0))))
    assert (manifest["layers"], "annotations" in manifest) == ([], False)
    assert json.loads(image.encode(Index(schema_version=2))) == {"schemaVersion": 2, "manifests": []}


def test_null_lists_of_old_builders_are_read() -> None:
    config = image.decode_config(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": None, "Env": None, "User": "1000:1000", "Labels": None, "Unknown": 1},
                "rootfs": {"type": "layers", "diff_ids": [D]},
                "history": [{"created_by": "x", "empty_layer": True}],
            }
        ).encode()
    )
    assert config.container.user == "1000:1000"
    assert config.platform == Platform(architecture="amd64", os="linux")


def test_null_for_lists_without_members_is_read() -> None:
    """As programs in Go write what has none: an image of labels only, an index of nothing."""
    config = image.decode_config(b'{"os":"linux","rootfs":{"type":"layers","diff_ids":null},"history":null}')
    assert config.rootfs.diff_ids == ()
    manifest = image.decode_manifest(doc(config={**CONFIG, "annotations": None}, layers=None, annotations=None))
    assert isinstance(manifest, Manifest)
    assert (manifest.layers, manifest.annotations, manifest.config.annotations) == ((), {}, {})
    assert image.decode_manifest(image.encode(manifest)) == manifest
    index = image.decode_manifest(doc(manifests=None, annotations=None), image.MT_OCI_INDEX)
    assert index == Index(schema_version=2)
    entry = {**LAYER, "mediaType": image.MT_OCI_MANIFEST, "urls": None}
    assert image.decode_manifest(doc(manifests=[entry])).manifests[0].urls == ()  # type: ignore[union-attr]
    with pytest.raises(Corrupt, match="layers"):
        image.decode_manifest(doc(config=CONFIG, layers=[None]))


def test_config_with_a_bad_diff_id_is_refused() -> None:
    with pytest.raises(Corrupt, match=r"rootfs\.diff_ids\[0\]"):
        image.decode_config(b'{"rootfs":{"type":"layers","diff_ids":["x"]}}')


def entry(text: str) -> Descriptor:
    return Descriptor(
        media_type=image.MT_OCI_MANIFEST, digest=image.digest_of(text.encode()), size=1, platform=Platform.parse(text)
    )


def test_the_best_platform_is_chosen() -> None:
    index = Index(
        schema_version=2,
        manifests=tuple(entry(t) for t in ("linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8")),
    )
    for wanted, chosen in [
        ("linux/x86_64", 0),
        ("linux/arm/v7", 2),
        ("linux/arm/v6", 1),
        ("linux/arm64", 3),
    ]:
        assert image.select_platform(index, Platform.parse(wanted)) == index.manifests[chosen]
    with pytest.raises(NotFound, match="linux/amd64"):
        image.select_platform(index, Platform.parse("windows/amd64"))


def test_a_machine_of_64_bits_runs_images_of_32_for_want_of_better_ones() -> None:
    anyone = msgspec.structs.replace(entry("linux/any"), platform=None)
    for wanted, rising in [
        ("linux/amd64", ["linux/386", "linux/amd64"]),
        ("linux/amd64/v3", ["linux/386", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3"]),
        ("linux/arm64", [*(f"linux/arm/v{n}" for n in (5, 6, 7, 8)), "linux/arm64"]),
        ("linux/arm64/v9", ["linux/arm/v8", "linux/arm64"]),
    ]:
        entries = [anyone, *map(entry, rising)]
        for count in range(1, len(entries) + 1):
            for some in (entries[:count], entries[count - 1 :: -1]):
                index = Index(schema_version=2, manifests=(entry("windows/386"), *some))
                assert image.select_platform(index, Platform.parse(wanted)) == entries[count - 1]
    for system, wanted in [("linux/amd64", "linux/386"), ("linux/arm64", "linux/arm/v7"), ("linux/386", "linux/arm64")]:
        assert not Platform.parse(system).matches(Platform.parse(wanted))


def test_chain_ids_of_the_specification() -> None:
    first, second = image.chain_ids([D, D])
    assert first == D
    assert second == image.digest_of(f"{D} {D}".encode())


def test_digests() -> None:
    assert image.check_digest(D) == ("sha256", "0" * 64)
    for bad in ("", "sha256", "sha256:", D.upper(), D + "0", "md5:" + "0" * 32, D + "\n", "sha256:" + "g" * 64):
        with pytest.raises(InvalidInput):
            image.check_digest(bad)


def test_encoding_keeps_the_documents_names() -> None:
    manifest = Manifest(schema_version=2, config=image.describe(b"{}", image.MT_OCI_CONFIG))
    assert json.loads(image.encode(manifest)) == {
        "schemaVersion": 2,
        "config": {"mediaType": image.MT_OCI_CONFIG, "digest": image.digest_of(b"{}"), "size": 2},
        "layers": [],
    }

"""Images as values, layouts as source and sink, and the archives that the writer makes."""

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import Corrupt, InvalidInput, NotFound
from sampan.image import layout, model, mutate, pack, tar, validate
from sampan.image.layout import Layout
from sampan.image.model import Image
from sampan.image.tar import Entry, Reader
from sampan.spec import image as spec
from sampan.spec.image import ContainerConfig, Platform


def archive(*names: str) -> bytes:
    parts: list[bytes] = []
    writer = pack.Writer(parts.append)
    for name in names:
        writer.file(name, name.encode())
    writer.close()
    return b"".join(parts)


@pytest.fixture
def image() -> Image:
    return mutate.append_layer(mutate.append_layer(mutate.empty(), archive("a")), archive("b"), created_by="COPY b")


def test_an_image_is_built_by_values(image: Image) -> None:
    assert [layer.diff_id for layer in image.layers] == [spec.digest_of(archive("a")), spec.digest_of(archive("b"))]
    assert image.config.history is not None
    assert image.config.history[1].created_by == "COPY b"
    assert validate.faults(image) == []
    same = mutate.append_layer(mutate.append_layer(mutate.empty(), archive("a")), archive("b"), created_by="COPY b")
    assert same.digest == image.digest
    config = msgspec.structs.replace(image.config, config=ContainerConfig(cmd=("/b",)))
    changed = mutate.with_config(image, config)
    assert changed.config.container.cmd == ("/b",)
    assert changed.digest != image.digest
    assert image.config.container.cmd is None


def test_a_layout_gives_back_what_was_written(image: Image, tmp_path: Path) -> None:
    out = Layout(str(tmp_path / "layout"), create=True)
    layout.write(out, image, "v1")
    layout.write(out, mutate.empty(Platform.parse("linux/arm64")), "v2")
    layout.write(out, image, "v1")
    again = Layout(str(tmp_path / "layout"))
    assert sorted(again.names()) == ["v1", "v2"]
    found = again.get("v1")
    assert isinstance(found, Image)
    assert found.digest == image.digest
    assert validate.faults(found) == []
    assert b"".join(found.layers[1].uncompressed()) == archive("b")
    with pytest.raises(NotFound, match='has no image "v3", but v1, v2'):
        again.get("v3")
    with pytest.raises(InvalidInput, match=r"holds 2 images \(v1, v2\)"):
        again.get()


def test_indexes_in_indexes_have_an_end(image: Image) -> None:
    blobs: dict[str, bytes] = {}
    target = msgspec.structs.replace(image.descriptor, platform=Platform.host())
    tops = []
    for _ in range(2000):
        data = spec.encode(spec.Index(schema_version=2, media_type=spec.MT_OCI_INDEX, manifests=(target,)))
        target = spec.describe(data, spec.MT_OCI_INDEX)
        blobs[target.digest] = data
        tops.append(model.ImageIndex(model.MemoryBlobs(blobs, image.blobs), target))
    assert tops[2].select().digest == image.digest
    for deep in (tops[10], tops[-1]):
        with pytest.raises(Corrupt, match="nested"):
            deep.select()
        with pytest.raises(Corrupt, match="nested"):
            list(walk(deep))


def walk(value: model.Image | model.ImageIndex) -> Iterator[str]:
    """Digests of all that an index leads to."""
    yield value.digest
    if isinstance(value, model.ImageIndex):
        for child in value.children():
            yield from walk(child)


def test_damage_is_found(image: Image, tmp_path: Path) -> None:
    out = Layout(str(tmp_path / "layout"), create=True)
    layout.write(out, image, "v1")
    path = tmp_path / "layout/blobs/sha256" / image.layers[0].descriptor.digest[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = out.get("v1")
    assert isinstance(found, Image)
    [fault] = validate.faults(found)
    assert fault.startswith("layers[0]: ")
    with pytest.raises(Corrupt):
        list(found.layers[0].compressed())


def test_other_tools_read_the_layout(image: Image, tmp_path: Path) -> None:
    out = Layout(str(tmp_path / "layout"), create=True)
    layout.write(out, image, "v1")
    shown = subprocess.run(
        ["umoci", "stat", "--json", "--image", f"{tmp_path}/layout:v1"], capture_output=True, check=True
    )
    assert [item["layer"]["digest"] for item in json.loads(shown.stdout)["history"]] == [
        layer.descriptor.digest for layer in image.layers
    ]


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no OCI layout"):
        Layout(str(tmp_path))
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"9"}')
    with pytest.raises(Corrupt, match="version"):
        Layout(str(tmp_path))


names = st.binary(min_size=1, max_size=180).filter(lambda n: b"\0" not in n and not n.endswith(b"/"))


@given(names, st.binary(max_size=1200), st.integers(-(10**18), 4 * 10**18), st.integers(0, 0xFFFFFFFE), names)
def test_what_is_written_is_read(name: bytes, data: bytes, mtime: int, uid: int, value: bytes) -> None:
    entry = Entry()
    entry.name, entry.size, entry.mtime, entry.uid, entry.gid = name, len(data), mtime, uid, uid
    entry.mode, entry.xattrs = 0o4755, {b"user.x": value}
    link = Entry()
    link.name, link.type, link.linkname = name + b"l", tar.SYMLINK, value
    parts: list[bytes] = []
    writer = pack.Writer(parts.append)
    writer.member(entry, [data])
    writer.member(link)
    writer.close()
    source = io.BytesIO(b"".join(parts))
    reader = Reader(lambda: source.read(700))
    first = reader.next()
    assert first is not None
    content: list[bytes] = []
    reader.copy(first.size, lambda piece: content.append(bytes(piece)))
    fields = ("name", "size", "mtime", "uid", "gid", "mode", "xattrs", "type")
    assert [getattr(first, name) for name in fields] == [getattr(entry, name) for name in fields]
    assert b"".join(content) == data
    second = reader.next()
    assert second is not None
    assert (second.name, second.linkname) == (link.name, link.linkname)
    assert reader.next() is None


def test_tarfile_reads_what_is_written() -> None:
    data = archive("a", "d" * 120, "é")
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        assert found.getnames() == ["a", "d" * 120, "é"]


def test_the_example_of_the_documentation_runs(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout.write(Layout("images", create=True), mutate.append_layer(image, archive("x")), "base")
    text = (Path(__file__).parents[3] / "docs/python.md").read_text()
    example = text.partition("## Images as values")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}
    exec(example, names)
    assert names["faults"] == []
    changed = Layout("images").get("changed")
    assert isinstance(changed, Image)
    assert changed.config.author == "me"
    assert len(changed.layers) == len(image.layers) + 2

"""Images into and out of the store: `save` and `load`, and the store as a source of :mod:`sampan.image.model`.

An archive is read in one pass, from a pipe if need be and through gzip or zstd: each member becomes a blob under a
lease; what its index leads to is kept, the rest is garbage. Read are OCI archives (image-layout.md in a tar) and
Docker's (``manifest.json`` and layers); written is one that is both, as Docker does since version 25.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import msgspec

from sampan.errors import Corrupt, Exhausted, InvalidInput, NotFound, Unsupported
from sampan.image import tar
from sampan.image.decompress import bounded
from sampan.image.layout import REF_NAME
from sampan.image.model import Image, ImageIndex, at
from sampan.image.pack import Writer as TarWriter
from sampan.image.reference import Reference
from sampan.image.tar import Entry, Reader, show
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, Index, decode_as
from sampan.storage.records import Lease
from sampan.storage.store import Store

#: What Docker and containerd call an image in an OCI archive's index, with its full name.
_FULL_NAME = "io.containerd.image.name"
_MEMBERS = 100_000
_CHUNK = 1 << 20


class StoreBlobs:
    """The store as a source of blobs; see :class:`sampan.image.model.Blobs`."""

    def __init__(self, store: Store) -> None:
        self._content = store.content

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        return self._content.read(target)

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        return self._content.open(target.digest)


def image(store: Store, target: Descriptor) -> Image | ImageIndex:
    """What a descriptor leads to in the store."""
    return at(StoreBlobs(store), target)


def put_image(store: Store, value: Image | ImageIndex, lease: Lease | None = None) -> Descriptor:
    """Write an image, or an index with what its source has of it, into the store; it gets no name."""
    if isinstance(value, ImageIndex):
        for child in value.children():
            try:
                put_image(store, child, lease)
            except NotFound:
                continue  # a platform that its source has not
    else:
        for layer in value.layers:
            if not layer.foreign:
                _put(store, layer.descriptor, layer.compressed(), lease)
        _put(store, value.manifest.config, [value.raw_config], lease)
    _put(store, value.descriptor, [value.blobs.read(value.descriptor)], lease)
    return value.descriptor


def _put(store: Store, target: Descriptor, pieces: Iterable[bytes], lease: Lease | None) -> None:
    if lease is not None:
        lease.add_content(target.digest)
    if store.content.exists(target.digest):
        return
    with store.content.writer(target, lease=lease, resume=False) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.commit()


# ------------------------------------------------------------------ save


class _DockerImage(msgspec.Struct, rename="pascal"):
    """An item of ``manifest.json``."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


def save(store: Store, namespace: str, names: Sequence[str], write: Callable[[bytes], object]) -> None:
    """Write images as an archive that OCI's and Docker's tools read.

    Args:
        store: Where they are.
        namespace: Of the names.
        names: Canonical image names.
        write: Takes the archive's bytes.

    Raises:
        NotFound: There is no such image, or it is not complete.
    """
    if not names:
        raise InvalidInput("is empty", field="names")
    entries = [store.images(namespace).get(name) for name in names]
    blobs: dict[str, Descriptor] = {}
    docker: dict[str, _DockerImage] = {}
    for entry in entries:
        _gather(image(store, entry.target), blobs)
        _add_docker(docker, image(store, entry.target), entry.name)
    index = Index(
        schema_version=2,
        media_type=spec.MT_OCI_INDEX,
        manifests=tuple(_named(entry.target, entry.name) for entry in entries),
    )
    archive = TarWriter(write)
    archive.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    for digest, target in blobs.items():
        member = Entry()
        member.name, member.mode, member.size = _blob_path(digest).encode(), 0o644, target.size
        with store.content.reader(digest, target.size) as reader:
            archive.member(member, reader.chunks())
    archive.file("index.json", spec.encode(index))
    archive.file("manifest.json", spec.encode(list(docker.values())))
    archive.close()


def _gather(value: Image | ImageIndex, blobs: dict[str, Descriptor]) -> None:
    """Every blob of an image; of an index, of those of its images that are complete."""
    if value.digest in blobs:
        return  # an index may list one again and again
    below: list[Descriptor] = []
    if isinstance(value, ImageIndex):
        found = 0
        for child in value.children():
            try:
                _gather(child, blobs)
            except NotFound:
                continue
            found += 1
        if not found:
            raise NotFound(f"image {value.digest}: none of its platforms is in the store")
    else:
        parts = (value.manifest.config, *value.manifest.layers)
        below = [part for part in parts if part.media_type not in spec.FOREIGN_LAYER_TYPES]
        for part in below:
            value.blobs.open(part).close()
    blobs.update((part.digest, part) for part in (*below, value.descriptor))


def _named(target: Descriptor, name: str) -> Descriptor:
    reference = Reference.parse(name, default_tag="")
    annotations = {**target.annotations, _FULL_NAME: name, REF_NAME: reference.tag or name}
    return msgspec.structs.replace(target, annotations=annotations)


def _add_docker(docker: dict[str, _DockerImage], value: Image | ImageIndex, name: str) -> None:
    try:
        chosen = value.select() if isinstance(value, ImageIndex) else value
        config, layers = chosen.manifest.config.digest, chosen.manifest.layers
    except NotFound:
        return  # for this machine there is nothing in it, and Docker's form knows one platform only
    reference = Reference.parse(name, default_tag="")
    tags = (reference.familiar,) if reference.tag and not reference.digest else ()
    known = docker.get(config)
    docker[config] = _DockerImage(
        config=_blob_path(config),
        layers=tuple(_blob_path(layer.digest) for layer in layers),
        repo_tags=(*(known.repo_tags or () if known else ()), *tags),
    )


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


# ------------------------------------------------------------------ load


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was loaded: its name, empty if the archive gives none, and what it is."""

    name: str
    target: Descriptor


@dataclass(slots=True)
class _Archive:
    """What an archive's members became."""

    files: dict[str, Descriptor] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def get(self, path: str) -> Descriptor:
        for _ in range(8):
            path = os.path.normpath(path)
            if path in self.files:
                return self.files[path]
            if path not in self.links:
                break
            path = os.path.join(os.path.dirname(path), self.links[path])
        raise Corrupt(f'image archive: "{path[:200]}" is named in it, but not there')


def load(
    store: Store,
    namespace: str,
    read: Callable[[int], bytes],
    *,
    names: Sequence[str] = (),
    lease_seconds: float = 3600,
) -> list[Loaded]:
    """Read an archive of images into the store, and name them as it says.

    Args:
        store: Where to.
        namespace: Of the names.
        read: Gives up to so many bytes of the archive; empty at its end.
        names: Canonical names to use in place of the archive's, for an archive of one image.
        lease_seconds: How long reading may take.

    Raises:
        Corrupt: It is no image archive, or a damaged one; nothing has been named.
    """
    with store.leased(namespace, lease_seconds) as lease:
        try:
            archive = _read_members(store, bounded(read), lease)
        except (Corrupt, Exhausted, Unsupported) as error:
            # The reader of layers reads archives, too, and doesn't know which it has.
            raise type(error)(error.message.replace("layer: ", "image archive: ", 1), hint=error.hint) from None
        if "index.json" in archive.files:
            loaded = _from_layout(store, archive)
        elif "manifest.json" in archive.files:
            loaded = _from_docker(store, archive, lease)
        else:
            raise Corrupt("image archive: has neither index.json nor manifest.json", hint="is it an image archive?")
        if names:
            if len({one.target.digest for one in loaded}) != 1:
                raise InvalidInput("the archive has several images, which a name can't tell apart", field="name")
            loaded = [Loaded(name, loaded[0].target) for name in names]
        for one in loaded:
            _check_complete(image(store, one.target))
        with store.transaction(durable=True):
            for one in loaded:
                if one.name:
                    store.images(namespace).put(one.name, one.target)
    return loaded


def _read_members(store: Store, pieces: Iterator[bytes], lease: Lease) -> _Archive:
    reader = Reader(lambda: next(pieces, b""))
    archive = _Archive()
    while entry := reader.next():
        name = os.path.normpath(os.fsdecode(entry.name))
        if len(archive.files) + len(archive.links) > _MEMBERS:
            raise Exhausted(f"image archive: more than {_MEMBERS} members")
        if entry.type == tar.SYMLINK:
            archive.links[name] = os.fsdecode(entry.linkname)
        elif entry.type == tar.HARD_LINK:
            archive.links[name] = os.path.relpath(os.fsdecode(entry.linkname), os.path.dirname(name) or ".")
        elif entry.type == tar.REGULAR:
            if entry.sparse is not None:
                raise Corrupt(f'image archive: "{show(entry.name)}" is sparse')
            with store.content.writer(None, lease=lease) as writer:
                reader.copy(entry.size, writer.write)
                archive.files[name] = writer.commit()
    return archive


def _from_layout(store: Store, archive: _Archive) -> list[Loaded]:
    index = decode_as(store.content.read(archive.get("index.json")), Index, "index.json")
    loaded = []
    for target in index.manifests:
        name = target.annotations.get(_FULL_NAME) or target.annotations.get(REF_NAME, "")
        plain = msgspec.structs.replace(target, annotations={})
        loaded.append(Loaded(_full_name(name), plain))
    if not loaded:
        raise Corrupt("image archive: its index.json lists nothing")
    return loaded


def _full_name(name: str) -> str:
    """An annotation as a name: only if it is one with a repository, for a tag alone names nothing."""
    if "/" not in name and ":" not in name:
        return ""
    try:
        return str(Reference.parse(name))
    except InvalidInput:
        return ""


def _from_docker(store: Store, archive: _Archive, lease: Lease) -> list[Loaded]:
    items = decode_as(store.content.read(archive.get("manifest.json")), tuple[_DockerImage, ...], "manifest.json")
    loaded: list[Loaded] = []
    for item in items:
        config = msgspec.structs.replace(archive.get(item.config), media_type=spec.MT_DOCKER_CONFIG)
        layers = tuple(
            msgspec.structs.replace(layer, media_type=_layer_type(store, layer))
            for layer in map(archive.get, item.layers)
        )
        manifest = spec.Manifest(schema_version=2, media_type=spec.MT_DOCKER_MANIFEST, config=config, layers=layers)
        target = store.content.put(spec.encode(manifest), spec.MT_DOCKER_MANIFEST, lease=lease)
        names = [str(Reference.parse(tag)) for tag in item.repo_tags or ()] or [""]
        loaded += [Loaded(name, target) for name in names]
    return loaded


def _layer_type(store: Store, layer: Descriptor) -> str:
    with store.content.open(layer.digest) as file:
        first = file.read(4)
    if first.startswith(b"\x1f\x8b"):
        return spec.MT_DOCKER_LAYER_GZIP
    return spec.MT_DOCKER_LAYER_ZSTD if first == b"\x28\xb5\x2f\xfd" else spec.MT_DOCKER_LAYER


def _check_complete(value: Image | ImageIndex) -> None:
    """See that what will be named is there and makes sense."""
    try:
        _gather(value, {})
        if isinstance(value, Image) and value.manifest.config.media_type in spec.CONFIG_TYPES:
            _ = value.layers
    except NotFound as error:
        raise Corrupt(f"image archive: incomplete: {error}") from None

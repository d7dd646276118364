"""Images into and out of the store: `save` and `load`, and the store as a source and sink of :mod:`sampan.image`.

An archive is read in one pass, from a pipe if need be and through gzip or zstd: each member becomes a blob under a
lease; what its index leads to is kept, the rest is garbage. Read are OCI archives (image-layout.md in a tar) and
Docker's (``manifest.json`` and layers); written is one that is both, as Docker does since version 25.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import msgspec

from sampan.errors import AlreadyExists, Corrupt, Exhausted, InvalidInput, NotFound, Unsupported
from sampan.image import docker as docker_form
from sampan.image import tar
from sampan.image.decompress import bounded
from sampan.image.layout import FULL_NAME, MARKER, NAME, VERSION, blob_path, whole_name
from sampan.image.model import Image, ImageIndex, at
from sampan.image.pack import Writer as TarWriter
from sampan.image.reference import Reference
from sampan.image.tar import Entry, Reader, show
from sampan.image.writing import gather, write
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, Index, decode_as
from sampan.storage.records import Lease
from sampan.storage.store import Store

_MEMBERS = 100_000


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
    return write(value, StoreSink(store, lease), whole=False)


class StoreSink:
    """The store as a sink; what is written gets no name.

    Args:
        store: The store.
        lease: Keeps what is written.
    """

    def __init__(self, store: Store, lease: Lease | None = None) -> None:
        self._content = store.content
        self._lease = lease

    def has(self, target: Descriptor) -> bool:
        """See :class:`~sampan.image.writing.Sink`."""
        if self._lease is not None:
            self._lease.add_content(target.digest)
        return self._content.exists(target.digest)

    def put_blob(self, target: Descriptor, pieces: Iterator[bytes]) -> str:
        """See :class:`~sampan.image.writing.Sink`."""
        try:
            writer = self._content.writer(target, lease=self._lease, resume=False)
        except AlreadyExists:
            return "exists"
        with writer:
            for piece in pieces:
                writer.write(piece)
            writer.commit()
        return "copied"

    def put_document(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        self._content.put(data, target.media_type, lease=self._lease)

    def finish(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        self.put_document(target, data)

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""


# ------------------------------------------------------------------ save


def save(store: Store, namespace: str, names: Sequence[str], put: Callable[[bytes], object]) -> None:
    """Write images as an archive that OCI's and Docker's tools read.

    Args:
        store: Where they are.
        namespace: Of the names.
        names: Canonical image names.
        put: Takes the archive's bytes.

    Raises:
        NotFound: There is no such image, or it is not complete.
    """
    if not names:
        raise InvalidInput("is empty", field="names")
    entries = [store.images(namespace).get(name) for name in names]
    blobs: dict[str, Descriptor] = {}
    docker: dict[str, docker_form.Entry] = {}
    for entry in entries:
        value = image(store, entry.target)
        parts = gather(value, whole=False)
        blobs |= {digest: target for digest, (_, target) in parts.blobs.items()}
        blobs |= {digest: document.descriptor for digest, document in parts.documents.items()}
        _add_docker(docker, value, entry.name)
    index = Index(
        schema_version=2,
        media_type=spec.MT_OCI_INDEX,
        manifests=tuple(_named(entry.target, entry.name) for entry in entries),
    )
    archive = TarWriter(put)
    archive.file(MARKER, VERSION)
    for digest, target in blobs.items():
        member = Entry()
        member.name, member.mode, member.size = blob_path(digest).encode(), 0o644, target.size
        with store.content.reader(digest, target.size) as reader:
            archive.member(member, reader.chunks())
    archive.file("index.json", spec.encode(index))
    archive.file("manifest.json", spec.encode(list(docker.values())))
    archive.close()


def _named(target: Descriptor, name: str) -> Descriptor:
    reference = Reference.parse(name, default_tag="")
    annotations = {**target.annotations, FULL_NAME: name, NAME: reference.tag or name}
    return msgspec.structs.replace(target, annotations=annotations)


def _add_docker(docker: dict[str, docker_form.Entry], value: Image | ImageIndex, name: str) -> None:
    try:
        chosen = value.select() if isinstance(value, ImageIndex) else value
        config, layers = chosen.manifest.config.digest, chosen.manifest.layers
    except NotFound:
        return  # for this machine there is nothing in it, and Docker's form knows one platform only
    reference = Reference.parse(name, default_tag="")
    tags = (reference.familiar,) if reference.tag and not reference.digest else ()
    known = docker.get(config)
    docker[config] = docker_form.Entry(
        config=blob_path(config),
        layers=tuple(blob_path(layer.digest) for layer in layers),
        repo_tags=(*(known.repo_tags or () if known else ()), *tags),
    )


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
        name = target.annotations.get(FULL_NAME) or target.annotations.get(NAME, "")
        plain = msgspec.structs.replace(target, annotations={})
        loaded.append(Loaded(whole_name(name), plain))
    if not loaded:
        raise Corrupt("image archive: its index.json lists nothing")
    return loaded


def _from_docker(store: Store, archive: _Archive, lease: Lease) -> list[Loaded]:
    items = decode_as(store.content.read(archive.get("manifest.json")), tuple[docker_form.Entry, ...], "manifest.json")
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
        return docker_form.layer_type(file.read(4))


def _check_complete(value: Image | ImageIndex) -> None:
    """See that what will be named is there and makes sense."""
    try:
        gather(value, whole=False)
        if isinstance(value, Image) and value.manifest.config.media_type in spec.CONFIG_TYPES:
            _ = value.layers
    except NotFound as error:
        raise Corrupt(f"image archive: incomplete: {error}") from None

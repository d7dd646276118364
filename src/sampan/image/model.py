"""Images as values: immutable, lazy, from any source to any sink.

An :class:`Image` is a descriptor and a source of blobs; everything else is derived and read when asked for. A source
is anything with ``read`` and ``open`` (:class:`Blobs`): an OCI layout (layout.py), the store, memory. So a new source
is a class of two methods, and a change (:func:`append_layer`, :func:`with_config`) is a new image over two sources.
"""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Protocol

import msgspec

from sampan.errors import Corrupt, Exhausted, NotFound, Unsupported
from sampan.image.decompress import bounded
from sampan.spec import image as spec
from sampan.spec.image import (
    FOREIGN_LAYER_TYPES,
    INDEX_TYPES,
    LAYER_TYPES,
    Descriptor,
    History,
    ImageConfig,
    Platform,
)

_CHUNK = 1 << 20
#: An index in an index is allowed by the specification; some levels more are a loop or a bad joke.
_DEPTH_LIMIT = 4


class Blobs(Protocol):
    """A source of blobs."""

    def read(self, target: Descriptor) -> bytes:
        """A small blob, verified. Raises NotFound, Corrupt."""

    def open(self, target: Descriptor) -> IO[bytes]:
        """A blob to be read once, unverified; the caller closes it. Raises NotFound."""


class MemoryBlobs:
    """Blobs in memory, over another source."""

    def __init__(self, blobs: dict[str, bytes], below: Blobs | None = None) -> None:
        self._blobs = blobs
        self._below = below

    def read(self, target: Descriptor) -> bytes:
        """See :class:`Blobs`."""
        if target.digest in self._blobs:
            return self._blobs[target.digest]
        if self._below is None:
            raise NotFound(f"content {target.digest}: not in this image")
        return self._below.read(target)

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`Blobs`."""
        import io

        if target.digest in self._blobs or self._below is None:
            return io.BytesIO(self.read(target))
        return self._below.open(target)


@dataclass(frozen=True)
class Layer:
    """A layer of an image."""

    blobs: Blobs
    descriptor: Descriptor
    diff_id: str

    @property
    def foreign(self) -> bool:
        """Whether its bytes are only where its URLs say."""
        return self.descriptor.media_type in FOREIGN_LAYER_TYPES

    def compressed(self) -> Iterator[bytes]:
        """Its bytes as stored; ends in Corrupt if they are not what the digest says."""
        return _verified(self.blobs, self.descriptor)

    def uncompressed(self) -> Iterator[bytes]:
        """Its archive; ends in Corrupt if it is not what the diff ID says, in Exhausted if it expands beyond reason."""
        digest = hashlib.sha256()
        with self.blobs.open(self.descriptor) as file:
            for piece in bounded(file.read):
                digest.update(piece)
                yield piece
        if f"sha256:{digest.hexdigest()}" != self.diff_id:
            raise Corrupt(f"layer {self.descriptor.digest}: does not expand to {self.diff_id}")


@dataclass(frozen=True)
class Image:
    """An image of one platform."""

    blobs: Blobs
    descriptor: Descriptor

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.descriptor.digest

    @cached_property
    def raw_manifest(self) -> bytes:
        """The manifest as it is."""
        return self.blobs.read(self.descriptor)

    @cached_property
    def manifest(self) -> spec.Manifest:
        """The manifest."""
        document = spec.decode_manifest(self.raw_manifest, self.descriptor.media_type)
        if isinstance(document, spec.Index):
            raise Corrupt(f"image {self.digest}: is an index")
        return document

    @cached_property
    def raw_config(self) -> bytes:
        """The configuration as it is."""
        return self.blobs.read(self.manifest.config)

    @cached_property
    def config(self) -> ImageConfig:
        """The configuration."""
        return spec.decode_config(self.raw_config)

    @property
    def id(self) -> str:
        """The configuration's digest."""
        return self.manifest.config.digest

    @property
    def size(self) -> int:
        """Bytes of all its blobs, as stored."""
        return len(self.raw_manifest) + self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, lowest first.

        Raises:
            Corrupt: The configuration has another number of them.
        """
        layers, diff_ids = self.manifest.layers, self.config.rootfs.diff_ids
        if len(layers) != len(diff_ids):
            raise Corrupt(f"image {self.digest}: {len(layers)} layers, but {len(diff_ids)} diff IDs")
        return tuple(Layer(self.blobs, d, i) for d, i in zip(layers, diff_ids, strict=True))


@dataclass(frozen=True)
class ImageIndex:
    """Images of several platforms. ``depth``: how many indexes it lies in."""

    blobs: Blobs
    descriptor: Descriptor
    depth: int = 0

    @property
    def digest(self) -> str:
        """The index's digest."""
        return self.descriptor.digest

    @cached_property
    def raw_manifest(self) -> bytes:
        """The index as it is."""
        return self.blobs.read(self.descriptor)

    @cached_property
    def index(self) -> spec.Index:
        """The index.

        Raises:
            Corrupt: It is none, or lies in too many others.
        """
        if self.depth >= _DEPTH_LIMIT:
            raise Corrupt(f"image {self.descriptor.digest}: indexes are nested more than {_DEPTH_LIMIT} deep")
        document = spec.decode_manifest(self.raw_manifest, self.descriptor.media_type)
        if not isinstance(document, spec.Index):
            raise Corrupt(f"image {self.descriptor.digest}: is no index")
        return document

    def children(self) -> "Iterator[Image | ImageIndex]":
        """What it lists, in its order; whether the source has them or not."""
        for descriptor in self.index.manifests:
            yield at(self.blobs, descriptor, self.depth + 1)

    def select(self, platform: Platform | None = None) -> "Image":
        """The image for a platform, this machine's by default.

        Raises:
            NotFound: There is none.
        """
        chosen = at(self.blobs, spec.select_platform(self.index, platform), self.depth + 1)
        return chosen.select(platform) if isinstance(chosen, ImageIndex) else chosen


#: The short name, beside :class:`Image` and :class:`Layer`; :class:`sampan.spec.image.Index` is the document.
Index = ImageIndex


def at(blobs: Blobs, descriptor: Descriptor, depth: int = 0) -> Image | ImageIndex:
    """What a descriptor leads to; ``depth``: in how many indexes it was found."""
    if descriptor.media_type in INDEX_TYPES:
        return ImageIndex(blobs, descriptor, depth)
    return Image(blobs, descriptor)


# ------------------------------------------------------------------ validate


def validate(image: Image) -> list[str]:
    """Check everything there is to check, reading every byte; returns the faults, none for a sound image."""
    faults: list[str] = []
    try:
        layers = image.layers
    except Corrupt as error:
        return [str(error)]
    for number, layer in enumerate(layers):
        where = f"layers[{number}]"
        if layer.foreign:
            continue
        if layer.descriptor.media_type not in LAYER_TYPES:
            faults.append(f'{where}.mediaType: "{layer.descriptor.media_type}" is unknown')
        try:
            for _ in layer.compressed():
                pass
            for _ in layer.uncompressed():
                pass
        except (Corrupt, Exhausted, NotFound, Unsupported) as error:
            faults.append(f"{where}: {error}")
    return faults


def _verified(blobs: Blobs, descriptor: Descriptor) -> Iterator[bytes]:
    algorithm, encoded = spec.check_digest(descriptor.digest)
    digest = hashlib.new(algorithm)
    size = 0
    with blobs.open(descriptor) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
            if size > descriptor.size:
                break
            yield piece
    if size != descriptor.size or digest.hexdigest() != encoded:
        raise Corrupt(f"content {descriptor.digest}: the bytes have another digest or size")


# ------------------------------------------------------------------ mutate


def with_config(image: Image, config: ImageConfig) -> Image:
    """The same layers with another configuration."""
    return _rebuilt(image, config, image.manifest.layers, {})


def append_layer(image: Image, archive: bytes, *, created_by: str = "", compress: bool = True) -> Image:
    """One more layer on top.

    Args:
        image: The image below.
        archive: The layer, an uncompressed tar archive.
        created_by: For the history.
        compress: Store it with gzip, without a time in it, so that the same archive gives the same digest.
    """
    data = gzip.compress(archive, 6, mtime=0) if compress else archive
    layer = spec.describe(data, spec.MT_OCI_LAYER_GZIP if compress else spec.MT_OCI_LAYER)
    config = msgspec.structs.replace(
        image.config,
        rootfs=spec.RootFs(diff_ids=(*image.config.rootfs.diff_ids, spec.digest_of(archive))),
        history=(*(image.config.history or ()), History(created_by=created_by)),
    )
    return _rebuilt(image, config, (*image.manifest.layers, layer), {layer.digest: data})


def empty(platform: Platform | None = None) -> Image:
    """An image without layers, to append to."""
    wanted = platform or Platform.host()
    config = spec.encode(ImageConfig(architecture=wanted.architecture, os=wanted.os, variant=wanted.variant))
    described = spec.describe(config, spec.MT_OCI_CONFIG)
    manifest = spec.encode(spec.Manifest(schema_version=2, media_type=spec.MT_OCI_MANIFEST, config=described))
    target = spec.describe(manifest, spec.MT_OCI_MANIFEST)
    return Image(MemoryBlobs({described.digest: config, target.digest: manifest}), target)


def _rebuilt(image: Image, config: ImageConfig, layers: tuple[Descriptor, ...], blobs: dict[str, bytes]) -> Image:
    encoded = spec.encode(config)
    described = spec.describe(encoded, image.manifest.config.media_type)
    manifest = spec.encode(msgspec.structs.replace(image.manifest, config=described, layers=layers))
    target = spec.describe(manifest, image.descriptor.media_type)
    added = {**blobs, described.digest: encoded, target.digest: manifest}
    return Image(MemoryBlobs(added, image.blobs), target)

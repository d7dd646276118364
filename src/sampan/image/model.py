"""Images as values: immutable, lazy, from any source to any sink.

An :class:`Image` is a descriptor and a source of blobs; everything else is derived and read when asked for. A source
is anything with ``read`` and ``open`` (:class:`Blobs`): an OCI layout (layout.py), the store, a registry, memory. So a
new source is a class of two methods, and a change (:mod:`sampan.image.mutate`) is a new image over two sources. Sinks
are in :mod:`sampan.image.writing`, checks in :mod:`sampan.image.validate`.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Protocol

from sampan.errors import Corrupt, NotFound
from sampan.image.decompress import bounded
from sampan.spec import image as spec
from sampan.spec.image import (
    FOREIGN_LAYER_TYPES,
    INDEX_TYPES,
    Descriptor,
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
        return verified(self.blobs, self.descriptor)

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
class _Document:
    """A manifest or an index, where it is."""

    blobs: Blobs
    descriptor: Descriptor

    @property
    def digest(self) -> str:
        """The document's digest."""
        return self.descriptor.digest

    @cached_property
    def raw_manifest(self) -> bytes:
        """The document as it is."""
        return self.blobs.read(self.descriptor)


@dataclass(frozen=True)
class Image(_Document):
    """An image of one platform."""

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
    def parts(self) -> tuple[Descriptor, ...]:
        """Its configuration and layers, each once, as far as they are where the manifest is: foreign ones are not."""
        listed = (self.manifest.config, *self.manifest.layers)
        return tuple({one.digest: one for one in listed if one.media_type not in FOREIGN_LAYER_TYPES}.values())

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
class ImageIndex(_Document):
    """Images of several platforms. ``depth``: how many indexes it lies in."""

    depth: int = 0

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


# ------------------------------------------------------------------ bytes


def verified(blobs: Blobs, target: Descriptor) -> Iterator[bytes]:
    """A blob's bytes; see :func:`checked`."""
    with blobs.open(target) as file:
        yield from checked(target, iter(lambda: file.read(_CHUNK), b""))


def checked(target: Descriptor, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes; raises at the end, or as soon as they are too many, if they are not what was promised.

    Raises:
        Corrupt: Digest or size differ.
    """
    algorithm, expected = spec.check_digest(target.digest)
    found, size = hashlib.new(algorithm), 0
    for piece in pieces:
        size += len(piece)
        if size > target.size:
            raise Corrupt(f"content {target.digest}: more than the {target.size} bytes promised")
        found.update(piece)
        yield piece
    if size != target.size or found.hexdigest() != expected:
        raise Corrupt(f"content {target.digest}: the {size} bytes that came have digest {found.hexdigest()}")

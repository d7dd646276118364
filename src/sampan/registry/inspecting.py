"""Looking into an image where it is: for an index, what each platform's image runs."""

from collections.abc import Iterator
from itertools import islice

import msgspec

from sampan.errors import Exhausted, NotFound, SampanError
from sampan.image.model import Image, ImageIndex
from sampan.spec.image import CONFIG_TYPES, Descriptor, ImageConfig, Platform

#: More images than any index has, unless its indexes list each other's again and again.
_IMAGES_LIMIT = 10_000


class PlatformImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of an index."""

    os: str
    architecture: str
    variant: str
    digest: str
    media_type: str
    #: Bytes of its configuration and layers; None where it could not be looked into.
    size: int | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    #: Why entrypoint, command and size are not known: this platform is not where the index is.
    missing: str = ""


def platforms(index: ImageIndex) -> list[PlatformImage]:
    """Every image of an index, and of the indexes in it.

    Raises:
        Corrupt: A document is not what its digest says.
        Exhausted: They are too many.
    """
    found = list(islice(_platforms(index), _IMAGES_LIMIT + 1))
    if len(found) > _IMAGES_LIMIT:
        raise Exhausted(f"image {index.digest}: lists more than {_IMAGES_LIMIT} images")
    return found


def _platforms(index: ImageIndex) -> Iterator[PlatformImage]:
    for child in index.children():
        try:
            if isinstance(child, ImageIndex):
                yield from _platforms(child)
            else:
                yield _described(child)
        except NotFound as error:
            yield _missing(child.descriptor, error)


def _described(image: Image) -> PlatformImage:
    config = configuration(image)
    # The index's word comes first: it is what a machine chooses by; a manifest in it may say nothing.
    platform = image.descriptor.platform or (config.platform if config else Platform())
    container = config.container if config else None
    return PlatformImage(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        digest=image.digest,
        media_type=image.descriptor.media_type,
        size=sum(blob.size for blob in (image.manifest.config, *image.manifest.layers)),
        entrypoint=container.entrypoint if container else None,
        command=container.cmd if container else None,
    )


def _missing(descriptor: Descriptor, error: SampanError) -> PlatformImage:
    platform = descriptor.platform or Platform()
    return PlatformImage(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        digest=descriptor.digest,
        media_type=descriptor.media_type,
        missing=error.message,
    )


def configuration(image: Image) -> ImageConfig | None:
    """An image's configuration; None for an artifact, whose configuration is anything."""
    return image.config if image.manifest.config.media_type in CONFIG_TYPES else None

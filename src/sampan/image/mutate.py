"""Changing an image: each change gives a new one over the same blobs, and leaves the old one as it was."""

import gzip

import msgspec

from sampan.image.model import Image, MemoryBlobs
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, History, ImageConfig, Platform


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

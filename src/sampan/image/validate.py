"""Checking an image: every byte that there is of it, and what its documents say of each other."""

from collections.abc import Iterator

from sampan.errors import Corrupt, Exhausted, InvalidInput, NotFound, Unsupported
from sampan.image.model import Image, ImageIndex, Layer, verified
from sampan.spec.image import CONFIG_TYPES, LAYER_TYPES

_WRONG = (Corrupt, Exhausted, InvalidInput, NotFound, Unsupported)


def faults(value: Image | ImageIndex) -> list[str]:
    """Check everything there is to check, reading every byte; returns the faults, none for a sound image."""
    return list(_of(value, set()))


def _of(value: Image | ImageIndex, seen: set[str]) -> Iterator[str]:
    # An index may list one again and again.
    if value.digest in seen:
        return
    seen.add(value.digest)
    try:
        if isinstance(value, ImageIndex):
            for number, child in enumerate(value.children()):
                yield from (f"manifests[{number}]: {fault}" for fault in _of(child, seen))
        elif value.manifest.config.media_type in CONFIG_TYPES:
            for number, layer in enumerate(value.layers):
                yield from (f"layers[{number}]{fault}" for fault in _of_layer(layer))
        else:  # of what is no container's image the bytes alone can be wrong
            for target in value.parts:
                for _ in verified(value.blobs, target):
                    pass
    except _WRONG as error:
        yield str(error)


def _of_layer(layer: Layer) -> Iterator[str]:
    if layer.foreign:
        return
    if layer.descriptor.media_type not in LAYER_TYPES:
        yield f'.mediaType: "{layer.descriptor.media_type}" is unknown'
    try:
        for _ in layer.compressed():
            pass
        for _ in layer.uncompressed():
            pass
    except _WRONG as error:
        yield f": {error}"

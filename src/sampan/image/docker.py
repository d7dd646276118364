"""What ``docker save`` writes: ``manifest.json`` lists images by the files of their configuration and layers."""

import msgspec

from sampan.spec.image import MT_DOCKER_LAYER, MT_DOCKER_LAYER_GZIP, MT_DOCKER_LAYER_ZSTD


class Entry(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in ``manifest.json``."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


def layer_type(first: bytes) -> str:
    """Media type of a layer by its first four bytes: the list says nothing of it."""
    if first.startswith(b"\x1f\x8b"):
        return MT_DOCKER_LAYER_GZIP
    return MT_DOCKER_LAYER_ZSTD if first == b"\x28\xb5\x2f\xfd" else MT_DOCKER_LAYER

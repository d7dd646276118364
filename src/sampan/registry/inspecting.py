"""Looking into an image where it is: its documents, and for an index what each platform's image runs."""

from collections.abc import Iterator

import msgspec

from sampan.errors import Corrupt, NotFound, SampanError
from sampan.registry.copying import checked
from sampan.registry.places.interface import Source
from sampan.spec.image import (
    CONFIG_LIMIT,
    CONFIG_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    select_platform,
)

_DEPTH_LIMIT = 3


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


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An image of one platform, with the bytes of its documents."""

    descriptor: Descriptor
    raw: bytes
    manifest: Manifest
    raw_config: bytes
    #: None for an artifact, whose configuration is anything.
    config: ImageConfig | None


def raw_document(source: Source, descriptor: Descriptor) -> bytes:
    """A manifest or an index, byte for byte, checked."""
    return b"".join(checked(descriptor, iter([source.document(descriptor)])))


def platforms(source: Source, target: Descriptor) -> list[PlatformImage] | None:
    """Every image of an index; None if ``target`` is no index."""
    document = decode_manifest(raw_document(source, target), target.media_type)
    return list(_platforms(source, document, 0)) if isinstance(document, Index) else None


def _platforms(source: Source, index: Index, depth: int) -> Iterator[PlatformImage]:
    if depth >= _DEPTH_LIMIT:
        raise Corrupt(f"indexes are nested more than {_DEPTH_LIMIT} deep")
    for child in index.manifests:
        try:
            document = decode_manifest(raw_document(source, child), child.media_type)
            if isinstance(document, Index):
                yield from _platforms(source, document, depth + 1)
                continue
            yield _described(child, _found(source, child, document))
        except NotFound as error:
            yield _described(child, None, error.message)


def _described(child: Descriptor, found: Found | None, missing: str = "") -> PlatformImage:
    # The index's word comes first: it is what a machine chooses by; a manifest in it may say nothing.
    platform = child.platform or (found.config.platform if found and found.config else Platform())
    container = found.config.container if found and found.config else None
    sizes = [blob.size for blob in (found.manifest.config, *found.manifest.layers)] if found else []
    return PlatformImage(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        digest=child.digest,
        media_type=child.media_type,
        size=sum(sizes) if found else None,
        entrypoint=container.entrypoint if container else None,
        command=container.cmd if container else None,
        missing=missing,
    )


def find(source: Source, target: Descriptor, platform: Platform | None = None) -> Found:
    """The image of one platform, this machine's by default.

    Raises:
        NotFound: The index has none for it, or it is not there.
        Corrupt: A document is not what its digest says.
    """
    for _ in range(_DEPTH_LIMIT):
        document = decode_manifest(raw_document(source, target), target.media_type)
        if not isinstance(document, Index):
            return _found(source, target, document)
        target = select_platform(document, platform)
    raise Corrupt(f"indexes are nested more than {_DEPTH_LIMIT} deep")


def _found(source: Source, descriptor: Descriptor, manifest: Manifest) -> Found:
    raw = raw_document(source, descriptor)
    described = manifest.config
    if described.size > CONFIG_LIMIT:
        raise Corrupt(f"image config {described.digest}: says {described.size} bytes, too many")
    data = b"".join(checked(described, source.blob(described)))
    config = None
    if described.media_type in CONFIG_TYPES:
        try:
            config = decode_config(data)
        except SampanError as error:
            raise Corrupt(f"{described.digest}: {error.message}") from None
    return Found(descriptor=descriptor, raw=raw, manifest=manifest, raw_config=data, config=config)

"""Documents of the OCI image specification 1.1, and of Docker's schema 2, which has the same shape.

Scope: types, media types, digests, decoding with bounds. Out of scope: where the bytes come from
(:mod:`sampan.image`, :mod:`sampan.registry`) and where they are kept (:mod:`sampan.storage`).

A document is kept as bytes wherever its digest matters; a struct made from it is a view, and encoding the struct
again gives other bytes.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import msgspec

from sampan.errors import Corrupt, InvalidInput, NotFound, Unsupported

MT_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MT_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MT_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
MT_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
MT_OCI_LAYER_GZIP = MT_OCI_LAYER + "+gzip"
MT_OCI_LAYER_ZSTD = MT_OCI_LAYER + "+zstd"
MT_OCI_EMPTY = "application/vnd.oci.empty.v1+json"
MT_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MT_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MT_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MT_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
MT_DOCKER_LAYER_GZIP = MT_DOCKER_LAYER + ".gzip"
MT_DOCKER_LAYER_ZSTD = MT_DOCKER_LAYER + ".zstd"
MT_DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_MT_OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"

MANIFEST_TYPES = frozenset({MT_OCI_MANIFEST, MT_DOCKER_MANIFEST})
INDEX_TYPES = frozenset({MT_OCI_INDEX, MT_DOCKER_LIST})
CONFIG_TYPES = frozenset({MT_OCI_CONFIG, MT_DOCKER_CONFIG})
#: Layer media type -> compression. Foreign layers are absent: their bytes are not in the registry.
LAYER_TYPES = {
    MT_OCI_LAYER: "",
    MT_OCI_LAYER_GZIP: "gzip",
    MT_OCI_LAYER_ZSTD: "zstd",
    MT_DOCKER_LAYER: "",
    MT_DOCKER_LAYER_GZIP: "gzip",
    MT_DOCKER_LAYER_ZSTD: "zstd",
    # Some builders write the compression into Docker's uncompressed name in OCI's way.
    MT_DOCKER_LAYER + "+gzip": "gzip",
    MT_DOCKER_LAYER + "+zstd": "zstd",
}
FOREIGN_LAYER_TYPES = frozenset(
    {MT_DOCKER_LAYER_FOREIGN, *(_MT_OCI_NONDISTRIBUTABLE + suffix for suffix in ("", "+gzip", "+zstd"))}
)

#: The distribution specification asks registries to take manifests of at least 4 MiB; nobody takes more.
MANIFEST_LIMIT = 4 << 20
CONFIG_LIMIT = 8 << 20
_NESTING_LIMIT = 64

_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


def check_digest(text: str, *, field: str = "digest") -> tuple[str, str]:
    """Split ``algorithm:hex``, refusing anything else.

    Raises:
        InvalidInput: The form is wrong, or the algorithm is none of sha256, sha384, sha512.
    """
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        raise InvalidInput(f'"{text[:200]}" is not a digest: no algorithm', field=field)
    length = _DIGEST_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidInput(f'digest algorithm "{algorithm[:60]}" is not supported', field=field)
    if len(encoded) != length or not _HEX.match(encoded):
        raise InvalidInput(f'"{text[:200]}" is not a {algorithm} digest: {length} lower-case hex digits', field=field)
    return algorithm, encoded


def digest_of(data: bytes | memoryview) -> str:
    """The sha256 digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------ platforms

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
}


#: Machine -> architecture and variant of what else it runs, by how gladly; "no platform" is 1.
_ALSO_RUN = {
    "amd64": {("386", ""): 2},
    "arm64": {("arm", "v5"): 2, ("arm", "v6"): 3, ("arm", "v7"): 4, ("arm", "v8"): 5},
}


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What machine an image is for (image-index.md, "platform")."""

    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] = msgspec.field(default=(), name="os.features")
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Read ``os/architecture[/variant]``.

        Raises:
            InvalidInput: There are not two or three parts, or one has odd letters.
        """
        parts = text.strip().lower().split("/")
        if len(parts) not in (2, 3) or not all(re.fullmatch(r"[a-z0-9_.-]+", part) for part in parts):
            raise InvalidInput(f'"{text[:100]}" is not os/architecture[/variant]', field="platform")
        return cls(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "").normalised()

    @classmethod
    def host(cls) -> "Platform":
        """This machine's."""
        return cls(os="linux", architecture=os.uname().machine).normalised()

    def normalised(self) -> "Platform":
        """One name for each architecture: ``x86_64`` is ``amd64``; ``arm64/v8`` is ``arm64``; ``arm`` is ``v7``."""
        architecture, variant = _ARCHITECTURES.get(self.architecture, (self.architecture, ""))
        variant = self.variant or variant
        if (architecture, variant) in {("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")}:
            variant = ""
        elif architecture == "arm" and variant in {"", "7", "6", "5", "8"}:
            variant = f"v{variant or 7}"
        return msgspec.structs.replace(self, architecture=architecture, variant=variant)

    def rank(self, wanted: "Platform") -> int:
        """How well an image for this platform runs on ``wanted``: 0 not at all, more is better."""
        mine, other = self.normalised(), wanted.normalised()
        if mine.os != other.os:
            return 0
        if mine.architecture != other.architecture:
            return _ALSO_RUN.get(other.architecture, {}).get((mine.architecture, mine.variant), 0)
        if mine.variant == other.variant:
            return 100
        # ARM's and amd64's variants are levels: a machine of a level runs the lower ones.
        own, level = mine.variant or "v1", other.variant or "v1"
        if own[1:].isdecimal() and level[1:].isdecimal() and int(own[1:]) < int(level[1:]):
            return 10 + int(own[1:])
        return 0

    def matches(self, wanted: "Platform") -> bool:
        """Whether an image for this platform runs on ``wanted``."""
        return self.rank(wanted) > 0

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


# ------------------------------------------------------------------ documents

_T = TypeVar("_T")
if TYPE_CHECKING:
    #: Read from null as well, which Go's encoder writes for a list or map without members, and then empty.
    _Listed = Annotated[_T, "null is empty"]
else:
    _Listed = Optional[_T]  # noqa: UP045 - the other way of writing it is not generic


def _fill(document: msgspec.Struct, **empty: object) -> None:
    """Put each field's empty value where null was read."""
    for field, value in empty.items():
        if getattr(document, field) is None:
            msgspec.structs.force_setattr(document, field, value)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A typed, sized pointer to content (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    urls: _Listed[tuple[str, ...]] = ()
    annotations: _Listed[dict[str, str]] = {}
    #: The content itself, in base64, where a producer embedded it. Never trusted without its digest.
    data: str = ""
    artifact_type: str = ""
    platform: Platform | None = None

    def __post_init__(self) -> None:
        _fill(self, urls=(), annotations={})
        check_digest(self.digest)
        if self.size < 0:
            raise InvalidInput(f"{self.size} is negative", field="size")


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image manifest (manifest.md), or Docker's schema 2."""

    schema_version: int
    config: Descriptor
    # Written even if there are none, as the specification has it: only a constant default is left out.
    layers: _Listed[tuple[Descriptor, ...]] = msgspec.field(default_factory=lambda: ())
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: _Listed[dict[str, str]] = {}

    def __post_init__(self) -> None:
        _fill(self, layers=(), annotations={})


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image index (image-index.md), or Docker's manifest list."""

    schema_version: int
    manifests: _Listed[tuple[Descriptor, ...]] = msgspec.field(default_factory=lambda: ())
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: _Listed[dict[str, str]] = {}

    def __post_init__(self) -> None:
        _fill(self, manifests=(), annotations={})


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Docker's HEALTHCHECK; durations in nanoseconds."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """How a container of the image runs (config.md, "config"). Builders write null for nothing."""

    user: str | None = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str | None = ""
    labels: dict[str, str] | None = None
    stop_signal: str | None = ""
    args_escaped: bool | None = False
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] | None = None


class RootFs(msgspec.Struct, frozen=True):
    """The layers' uncompressed digests, lowest first."""

    type: str = "layers"
    diff_ids: _Listed[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _fill(self, diff_ids=())


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """What made a layer."""

    created: str | None = None
    author: str | None = ""
    created_by: str | None = ""
    comment: str | None = ""
    empty_layer: bool | None = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image's configuration (config.md); its digest is the image's id."""

    architecture: str = ""
    os: str = ""
    rootfs: RootFs = RootFs()
    config: ContainerConfig | None = None
    created: str | None = None
    author: str | None = ""
    os_version: str | None = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = ""
    history: tuple[History, ...] | None = None

    @property
    def platform(self) -> Platform:
        """What machine the image is for."""
        return Platform(
            architecture=self.architecture,
            os=self.os,
            os_version=self.os_version or "",
            os_features=self.os_features or (),
            variant=self.variant or "",
        )

    @property
    def container(self) -> ContainerConfig:
        """The ``config`` part, empty where there is none."""
        return self.config or ContainerConfig()


class _Shape(msgspec.Struct):
    """What tells a manifest from an index, looked at before either is decoded."""

    schema_version: int = msgspec.field(default=0, name="schemaVersion")
    media_type: str = msgspec.field(default="", name="mediaType")
    config: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="fsLayers")
    manifests: msgspec.Raw = msgspec.Raw()

    def has(self, field: str) -> bool:
        """Whether the document has the field, with something other than null."""
        return bytes(getattr(self, field)) not in (b"", b"null")


def _decode(data: bytes, kind: type[_T], what: str, limit: int) -> _T:
    if len(data) > limit:
        raise Corrupt(f"{what}: {len(data)} bytes are more than the {limit} that are read")
    _check_nesting(data, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Corrupt(f"{what}: {_field_path(str(error))}") from None
    except InvalidInput as error:
        raise Corrupt(f"{what}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{what}: not JSON: {error}") from None


def _check_nesting(data: bytes, what: str) -> None:
    """Refuse absurd nesting before a recursive decoder sees it; brackets in strings only make this stricter."""
    if data.count(b"[") + data.count(b"{") <= _NESTING_LIMIT:
        return
    depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', data):
        first = match.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > _NESTING_LIMIT:
                raise Corrupt(f"{what}: nested more than {_NESTING_LIMIT} deep")
        elif first in b"]}":
            depth -= 1


def _field_path(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.layers[0].size`" with the path first."""
    text, separator, path = message.partition(" - at `")
    return f"{path.rstrip('`').removeprefix('$.')}: {text}" if separator else text


def decode_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Decode a manifest or an index.

    Args:
        data: The document, whose digest the caller has checked.
        media_type: What the registry's header or the descriptor said it is, or empty.

    Raises:
        Corrupt: It is neither, or could be read as both (CVE-2021-41190), or is not what ``media_type`` says.
        Unsupported: It is a Docker schema 1 manifest.
    """
    shape = _decode(data, _Shape, "manifest", MANIFEST_LIMIT)
    if shape.schema_version == 1 or shape.has("fs_layers"):
        raise Unsupported("manifest: Docker schema 1 is not read", hint="push the image again with a newer tool")
    if shape.schema_version not in (0, 2):
        raise Corrupt(f"manifest: schemaVersion: {shape.schema_version} is not 2")
    if shape.has("manifests") and (shape.has("layers") or shape.has("config")):
        raise Corrupt("manifest: has both manifests and layers or config, so that two readers see two images")
    claims = {claim for claim in (shape.media_type, media_type) if claim in MANIFEST_TYPES | INDEX_TYPES}
    if len(claims) > 1:
        raise Corrupt(f"manifest: mediaType: says {shape.media_type} but came as {media_type}")
    is_index = shape.has("manifests")
    if not is_index and not shape.has("config"):
        is_index = bool(claims & INDEX_TYPES)
    if claims & (MANIFEST_TYPES if is_index else INDEX_TYPES):
        raise Corrupt(f"manifest: mediaType: {claims.pop()} does not fit the document's fields")
    if is_index:
        return _decode(data, Index, "index", MANIFEST_LIMIT)
    return _decode(data, Manifest, "manifest", MANIFEST_LIMIT)


def decode_config(data: bytes) -> ImageConfig:
    """Decode an image's configuration, checking its diff IDs.

    Raises:
        Corrupt: It is not one.
    """
    config = _decode(data, ImageConfig, "image config", CONFIG_LIMIT)
    for number, diff_id in enumerate(config.rootfs.diff_ids):
        try:
            check_digest(diff_id, field=f"rootfs.diff_ids[{number}]")
        except InvalidInput as error:
            raise Corrupt(f"image config: {error}") from None
    return config


def decode_as(data: bytes, kind: type[_T], what: str, limit: int = MANIFEST_LIMIT) -> _T:
    """Decode another JSON document (``index.json``, Docker's ``manifest.json``) under the same bounds."""
    return _decode(data, kind, what, limit)


def encode(document: msgspec.Struct | Sequence[msgspec.Struct]) -> bytes:
    """Encode a document compactly; the same document gives the same bytes."""
    return msgspec.json.encode(document)


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of ``data``."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def select_platform(index: Index, wanted: Platform | None = None) -> Descriptor:
    """The best manifest of ``index`` for a machine; this one by default.

    Raises:
        NotFound: None fits; the message lists what there is.
    """
    wanted = wanted or Platform.host()
    best: tuple[int, Descriptor] | None = None
    for candidate in index.manifests:
        # An entry that names no platform is for anyone, if nothing fits better; attestations name "unknown".
        rank = candidate.platform.rank(wanted) if candidate.platform else 1
        if candidate.media_type and candidate.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            rank = 0
        if rank and (best is None or rank > best[0]):
            best = (rank, candidate)
    if best is None:
        raise NotFound(f"no image for {wanted} in the index, which has {_platforms(index.manifests)}")
    return best[1]


def _platforms(manifests: Iterable[Descriptor]) -> str:
    names = sorted({str(d.platform) for d in manifests if d.platform and d.platform.os != "unknown"})
    return ", ".join(names) or "none"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """For each layer the id of it and all below it (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain

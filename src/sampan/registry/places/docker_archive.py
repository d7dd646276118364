"""``docker-archive:``: what ``docker save`` writes and ``docker load`` reads.

``manifest.json`` lists images: the file of the configuration, the files of the layers as plain tars, the names. An
image has no manifest of its own there; reading makes one (Docker's schema 2) that is the same each time.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import msgspec

from sampan.errors import Corrupt, InvalidInput, NotFound, StageFailed, Unsupported
from sampan.image.decompress import bounded
from sampan.image.docker import Entry, layer_type
from sampan.image.files import Archive, write_file
from sampan.image.reference import Reference
from sampan.registry.places.interface import Source
from sampan.registry.places.layout import pack
from sampan.spec.image import (
    CONFIG_LIMIT,
    LAYER_TYPES,
    MANIFEST_LIMIT,
    MT_DOCKER_CONFIG,
    MT_DOCKER_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    decode_as,
    decode_config,
    decode_manifest,
    describe,
    encode,
)


class DockerArchiveSource(Source):
    """An image in an archive of docker save's.

    Args:
        file: The archive.
        name: Which image; empty for the only one.
    """

    def __init__(self, file: str, name: str = "") -> None:
        self._archive = Archive(file)
        self._paths: dict[str, str] = {}
        try:
            data = self._archive.read("manifest.json", MANIFEST_LIMIT)
            self._entry = _choose(decode_as(data, list[Entry], f"{file}: manifest.json"), name, file)
            self._manifest = self._make_manifest()
        except BaseException:
            self._archive.close()
            raise

    def _make_manifest(self) -> bytes:
        data = self._archive.read(self._entry.config, CONFIG_LIMIT)
        if len(decode_config(data).rootfs.diff_ids) != len(self._entry.layers):
            raise Corrupt(f"{self._archive.name}: its configuration speaks of another number of layers")
        config = describe(data, MT_DOCKER_CONFIG)
        self._paths[config.digest] = self._entry.config
        layers = tuple(self._describe(path) for path in self._entry.layers)
        return encode(Manifest(schema_version=2, media_type=MT_DOCKER_MANIFEST, config=config, layers=layers))

    def _describe(self, path: str) -> Descriptor:
        digest, first = hashlib.sha256(), b""
        for chunk in self._archive.chunks(path):
            first = first or chunk[:4]
            digest.update(chunk)
        name = f"sha256:{digest.hexdigest()}"
        self._paths[name] = path
        return Descriptor(media_type=layer_type(first), digest=name, size=self._archive.size(path))

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return describe(self._manifest, MT_DOCKER_MANIFEST)

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        if descriptor.digest != self.target().digest:
            raise NotFound(f"{self._archive.name}: has no manifest {descriptor.digest}")
        return self._manifest

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._archive.chunks(self._paths[descriptor.digest])

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Source`."""
        self._archive.close()


def _choose(entries: list[Entry], name: str, file: str) -> Entry:
    if not name:
        if len(entries) != 1:
            tags = ", ".join(tag for entry in entries for tag in entry.repo_tags or ())
            raise InvalidInput(f"holds {len(entries)} images ({tags}): say which as {file}:NAME", field=file)
        return entries[0]
    wanted = str(Reference.parse(name))
    for entry in entries:
        if any(str(Reference.parse(tag)) == wanted for tag in entry.repo_tags or ()):
            return entry
    raise NotFound(f'{file}: has no image "{name}"')


class DockerArchiveSink:
    """Writes one image into a new archive, its layers as plain tars.

    Args:
        file: The archive, replaced when the new one is whole.
        name: What docker load will call the image; empty for no name.
    """

    def __init__(self, file: str, name: str = "") -> None:
        self._file = os.path.abspath(file)
        self._name = Reference.parse(name).familiar if name else ""
        try:
            self._work = tempfile.mkdtemp(prefix=f".{os.path.basename(file)}.", dir=os.path.dirname(self._file))
        except OSError as error:
            raise StageFailed("write archive", error, path=file) from error

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`~sampan.image.writing.Sink`."""
        return os.path.exists(self._blob(descriptor.digest))

    def _blob(self, digest: str) -> str:
        return os.path.join(self._work, "blobs", digest.replace(":", "-"))

    def put_blob(self, descriptor: Descriptor, pieces: Iterator[bytes]) -> str:
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(self._blob(descriptor.digest), pieces)
        return "copied"

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:  # noqa: ARG002 - a sink gets both
        """See :class:`~sampan.image.writing.Sink`; it comes for an index's images only."""
        raise Unsupported("a docker archive has no place for an index", hint="choose a platform")

    def finish(self, descriptor: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        manifest = decode_manifest(data, descriptor.media_type)
        if isinstance(manifest, Index):
            raise Unsupported("a docker archive has no place for an index", hint="choose a platform")
        tree = os.path.join(self._work, "tree")
        os.makedirs(tree)
        config = f"{manifest.config.digest.partition(':')[2]}.json"
        os.link(self._blob(manifest.config.digest), os.path.join(tree, config))
        layers = tuple(self._expand(layer, tree) for layer in manifest.layers)
        entry = Entry(config=config, repo_tags=(self._name,) if self._name else None, layers=layers)
        write_file(os.path.join(tree, "manifest.json"), [msgspec.json.encode([entry])])
        pack(tree, os.path.join(self._work, "tar"))
        os.rename(os.path.join(self._work, "tar"), self._file)

    def _expand(self, layer: Descriptor, tree: str) -> str:
        if layer.media_type not in LAYER_TYPES:
            raise Unsupported(f"layer {layer.digest}: {layer.media_type}: not a layer of a container's image")
        name = f"{layer.digest.partition(':')[2]}.tar"
        if os.path.exists(os.path.join(tree, name)):
            return name
        with open(self._blob(layer.digest), "rb") as file:
            write_file(os.path.join(tree, name), bounded(file.read))
        return name

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        shutil.rmtree(self._work, ignore_errors=True)

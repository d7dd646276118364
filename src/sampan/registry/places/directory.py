"""``dir:``: one image's files as skopeo lays them out: ``version``, ``manifest.json``, blobs named by hex digits."""

import os
from collections.abc import Iterator

from sampan.errors import NotFound, WrongState
from sampan.image.files import blob_chunks, read_small, write_file
from sampan.registry.places.interface import Source
from sampan.spec.image import (
    MANIFEST_LIMIT,
    MT_OCI_INDEX,
    MT_OCI_MANIFEST,
    Descriptor,
    Index,
    check_digest,
    decode_manifest,
    describe,
)

_VERSION = b"Directory Transport Version: 1.1\n"


class DirectorySource(Source):
    """Reads such a directory."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        if not os.path.exists(os.path.join(folder, "manifest.json")):
            raise NotFound(f"{folder}: has no manifest.json")

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        data = read_small(os.path.join(self._folder, "manifest.json"), MANIFEST_LIMIT)
        document = decode_manifest(data)
        assumed = MT_OCI_INDEX if isinstance(document, Index) else MT_OCI_MANIFEST
        return describe(data, document.media_type or assumed)

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        child = os.path.join(self._folder, f"{check_digest(descriptor.digest)[1]}.manifest.json")
        path = child if os.path.exists(child) else os.path.join(self._folder, "manifest.json")
        return read_small(path, MANIFEST_LIMIT)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return blob_chunks(os.path.join(self._folder, check_digest(descriptor.digest)[1]))


class DirectorySink:
    """Writes such a directory, which must be new, empty, or such a one."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, "version")):
            raise WrongState(f"{folder}: is neither empty nor of this form")
        write_file(os.path.join(folder, "version"), [_VERSION])

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`~sampan.image.writing.Sink`."""
        return os.path.exists(os.path.join(self._folder, check_digest(descriptor.digest)[1]))

    def put_blob(self, descriptor: Descriptor, pieces: Iterator[bytes]) -> str:
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(os.path.join(self._folder, check_digest(descriptor.digest)[1]), pieces)
        return "copied"

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(os.path.join(self._folder, f"{check_digest(descriptor.digest)[1]}.manifest.json"), [data])

    def finish(self, descriptor: Descriptor, data: bytes) -> None:  # noqa: ARG002 - a sink gets both
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(os.path.join(self._folder, "manifest.json"), [data])

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""

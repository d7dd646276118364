"""OCI image layouts: a directory of blobs with an index (image-layout.md). A source and a sink.

::

    oci-layout                      {"imageLayoutVersion": "1.0.0"}
    index.json                      what is named, by the annotation org.opencontainers.image.ref.name
    blobs/ALGORITHM/HEX
"""

import hashlib
import os
import secrets
from collections.abc import Iterable
from typing import IO

import msgspec

from sampan.errors import Corrupt, InvalidInput, NotFound, StageFailed
from sampan.image.model import Image, ImageIndex, at
from sampan.spec.image import MANIFEST_LIMIT, Descriptor, Index, check_digest, decode_as, encode

REF_NAME = "org.opencontainers.image.ref.name"
_MARKER = "oci-layout"
_READ_LIMIT = 16 << 20


class _Marker(msgspec.Struct, rename="camel"):
    image_layout_version: str


class Layout:
    """A layout directory.

    Args:
        path: The directory.
        create: Make it one if it is not there.

    Raises:
        NotFound: There is no layout.
        Corrupt: It is not a layout of version 1.
    """

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.path = path
        marker = os.path.join(path, _MARKER)
        if create and not os.path.exists(marker):
            try:
                os.makedirs(os.path.join(path, "blobs", "sha256"), exist_ok=True)
                _write(marker, b'{"imageLayoutVersion":"1.0.0"}')
            except OSError as error:
                raise StageFailed("make image layout", error) from error
        version = decode_as(self._file(_MARKER, 4096), _Marker, f"{path}/{_MARKER}").image_layout_version
        if not version.startswith("1."):
            raise Corrupt(f'{path}/{_MARKER}: version "{version}" is not 1')

    def _file(self, name: str, limit: int) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            raise NotFound(f"{self.path}: is no image layout, it has no {name}") from None
        except OSError as error:
            raise StageFailed("read image layout", error) from error

    # ---------------------------------------------------------------- source

    def index(self) -> Index:
        """What it lists; nothing for a new one."""
        if not os.path.exists(os.path.join(self.path, "index.json")):
            return Index(schema_version=2)
        return decode_as(self._file("index.json", MANIFEST_LIMIT), Index, f"{self.path}/index.json")

    def names(self) -> list[str]:
        """The names in it."""
        return [d.annotations[REF_NAME] for d in self.index().manifests if REF_NAME in d.annotations]

    def get(self, name: str = "") -> Image | ImageIndex:
        """The image of a name; without one the only image there is.

        Raises:
            NotFound: There is no such name.
            InvalidInput: No name was given, and there are several.
        """
        manifests = self.index().manifests
        found = [d for d in manifests if d.annotations.get(REF_NAME) == name] if name else list(manifests)
        if not found:
            raise NotFound(f'{self.path}: no image "{name}"; there are: {", ".join(self.names()) or "none"}')
        if len(found) > 1 and not name:
            raise InvalidInput(f"{self.path}: has several images: {', '.join(self.names())}", field="name")
        return at(self, found[-1])

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        algorithm, encoded = check_digest(target.digest)
        with self.open(target) as file:
            data = file.read(_READ_LIMIT + 1)
        if len(data) != target.size or hashlib.new(algorithm, data).hexdigest() != encoded:
            raise Corrupt(f"{self.path}: blob {target.digest} has another digest or size")
        return data

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        path = os.path.join(self.path, "blobs", *check_digest(target.digest))
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise NotFound(f"{self.path}: no blob {target.digest}") from None
        except OSError as error:
            raise StageFailed("read image layout", error) from error

    # ---------------------------------------------------------------- sink

    def has(self, target: Descriptor) -> bool:
        """Whether a blob of that digest and size is there."""
        try:
            return os.stat(os.path.join(self.path, "blobs", *check_digest(target.digest))).st_size == target.size
        except FileNotFoundError:
            return False

    def add(self, target: Descriptor, pieces: Iterable[bytes]) -> None:
        """Write a blob, checked.

        Raises:
            Corrupt: The pieces are not what the descriptor says; nothing is left.
        """
        algorithm, encoded = check_digest(target.digest)
        folder = os.path.join(self.path, "blobs", algorithm)
        os.makedirs(folder, exist_ok=True)
        digest, size = hashlib.new(algorithm), 0
        part = os.path.join(folder, f".{secrets.token_hex(8)}")
        try:
            with open(part, "xb") as file:
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
            if size != target.size or digest.hexdigest() != encoded:
                raise Corrupt(f"content {target.digest}: the bytes have another digest or size")
            os.rename(part, os.path.join(folder, encoded))
        except OSError as error:
            raise StageFailed("write image layout", error) from error
        finally:
            if os.path.exists(part):
                os.unlink(part)

    def tag(self, name: str, target: Descriptor) -> None:
        """Let ``name`` lead to ``target``, in place of what it led to; without a name, list it."""
        kept = tuple(
            d
            for d in self.index().manifests
            if (d.annotations.get(REF_NAME) != name if name else d.digest != target.digest)
        )
        annotations = {**target.annotations, **({REF_NAME: name} if name else {})}
        entry = msgspec.structs.replace(target, annotations=annotations)
        _write(os.path.join(self.path, "index.json"), encode(Index(schema_version=2, manifests=(*kept, entry))))


def write(layout: Layout, image: Image | ImageIndex, name: str = "") -> None:
    """Write an image, or an index with what its source has of it, into a layout; named last."""
    _write_blobs(layout, image)
    layout.tag(name, image.descriptor)


def _write_blobs(layout: Layout, image: Image | ImageIndex) -> None:
    if isinstance(image, ImageIndex):
        for child in image.children():
            try:
                _write_blobs(layout, child)
            except NotFound:
                continue  # a platform that was not pulled
    else:
        for layer in image.layers:
            if not layer.foreign and not layout.has(layer.descriptor):
                layout.add(layer.descriptor, layer.compressed())
        layout.add(image.manifest.config, [image.raw_config])
    layout.add(image.descriptor, [image.blobs.read(image.descriptor)])


def _write(path: str, data: bytes) -> None:
    part = f"{path}.{secrets.token_hex(4)}"
    with open(part, "xb") as file:
        file.write(data)
    os.rename(part, path)

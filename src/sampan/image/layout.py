"""OCI image layouts: a directory of blobs with an index (image-layout.md). A source and a sink.

::

    oci-layout                      {"imageLayoutVersion": "1.0.0"}
    index.json                      what is named, by the annotation org.opencontainers.image.ref.name
    blobs/ALGORITHM/HEX
"""

import fcntl
import os
from collections.abc import Iterator
from typing import IO

import msgspec

from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError, StageFailed, WrongState
from sampan.image.files import read_small, write_file
from sampan.image.model import Image, ImageIndex, at, checked
from sampan.image.reference import Reference
from sampan.image.writing import write as write_to
from sampan.spec.image import MANIFEST_LIMIT, MT_OCI_INDEX, Descriptor, Index, check_digest, decode_as, encode

NAME = "org.opencontainers.image.ref.name"
#: containerd's and Docker's annotation of the whole name, beside the tag alone.
FULL_NAME = "io.containerd.image.name"
MARKER = "oci-layout"
VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_READ_LIMIT = 16 << 20


class _Marker(msgspec.Struct, rename="camel"):
    image_layout_version: str


def blob_path(digest: str) -> str:
    """Where a layout keeps a blob."""
    return "/".join(("blobs", *check_digest(digest)))


def whole_name(name: str) -> str:
    """The whole reference that a name in a layout stands for; nothing for a mere tag, which names nothing elsewhere."""
    if "/" not in name and ":" not in name:
        return ""
    try:
        return str(Reference.parse(name))
    except SampanError:
        return ""


def choose(index: Index, name: str, where: str) -> Descriptor:
    """What a name in a layout leads to; without a name, the only image there is.

    Raises:
        NotFound: There is none of that name; the message lists what there is.
        InvalidInput: There are several, and no name was given.
    """
    names = {descriptor.annotations.get(NAME, "") for descriptor in index.manifests}
    if not name:
        if len(index.manifests) == 1:
            return index.manifests[0]
        listed = ", ".join(sorted(filter(None, names))) or "no names"
        raise InvalidInput(f"holds {len(index.manifests)} images ({listed}): say which as {where}:NAME", field=where)
    for descriptor in index.manifests:
        if name in (descriptor.annotations.get(NAME), descriptor.annotations.get(FULL_NAME), descriptor.digest):
            return descriptor
    raise NotFound(
        f'{where}: has no image "{name}", but {", ".join(sorted(filter(None, names))) or "none with a name"}'
    )


class Layout:
    """A layout directory.

    Args:
        path: The directory.
        create: Make it one if it is not there.

    Raises:
        NotFound: There is no layout.
        Corrupt: It is not a layout of version 1.
        WrongState: It is to be made of a directory in which there is something else.
    """

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.path = path
        marker = os.path.join(path, MARKER)
        if create and not os.path.exists(marker):
            if os.path.isdir(path) and os.listdir(path):
                raise WrongState(f"{path}: is neither empty nor an OCI layout")
            try:
                os.makedirs(os.path.join(path, "blobs", "sha256"), exist_ok=True)
            except OSError as error:
                raise StageFailed("make image layout", error) from error
            write_file(marker, [VERSION])
        if not os.path.exists(marker):
            raise NotFound(f"{path}: is no OCI layout: it has no file {MARKER}")
        version = decode_as(read_small(marker, 4096), _Marker, marker).image_layout_version
        if not version.startswith("1."):
            raise Corrupt(f'{marker}: version "{version}" is not 1')

    # ---------------------------------------------------------------- source

    def index(self) -> Index:
        """What it lists; nothing for a new one."""
        path = os.path.join(self.path, "index.json")
        if not os.path.exists(path):
            return Index(schema_version=2)
        return decode_as(read_small(path, MANIFEST_LIMIT), Index, path)

    def names(self) -> list[str]:
        """The names in it."""
        return [d.annotations[NAME] for d in self.index().manifests if NAME in d.annotations]

    def get(self, name: str = "") -> Image | ImageIndex:
        """The image of a name; without one the only image there is.

        Raises:
            NotFound: There is no such name.
            InvalidInput: No name was given, and there are several.
        """
        return at(self, choose(self.index(), name, self.path))

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        data = read_small(os.path.join(self.path, blob_path(target.digest)), _READ_LIMIT)
        return b"".join(checked(target, [data]))

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        path = os.path.join(self.path, blob_path(target.digest))
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise NotFound(f"{self.path}: no blob {target.digest}") from None
        except OSError as error:
            raise StageFailed("read image layout", error) from error

    # ---------------------------------------------------------------- sink

    def add(self, target: Descriptor, name: str = "", full_name: str = "") -> None:
        """List what was put; under a name, in place of what had it.

        Args:
            target: What it is.
            name: Its name, often a mere tag.
            full_name: The whole reference, kept beside.
        """
        annotations = {**target.annotations}
        annotations |= {NAME: name} if name else {}
        annotations |= {FULL_NAME: full_name} if full_name else {}
        named = msgspec.structs.replace(target, annotations=annotations)
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [one for one in self.index().manifests if not _replaces(one, named)]
            index = Index(schema_version=2, media_type=MT_OCI_INDEX, manifests=(*others, named))
            write_file(os.path.join(self.path, "index.json"), [encode(index)])
        finally:
            os.close(lock)


def _replaces(old: Descriptor, new: Descriptor) -> bool:
    name = new.annotations.get(NAME, "")
    if old.annotations.get(NAME, "") == name:
        return bool(name) or old.digest == new.digest
    return False


class LayoutSink:
    """Adds an image to a layout; an image of the same name is replaced.

    Args:
        layout: The layout.
        name: What to call the image; empty for no name.
        full_name: The whole reference, kept beside the tag.
    """

    def __init__(self, layout: Layout, name: str = "", full_name: str = "") -> None:
        self.layout = layout
        self._name = name
        self._full_name = full_name

    def has(self, target: Descriptor) -> bool:
        """See :class:`~sampan.image.writing.Sink`."""
        try:
            return os.stat(os.path.join(self.layout.path, blob_path(target.digest))).st_size == target.size
        except FileNotFoundError:
            return False

    def put_blob(self, target: Descriptor, pieces: Iterator[bytes]) -> str:
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(os.path.join(self.layout.path, blob_path(target.digest)), pieces)
        return "copied"

    def put_document(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        write_file(os.path.join(self.layout.path, blob_path(target.digest)), [data])

    def finish(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        self.put_document(target, data)
        self.layout.add(target, self._name, self._full_name)

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""


def write(layout: Layout, image: Image | ImageIndex, name: str = "") -> None:
    """Write an image, or an index with what its source has of it, into a layout; named last."""
    write_to(image, LayoutSink(layout, name), whole=False)

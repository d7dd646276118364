"""An image wherever it is, opened as a value (:mod:`sampan.image.model`): read, compared and checked in place."""

import io
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING

from sampan.errors import Corrupt
from sampan.image.model import Image, ImageIndex, at
from sampan.registry.copying import checked, open_source
from sampan.registry.credentials import Credentials
from sampan.registry.places.interface import Source
from sampan.registry.resolver import Resolver
from sampan.spec.image import CONFIG_LIMIT, INDEX_TYPES, MANIFEST_TYPES, Descriptor

if TYPE_CHECKING:
    from sampan.storage.store import Store


@contextmanager
def open_image(
    place: str,
    *,
    resolver: Resolver,
    store: "Store | None" = None,
    namespace: str = "default",
    credentials: Credentials | None = None,
) -> Iterator[Image | ImageIndex]:
    """The image at a place, as long as the block lasts; nothing but what is asked for is fetched.

    Args:
        place: ``docker://``, ``oci:``, ``oci-archive:``, ``docker-archive:``, ``dir:`` or ``store:``; see
            :mod:`sampan.registry.places`.
        resolver: Hosts and credentials, for ``docker://``.
        store: For ``store:``.
        namespace: Whose names ``store:`` means.
        credentials: The caller's own, for a registry.

    Raises:
        InvalidInput: The place is malformed.
        NotFound: There is no image.
    """
    source = open_source(place, resolver=resolver, store=store, namespace=namespace, credentials=credentials)
    with closing(source):
        yield image_of(source)


def image_of(source: Source) -> Image | ImageIndex:
    """What a source's name leads to; good until the source is closed."""
    return at(SourceBlobs(source), source.target())


class SourceBlobs:
    """A place as a source of blobs; see :class:`sampan.image.model.Blobs`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        if target.media_type in MANIFEST_TYPES | INDEX_TYPES:
            return b"".join(checked(target, iter([self._source.document(target)])))
        if target.size > CONFIG_LIMIT:
            raise Corrupt(f"content {target.digest}: says {target.size} bytes, more than the {CONFIG_LIMIT} to be read")
        return b"".join(checked(target, self._source.blob(target)))

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        return io.BufferedReader(_Pieces(self._source.blob(target)))


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken

    def close(self) -> None:
        if isinstance(self._pieces, Generator):
            self._pieces.close()  # ends what it reads from
        super().close()

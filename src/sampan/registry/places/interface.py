"""What a source of images is; a sink is :class:`sampan.image.writing.Sink`."""

import io
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import IO

from sampan.errors import Corrupt
from sampan.image.model import Image, ImageIndex, at, checked
from sampan.spec.image import CONFIG_LIMIT, INDEX_TYPES, MANIFEST_TYPES, Descriptor


class Source(ABC):
    """An image to be read: a source of blobs (:class:`sampan.image.model.Blobs`) that knows what its name leads to."""

    @abstractmethod
    def target(self) -> Descriptor:
        """What the image's name leads to: an index or a manifest."""

    @abstractmethod
    def document(self, target: Descriptor) -> bytes:
        """A manifest's or index's bytes, unchecked."""

    @abstractmethod
    def blob(self, target: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, unchecked; who asks reads them to the end or closes the iterator."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Let go of what was opened."""

    def image(self) -> Image | ImageIndex:
        """The image; good until the source is closed."""
        return at(self, self.target())

    def read(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.image.model.Blobs`."""
        if target.media_type in MANIFEST_TYPES | INDEX_TYPES:
            return b"".join(checked(target, [self.document(target)]))
        if target.size > CONFIG_LIMIT:
            raise Corrupt(f"content {target.digest}: says {target.size} bytes, more than the {CONFIG_LIMIT} to be read")
        return b"".join(checked(target, self.blob(target)))

    def open(self, target: Descriptor) -> IO[bytes]:
        """See :class:`~sampan.image.model.Blobs`."""
        return io.BufferedReader(_Pieces(self.blob(target)))


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

"""What a source and a sink of images are."""

from collections.abc import Iterator
from typing import Protocol

from sampan.spec.image import Descriptor


class Source(Protocol):
    """An image to be read."""

    def target(self) -> Descriptor:
        """What the image's name leads to: an index or a manifest."""

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest's or index's bytes; the caller checks them."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes; the caller checks them, and reads them to the end or closes the iterator."""

    def close(self) -> None:
        """Let go of what was opened."""


class Sink(Protocol):
    """A place for an image. Nothing is visible under the image's name before :meth:`finish`."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there already."""

    def put_blob(self, descriptor: Descriptor, data: Iterator[bytes]) -> None:
        """Write a blob; ``data`` raises at its end if it was not what the descriptor says."""

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """Write a manifest or an index, after all that it speaks of."""

    def finish(self, target: Descriptor) -> None:
        """Give the image its name."""

    def close(self) -> None:
        """Let go of what was opened; without :meth:`finish` before, take back what was begun."""

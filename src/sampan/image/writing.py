"""Writing an image somewhere: first all that it consists of, then what speaks of that, its name last.

A sink is a place that takes blobs and documents (:class:`Sink`): an OCI layout (layout.py), the store, a registry, an
archive. So a new sink is a class of five methods, and whatever is an :class:`~sampan.image.model.Image` or an index
can be written to each, wherever it lies: every digest is checked on the way.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from sampan.errors import Exhausted, NotFound, Unavailable
from sampan.image.model import Blobs, Image, ImageIndex, verified
from sampan.spec.image import Descriptor

#: Bytes of all the manifests and indexes of one image: they are in memory together.
DOCUMENTS_LIMIT = 64 << 20

#: Told of each blob that is there now, and how it came: ``exists``, or what the sink says.
Notice = Callable[[str, Descriptor], None]


class Sink(Protocol):
    """A place for an image. Nothing is visible under the image's name before :meth:`finish`."""

    def has(self, target: Descriptor) -> bool:
        """Whether a blob is there already."""

    def put_blob(self, target: Descriptor, pieces: Iterator[bytes]) -> str:
        """Write a blob; ``pieces`` raise at their end if they were not what the descriptor says.

        Returns:
            How it came there, in a word: ``copied``, ``uploaded``, ``mounted``.
        """

    def put_document(self, target: Descriptor, data: bytes) -> None:
        """Write a manifest or an index that the image's own leads to, after all that it speaks of."""

    def finish(self, target: Descriptor, data: bytes) -> None:
        """Write the image's own document, after all others, and give the image its name."""

    def close(self) -> None:
        """Let go of what was opened; without :meth:`finish` before, take back what was begun."""


@dataclass
class Parts:
    """What an image consists of: documents after those they lead to, and blobs with where they are; each once."""

    documents: dict[str, Image | ImageIndex] = field(default_factory=dict)
    blobs: dict[str, tuple[Blobs, Descriptor]] = field(default_factory=dict)


def write(
    value: Image | ImageIndex,
    sink: Sink,
    *,
    whole: bool = True,
    parallel: int = 1,
    stop: threading.Event | None = None,
    notice: Notice | None = None,
) -> Descriptor:
    """Write an image.

    Args:
        value: The image, or an index with its images.
        sink: Where to; closing it is the caller's.
        whole: Whether an index of which a part is missing is refused; otherwise what there is of it is written.
        parallel: Blobs to be written at a time; more than one only where source and sink are for several threads.
        stop: Set when the writing is given up, by the caller or at the first failure.
        notice: Told of each blob, from several threads.

    Returns:
        What was written.

    Raises:
        NotFound: A part is missing.
        Corrupt: A part is not what its digest says.
    """
    halt = stop or threading.Event()
    parts = gather(value, whole=whole)

    def put(blobs: Blobs, target: Descriptor) -> None:
        came = "exists" if sink.has(target) else sink.put_blob(target, _until(halt, verified(blobs, target)))
        if notice is not None:
            notice(came, target)

    side_by_side([partial(put, blobs, target) for blobs, target in parts.blobs.values()], parallel, halt)
    *documents, last = parts.documents.values()
    for document in documents:
        sink.put_document(document.descriptor, document.raw_manifest)
    sink.finish(last.descriptor, last.raw_manifest)
    return last.descriptor


def gather(value: Image | ImageIndex, *, whole: bool = True) -> Parts:
    """All that an image consists of.

    Args:
        value: The image, or an index with its images.
        whole: Whether all images of an index are meant, or those alone of which the source has every part.

    Raises:
        NotFound: A document is missing; if not ``whole``, of every image of an index a part is.
        Exhausted: The documents are too large to be held.
    """
    gathered = _Gathering(whole)
    gathered.add(value)
    return gathered.parts


class _Gathering:
    def __init__(self, whole: bool) -> None:
        self.parts = Parts()
        self._whole = whole
        self._missing: dict[str, NotFound] = {}
        self._size = 0

    def add(self, value: Image | ImageIndex) -> None:
        # An index may list one again and again.
        if value.digest in self.parts.documents:
            return
        if value.digest in self._missing:
            raise self._missing[value.digest]
        self._count(value)
        try:
            if isinstance(value, ImageIndex):
                self._add_children(value)
            else:
                self._add_parts(value)
        except NotFound as error:
            self._missing[value.digest] = error
            raise
        self.parts.documents[value.digest] = value

    def _count(self, value: Image | ImageIndex) -> None:
        self._size += len(value.raw_manifest)
        if self._size > DOCUMENTS_LIMIT:
            raise Exhausted(f"image {value.digest}: its manifests are more than the {DOCUMENTS_LIMIT} bytes to be held")

    def _add_children(self, index: ImageIndex) -> None:
        missing = 0
        for child in index.children():
            try:
                self.add(child)
            except NotFound:
                if self._whole:
                    raise
                missing += 1
        if missing and missing == len(index.index.manifests):
            raise NotFound(f"image {index.digest}: none of its platforms is there")

    def _add_parts(self, image: Image) -> None:
        if not self._whole:
            for target in image.parts:
                image.blobs.open(target).close()
        self.parts.blobs.update((target.digest, (image.blobs, target)) for target in image.parts)


def _until(stop: threading.Event, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, as long as nobody gives up."""
    for piece in pieces:
        if stop.is_set():
            raise Unavailable("given up")
        yield piece


def side_by_side(jobs: Sequence[Callable[[], None]], parallel: int, stop: threading.Event) -> None:
    """Do several things, some at a time; the first that fails stops the others, and is what is raised.

    Args:
        jobs: What to do.
        parallel: How many at a time.
        stop: Set at the first failure; the jobs look at it.
    """
    if parallel == 1 or len(jobs) < 2:
        for job in jobs:
            job()
        return
    from concurrent.futures import ThreadPoolExecutor

    failures: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        if failures:
            return
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised below, the first one
            failures.append(error)
            stop.set()

    with ThreadPoolExecutor(min(parallel, len(jobs)), thread_name_prefix="blobs") as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            # An interrupt of this thread must stop the others too, or leaving the pool would wait for them.
            stop.set()
            raise
    if failures:
        raise failures[0]

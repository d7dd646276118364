"""Images as values (:mod:`sampan.image.model`), read where they are, and written to any place."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from sampan.image.model import Image, ImageIndex
from sampan.image.writing import write
from sampan.registry.copying import open_sink, open_source
from sampan.registry.credentials import Credentials
from sampan.registry.progress import Callback
from sampan.registry.resolver import Resolver
from sampan.spec.image import Descriptor

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
        yield source.image()


def write_image(
    value: Image | ImageIndex,
    place: str,
    *,
    resolver: Resolver,
    store: "Store | None" = None,
    namespace: str = "default",
    credentials: Credentials | None = None,
    progress: Callback | None = None,
) -> Descriptor:
    """Write an image, or an index with all its images, to a place; see :func:`open_image` for places.

    Args:
        value: What to write.
        place: Where to.
        resolver: Hosts and credentials, for ``docker://``.
        store: For ``store:``.
        namespace: Whose names ``store:`` means.
        credentials: The caller's own, for a registry.
        progress: Called with each event.

    Raises:
        InvalidInput: The place is malformed.
        NotFound: A part of the image is missing.
        Corrupt: A part is not what its digest says.
    """
    sink = open_sink(
        place, resolver=resolver, store=store, namespace=namespace, credentials=credentials, progress=progress
    )
    with closing(sink):
        return write(value, sink)

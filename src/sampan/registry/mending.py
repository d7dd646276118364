"""Fetching one blob again: what `fsck --repair` does about a damaged one, leaving the rest of the image alone."""

from typing import TYPE_CHECKING

from sampan.errors import NotFound, SampanError
from sampan.image.reference import Reference
from sampan.registry.blobs import Downloader, LocalFailure
from sampan.registry.progress import Callback, Reporter
from sampan.registry.repository import combine
from sampan.registry.resolver import Resolver
from sampan.spec.image import INDEX_TYPES, MANIFEST_TYPES, Descriptor

if TYPE_CHECKING:
    from sampan.storage.check import Fetch
    from sampan.storage.store import Store

_LEASE_SECONDS = 3600


def fetcher(store: "Store", resolver: Resolver, *, progress: Callback | None = None) -> "Fetch":
    """A function that brings a blob into the store again, from whichever of the images that need it can give it.

    Args:
        store: Where to.
        resolver: Hosts and credentials.
        progress: Called with each event.
    """

    def fetch(blob: Descriptor, images: list[str]) -> None:
        failures: list[SampanError] = []
        for image in images:
            namespace, _, name = image.partition("/")
            try:
                _fetch_from(store, resolver, namespace, name, blob, progress)
                return
            except LocalFailure as failure:
                raise failure.cause from None
            except SampanError as error:
                failures.append(error)
        if not failures:
            raise NotFound(f"content {blob.digest}: no image's name leads to a registry that has it")
        raise combine(failures, f"fetch {blob.digest} again", "pull")

    return fetch


def _fetch_from(
    store: "Store", resolver: Resolver, namespace: str, name: str, blob: Descriptor, progress: Callback | None
) -> None:
    repository = resolver.repository(Reference.parse(name))
    with store.leases(namespace).create(expires_in=_LEASE_SECONDS) as lease:
        if blob.media_type in MANIFEST_TYPES | INDEX_TYPES:
            store.content.put(repository.manifest(blob), blob.media_type, lease=lease)
        else:
            Downloader(store, repository, lease, Reporter(name, progress)).fetch(blob)

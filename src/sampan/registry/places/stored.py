"""``store:``: a name in a namespace of the content store."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sampan.errors import NotFound
from sampan.image.reference import Reference
from sampan.registry.places.interface import Source
from sampan.spec.image import Descriptor
from sampan.storage.transfer import StoreSink

if TYPE_CHECKING:
    from typing import IO

    from sampan.storage.store import Store

_LEASE_SECONDS = 24 * 3600


def stored_name(text: str) -> str:
    """A name as the store has it: canonical, by digest or by tag."""
    parsed = Reference.parse(text)
    return str(parsed.with_digest(parsed.digest) if parsed.digest else parsed)


class StoreSource(Source):
    """An image of a namespace, by name, or by ``target`` whatever its name is."""

    def __init__(self, store: "Store", namespace: str, name: str, target: Descriptor | None = None) -> None:
        self._store = store
        self._name = name
        self._target = target or store.images(namespace).get(stored_name(name)).target

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._target

    def document(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        try:
            return self._store.content.read(target)
        except NotFound as error:
            hint = "only one platform of the index is stored: choose it with --platform"
            raise NotFound(f"{self._name}: {error.message}", hint=hint) from None

    def blob(self, target: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        with self._store.content.open(target.digest) as file:
            while data := file.read(1 << 20):
                yield data

    def open(self, target: Descriptor) -> "IO[bytes]":
        """See :class:`~sampan.image.model.Blobs`."""
        return self._store.content.open(target.digest)


class NameSink(StoreSink):
    """A name for an image in a namespace; what is written is leased until the name leads to it."""

    def __init__(self, store: "Store", namespace: str, name: str) -> None:
        self._names = store.images(namespace)
        self._name = stored_name(name)
        self._leased = store.leased(namespace, _LEASE_SECONDS)
        super().__init__(store, self._leased.__enter__())

    def finish(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        super().finish(target, data)
        self._names.put(self._name, target)

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        # The error that ends a copy is being handled now: a full disk is to be left as it was.
        self._leased.__exit__(*sys.exc_info())

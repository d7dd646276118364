"""Which repositories have a blob: noted on it, as containerd does, for mounts across repositories at a push."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sampan.image.reference import Reference
from sampan.spec.image import Descriptor

if TYPE_CHECKING:
    from sampan.storage.store import Store

#: containerd's label, with the registry's host behind it.
_LABEL = "containerd.io/distribution.source."
_LIMIT = 8


def origins(store: "Store", blob: Descriptor, domain: str) -> list[str]:
    """Repositories of a registry that are known to have a blob of the store."""
    names = store.content.info(blob.digest).labels.get(_LABEL + domain, "")
    return [name for name in names.split(",") if name]


def remember_origin(store: "Store", reference: Reference, blobs: Sequence[Descriptor]) -> None:
    """Note on blobs that a repository has them."""
    for blob in blobs:
        if not store.content.exists(blob.digest):
            continue
        known = origins(store, blob, reference.domain)
        if reference.path not in known:
            names = ",".join([reference.path, *known][:_LIMIT])
            store.content.label(blob.digest, {_LABEL + reference.domain: names})

"""The same image in the other of the two forms: OCI's documents and Docker's schema 2 differ in media types alone.

Layers and configuration keep their bytes and digests; manifests and indexes get new ones, so that a signature on them
no longer holds. Docker's form has no place for annotations, which are dropped as skopeo does, nor for a subject or an
artifact type, which are refused: without them the document would mean something else.
"""

from typing import Literal

import msgspec

from sampan.errors import Exhausted, Unsupported
from sampan.image.model import Image, ImageIndex, MemoryBlobs, at
from sampan.image.writing import DOCUMENTS_LIMIT
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, Index, Manifest

Form = Literal["oci", "docker"]

_PAIRS = (
    (spec.MT_OCI_MANIFEST, spec.MT_DOCKER_MANIFEST),
    (spec.MT_OCI_INDEX, spec.MT_DOCKER_LIST),
    (spec.MT_OCI_CONFIG, spec.MT_DOCKER_CONFIG),
    (spec.MT_OCI_LAYER, spec.MT_DOCKER_LAYER),
    (spec.MT_OCI_LAYER_GZIP, spec.MT_DOCKER_LAYER_GZIP),
    (spec.MT_OCI_LAYER_ZSTD, spec.MT_DOCKER_LAYER_ZSTD),
)
_TO: dict[Form, dict[str, str]] = {
    "oci": {docker: oci for oci, docker in _PAIRS}
    | {spec.MT_DOCKER_LAYER + "+gzip": spec.MT_OCI_LAYER_GZIP, spec.MT_DOCKER_LAYER + "+zstd": spec.MT_OCI_LAYER_ZSTD},
    "docker": dict(_PAIRS),
}


def in_form(value: Image | ImageIndex, form: Form) -> Image | ImageIndex:
    """An image in a form; what has it already keeps its bytes and digest.

    Raises:
        Unsupported: The form has no place for something in it.
        Exhausted: Its manifests are too large to be held.
    """
    conversion = _Conversion(form)
    target = conversion.document(value)
    return at(MemoryBlobs(conversion.documents, value.blobs), target)


class _Conversion:
    def __init__(self, form: Form) -> None:
        self._form = form
        #: By digest: the documents as they are to be.
        self.documents: dict[str, bytes] = {}
        #: What became of each, by its old digest: an index may list one again and again.
        self._done: dict[str, Descriptor] = {}
        self._size = 0

    def document(self, value: Image | ImageIndex) -> Descriptor:
        """Convert a document after all that it leads to; its new descriptor."""
        if value.digest in self._done:
            return self._done[value.digest]
        children: dict[str, Descriptor] = {}
        if isinstance(value, ImageIndex):
            children = {child.digest: self.document(child) for child in value.children()}
        document = value.index if isinstance(value, ImageIndex) else value.manifest
        target, data = value.descriptor, value.raw_manifest
        if not _has_form(target, document, self._form) or any(new.digest != old for old, new in children.items()):
            target, data = _converted(document, self._form, children)
        self._size += len(data)
        if self._size > DOCUMENTS_LIMIT:
            raise Exhausted(f"image {value.digest}: its manifests are more than the {DOCUMENTS_LIMIT} bytes to be held")
        self.documents[target.digest] = data
        self._done[value.digest] = target
        return target


def _converted(document: Manifest | Index, form: Form, children: dict[str, Descriptor]) -> tuple[Descriptor, bytes]:
    if form == "docker":
        _check(document)
        document = msgspec.structs.replace(document, annotations={})
    if isinstance(document, Index):
        media_type = spec.MT_OCI_INDEX if form == "oci" else spec.MT_DOCKER_LIST
        manifests = tuple(_child(one, children[one.digest]) for one in document.manifests)
        data = spec.encode(msgspec.structs.replace(document, media_type=media_type, manifests=manifests))
    else:
        media_type = spec.MT_OCI_MANIFEST if form == "oci" else spec.MT_DOCKER_MANIFEST
        config = _retyped(document.config, form)
        layers = tuple(_retyped(layer, form) for layer in document.layers)
        data = spec.encode(msgspec.structs.replace(document, media_type=media_type, config=config, layers=layers))
    return spec.describe(data, media_type), data


def _has_form(descriptor: Descriptor, document: Manifest | Index, form: Form) -> bool:
    """Whether a document, and all that it speaks of, is of the form already: then its bytes and digest stay."""
    below = document.manifests if isinstance(document, Index) else (document.config, *document.layers)
    return all(one.media_type not in _TO[form] for one in (descriptor, *below))


def _child(old: Descriptor, new: Descriptor) -> Descriptor:
    return msgspec.structs.replace(old, media_type=new.media_type, digest=new.digest, size=new.size, data="")


def _retyped(blob: Descriptor, form: Form) -> Descriptor:
    known = _TO[form]
    if blob.media_type not in known and blob.media_type not in known.values():
        raise Unsupported(f"{blob.digest}: {blob.media_type} has no counterpart in the form {form}")
    return msgspec.structs.replace(blob, media_type=known.get(blob.media_type, blob.media_type))


def _check(document: Manifest | Index) -> None:
    for field in ("subject", "artifact_type"):
        if getattr(document, field):
            raise Unsupported(f"Docker's form has no place for the {field.replace('_', ' ')} of the image")

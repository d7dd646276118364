"""The same image in the other of the two forms: OCI's documents and Docker's schema 2 differ in media types alone.

Layers and configuration keep their bytes and digests; manifests and indexes get new ones, so that a signature on them
no longer holds. Docker's form has no place for annotations, which are dropped as skopeo does, nor for a subject or an
artifact type, which are refused: without them the document would mean something else.
"""

from typing import Literal

import msgspec

from sampan.errors import Unsupported
from sampan.spec import image as spec
from sampan.spec.image import Descriptor, Index, Manifest

Form = Literal["oci", "docker"]
FORMS: tuple[Form, ...] = ("oci", "docker")

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


def converted(document: Manifest | Index, form: Form, children: dict[str, Descriptor]) -> tuple[Descriptor, bytes]:
    """A document in a form, with its descriptor.

    Args:
        document: A manifest or an index.
        form: The form.
        children: For an index: what became of each of its manifests, by old digest.

    Raises:
        Unsupported: The form has no place for something in it.
    """
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


def has_form(descriptor: Descriptor, document: Manifest | Index, form: Form) -> bool:
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

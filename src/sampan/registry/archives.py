"""Save and load: several images between a store and one archive, with their names."""

import os
import re
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError
from sampan.image.reference import Reference
from sampan.registry.copying import copy_document
from sampan.registry.places.docker_archive import DockerArchiveSink, DockerArchiveSource
from sampan.registry.places.files import Archive
from sampan.registry.places.interface import Source
from sampan.registry.places.layout import FULL_NAME, NAME, ArchiveSink, ArchiveSource, LayoutSource
from sampan.registry.places.stored import StoreSink, StoreSource, stored_name
from sampan.registry.progress import Callback, Reporter
from sampan.spec.image import Descriptor, Index, Platform, decode_manifest

if TYPE_CHECKING:
    from sampan.storage.store import Store

FORMS = ("oci-archive", "docker-archive")


def save(
    store: "Store",
    namespace: str,
    names: Sequence[str],
    file: str,
    *,
    form: str = "oci-archive",
    platform: str | Platform | None = None,
    progress: Callback | None = None,
) -> None:
    """Write images into one archive, which is there when it is whole.

    Args:
        store: Where they are.
        namespace: Whose names.
        names: Which.
        file: The archive.
        form: ``oci-archive`` or ``docker-archive``.
        platform: Of indexes, this one alone. By default an index goes whole if all of it is stored, else what of it
            is for this machine; a docker archive holds no index, so that it gets this machine's.
        progress: Called with each event.

    Raises:
        NotFound: An image is not there.
        InvalidInput: The form is none of the two, or there is no name.
    """
    if form not in FORMS:
        raise InvalidInput(f'"{form}" is neither oci-archive nor docker-archive', field="form")
    if not names:
        raise InvalidInput("is empty", field="names")
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    # All sources first: what is not there is said before anything is written.
    sources = [(Reference.parse(name), StoreSource(store, namespace, name)) for name in names]
    reporter = Reporter(file, progress)
    with closing(ArchiveSink(file) if form == "oci-archive" else DockerArchiveSink(file)) as sink:
        for reference, source in sources:
            if isinstance(sink, DockerArchiveSink):
                copied = copy_document(source, sink, reporter, source.target(), wanted or Platform.host(), 0)
                sink.add(copied, reference.familiar if reference.tag else "")
            else:
                chosen = wanted or (None if _whole(store, source) else Platform.host())
                copied = copy_document(source, sink, reporter, source.target(), chosen, 0)
                sink.add(copied, reference.tag or reference.digest, stored_name(str(reference)))
        sink.write()


def _whole(store: "Store", source: StoreSource) -> bool:
    """Whether all that an index speaks of is stored."""
    target = source.target()
    document = decode_manifest(source.document(target), target.media_type)
    return not isinstance(document, Index) or all(store.content.exists(one.digest) for one in document.manifests)


def load(store: "Store", namespace: str, path: str, *, name: str = "", progress: Callback | None = None) -> list[str]:
    """Read all images of an archive or a layout into a store.

    Args:
        store: Where to.
        namespace: Whose names they become.
        path: An OCI archive, a docker archive, or the directory of an OCI layout; which one is found out.
        name: What to call an image that has no whole name there; by default ``localhost/FILE``.
        progress: Called with each event.

    Returns:
        The images' names.

    Raises:
        NotFound: There is no such file.
        Corrupt: It holds no image, or something is not what its digest says.
    """
    reporter = Reporter(path, progress)
    fallback = name or _fallback(path)
    loaded = []
    for target, source, found in _images(path):
        with closing(source):
            full_names = found or [fallback]
            loaded += [_load_one(store, namespace, source, target, full, reporter) for full in full_names]
    if not loaded:
        raise Corrupt(f"{path}: holds no image")
    return loaded


def _load_one(store: "Store", namespace: str, source: Source, target: Descriptor, name: str, reporter: Reporter) -> str:
    full = stored_name(name)
    with closing(StoreSink(store, namespace, full)) as sink:
        try:
            copied = copy_document(source, sink, reporter, target, None, 0)
        except NotFound:
            # An index of which the archive holds one platform only, as many tools write it.
            copied = copy_document(source, sink, reporter, target, Platform.host(), 0)
        sink.finish(copied)
    return full


def _images(path: str) -> list[tuple[Descriptor, Source, list[str]]]:
    """Images of a path: what each leads to, where to read it, its whole names."""
    if os.path.isdir(path):
        layout = LayoutSource(path)
        return [(one, LayoutSource(path), _names(one)) for one in layout.index().manifests]
    with closing(Archive(path)) as archive:
        is_layout, is_docker = archive.has("index.json"), archive.has("manifest.json")
    if is_layout:
        with closing(ArchiveSource(path)) as source:
            targets = source.index().manifests
        return [(one, ArchiveSource(path), _names(one)) for one in targets]
    if not is_docker:
        raise Corrupt(f"{path}: holds neither an OCI layout nor a docker archive")
    found: list[tuple[Descriptor, Source, list[str]]] = []
    for number in range(DockerArchiveSource.count(path)):
        one = DockerArchiveSource(path, number=number)
        found.append((one.target(), one, one.names()))
    return found


def _names(descriptor: Descriptor) -> list[str]:
    """The whole name of an image in a layout; nothing where it has a mere tag."""
    for name in (descriptor.annotations.get(FULL_NAME, ""), descriptor.annotations.get(NAME, "")):
        if "/" in name or ":" in name.partition("@")[0]:
            try:
                return [stored_name(name)]
            except SampanError:
                continue
    return []


def _fallback(path: str) -> str:
    base = os.path.basename(os.path.abspath(path)).lower()
    for ending in (".gz", ".tar", ".tgz"):
        base = base.removesuffix(ending)
    words = re.findall(r"[a-z0-9]+", base)
    return f"localhost/{'-'.join(words) or 'image'}"

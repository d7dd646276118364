"""Copy: an image from any place to any other, whole or one platform of it; every digest checked on the way."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from sampan.errors import Corrupt, InvalidInput, SampanError
from sampan.image.reference import Reference
from sampan.registry.converting import Form, converted, has_form
from sampan.registry.credentials import Credentials
from sampan.registry.places.directory import DirectorySink, DirectorySource
from sampan.registry.places.docker_archive import DockerArchiveSink, DockerArchiveSource
from sampan.registry.places.interface import Sink, Source
from sampan.registry.places.layout import ArchiveSink, ArchiveSource, LayoutSink, LayoutSource
from sampan.registry.places.remote import RemoteSink, RemoteSource
from sampan.registry.places.stored import StoreSink, StoreSource
from sampan.registry.progress import Callback, Reporter
from sampan.registry.resolver import Resolver
from sampan.spec.image import (
    FOREIGN_LAYER_TYPES,
    Descriptor,
    Index,
    Platform,
    check_digest,
    decode_manifest,
    select_platform,
)

if TYPE_CHECKING:
    from sampan.storage.store import Store

_DEPTH_LIMIT = 3
TRANSPORTS = ("docker://", "oci:", "oci-archive:", "docker-archive:", "dir:", "store:")


def copy(
    source: str,
    destination: str,
    *,
    resolver: Resolver,
    store: "Store | None" = None,
    namespace: str = "default",
    platform: str | Platform | None = None,
    form: Form | None = None,
    source_credentials: Credentials | None = None,
    destination_credentials: Credentials | None = None,
    progress: Callback | None = None,
) -> Descriptor:
    """Copy an image.

    Args:
        source: Where from; see :mod:`sampan.registry.places`.
        destination: Where to.
        resolver: Hosts and credentials, for ``docker://``.
        store: For ``store:``.
        namespace: Whose names ``store:`` means.
        platform: Of an index, copy this one alone; by default the whole index.
        form: ``oci`` or ``docker``: write documents in this form, with new digests; by default each keeps its own.
        source_credentials: The caller's own, for the source.
        destination_credentials: The caller's own, for the destination.
        progress: Called with each event.

    Returns:
        What was copied: the index, or the manifest.

    Raises:
        InvalidInput: A place is malformed.
        NotFound: The source, or a part of it, is not there.
        Corrupt: Something is not what its digest says.
    """
    reporter = Reporter(destination, progress)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    maker = _Maker(resolver, store, namespace, reporter)
    if split_place(destination)[0] == "docker-archive":
        wanted = wanted or Platform.host()  # it holds no index
    with (
        closing(maker.source(source, source_credentials)) as opened,
        closing(maker.sink(destination, destination_credentials)) as sink,
    ):
        target = opened.target()
        reporter.tell("resolved", digest=target.digest, total=target.size)
        copied = _Copy(opened, sink, reporter, form).document(target, wanted, 0)
        sink.finish(copied)
    reporter.tell("done", digest=copied.digest)
    return copied


def split_place(text: str) -> tuple[str, str]:
    """Transport and details of a place.

    Raises:
        InvalidInput: The transport is none that we know.
    """
    for transport in TRANSPORTS:
        if text.startswith(transport):
            details = text.removeprefix(transport)
            if not details:
                raise InvalidInput("says no place after the transport", field=text)
            return transport.rstrip(":/"), details
    raise InvalidInput(f"begins with none of {', '.join(TRANSPORTS)}", field=f'"{text[:120]}"')


def split_name(details: str) -> tuple[str, str]:
    """Path and name of ``PATH[:NAME]``."""
    path, colon, name = details.partition(":")
    if colon and not name:
        raise InvalidInput("says no name after the colon", field=details)
    return path, name


def open_source(
    text: str,
    *,
    resolver: Resolver,
    store: "Store | None" = None,
    namespace: str = "default",
    credentials: Credentials | None = None,
) -> Source:
    """An image at a place, to be read; the caller closes it. See :func:`copy` for the arguments and errors."""
    return _Maker(resolver, store, namespace, Reporter(text, None)).source(text, credentials)


class _Maker:
    def __init__(self, resolver: Resolver, store: "Store | None", namespace: str, reporter: Reporter) -> None:
        self._resolver = resolver
        self._store = store
        self._namespace = namespace
        self._reporter = reporter

    def _opened_store(self, text: str) -> "Store":
        if self._store is None:
            raise InvalidInput("no store is open", field=text)
        return self._store

    def source(self, text: str, credentials: Credentials | None) -> Source:
        transport, details = split_place(text)
        if transport == "docker":
            return RemoteSource(details, self._resolver, self._reporter, credentials)
        if transport == "store":
            return StoreSource(self._opened_store(text), self._namespace, details)
        if transport == "dir":
            return DirectorySource(details)
        path, name = split_name(details)
        if transport == "oci":
            return LayoutSource(path, name)
        return ArchiveSource(path, name) if transport == "oci-archive" else DockerArchiveSource(path, name)

    def sink(self, text: str, credentials: Credentials | None) -> Sink:
        transport, details = split_place(text)
        if transport == "docker":
            return RemoteSink(details, self._resolver, self._reporter, credentials)
        if transport == "store":
            return StoreSink(self._opened_store(text), self._namespace, details)
        if transport == "dir":
            return DirectorySink(details)
        path, name = split_name(details)
        if transport == "docker-archive":
            return DockerArchiveSink(path, name)
        return (LayoutSink if transport == "oci" else ArchiveSink)(path, name, _full_name(name))


def _full_name(name: str) -> str:
    """The whole reference that a name in a layout stands for; nothing for a mere tag."""
    if "/" not in name and ":" not in name:
        return ""
    try:
        return str(Reference.parse(name))
    except SampanError:
        return ""


class _Copy:
    """One image's way from a source to a sink."""

    def __init__(self, source: Source, sink: Sink, reporter: Reporter, form: Form | None) -> None:
        self._source = source
        self._sink = sink
        self._reporter = reporter
        self._form = form
        #: Documents that were copied, and what they became: an index may list one again and again.
        self._done: dict[str, Descriptor] = {}

    def document(self, descriptor: Descriptor, platform: Platform | None, depth: int) -> Descriptor:
        """Copy a manifest or index after all that it speaks of; returns what was written: one platform's, if chosen."""
        if descriptor.digest in self._done:
            return self._done[descriptor.digest]
        if depth > _DEPTH_LIMIT:
            raise Corrupt(f"indexes are nested more than {_DEPTH_LIMIT} deep")
        data = b"".join(checked(descriptor, iter([self._source.document(descriptor)])))
        document = decode_manifest(data, descriptor.media_type)
        children: dict[str, Descriptor] = {}
        if isinstance(document, Index):
            if platform is not None:
                return self.document(select_platform(document, platform), platform, depth + 1)
            children = {child.digest: self.document(child, None, depth + 1) for child in document.manifests}
        else:
            for blob in {part.digest: part for part in (*document.layers, document.config)}.values():
                if blob.media_type not in FOREIGN_LAYER_TYPES:
                    self._blob(blob)
        written = descriptor
        if self._form and not has_form(descriptor, document, self._form):
            written, data = converted(document, self._form, children)
        self._sink.put_document(written, data)
        self._done[descriptor.digest] = written
        return written

    def _blob(self, blob: Descriptor) -> None:
        if self._sink.has(blob):
            self._reporter.tell("exists", digest=blob.digest, offset=blob.size, total=blob.size)
            return
        self._sink.put_blob(blob, checked(blob, self._source.blob(blob)))
        self._reporter.tell("downloaded", digest=blob.digest, offset=blob.size, total=blob.size)


def checked(descriptor: Descriptor, data: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes; raises at the end, or as soon as they are too many, if they are not what was promised."""
    algorithm, expected = check_digest(descriptor.digest)
    found, size = hashlib.new(algorithm), 0
    for chunk in data:
        size += len(chunk)
        if size > descriptor.size:
            raise Corrupt(f"content {descriptor.digest}: more than the {descriptor.size} bytes promised")
        found.update(chunk)
        yield chunk
    if size != descriptor.size or found.hexdigest() != expected:
        raise Corrupt(f"content {descriptor.digest}: the {size} bytes that came have digest {found.hexdigest()}")

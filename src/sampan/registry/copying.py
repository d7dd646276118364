"""Copy: an image from any place to any other, whole or one platform of it; every digest checked on the way.

A place gives an image as a value (:mod:`sampan.image.model`), which is chosen from, changed, and written to the other
place (:mod:`sampan.image.writing`). A push is such a way from the store to a registry.
"""

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from sampan.errors import InvalidInput
from sampan.image.converting import Form, in_form
from sampan.image.layout import Layout, LayoutSink, whole_name
from sampan.image.model import Image, ImageIndex
from sampan.image.writing import Sink, write
from sampan.registry.credentials import Credentials
from sampan.registry.places.directory import DirectorySink, DirectorySource
from sampan.registry.places.docker_archive import DockerArchiveSink, DockerArchiveSource
from sampan.registry.places.interface import Source
from sampan.registry.places.layout import ArchiveSink, ArchiveSource, LayoutSource
from sampan.registry.places.remote import RemoteSink, RemoteSource
from sampan.registry.places.stored import NameSink, StoreSource
from sampan.registry.progress import Callback, Kind, Reporter
from sampan.registry.resolver import Resolver
from sampan.registry.uploading import CHUNK
from sampan.spec.image import Descriptor, Platform

if TYPE_CHECKING:
    from sampan.storage.store import Store

TRANSPORTS = ("docker://", "oci:", "oci-archive:", "docker-archive:", "dir:", "store:")
#: How a blob came, as sinks say it, and as it is reported.
_KINDS: dict[str, Kind] = {"exists": "exists", "copied": "downloaded", "uploaded": "uploaded", "mounted": "mounted"}


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
    stop: threading.Event | None = None,
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
        progress: Called with each event, from several threads, one at a time.
        stop: Gives the copy up when set.

    Returns:
        What was copied: the index, or the manifest.

    Raises:
        InvalidInput: A place is malformed.
        NotFound: The source, or a part of it, is not there.
        Corrupt: Something is not what its digest says.
    """
    reporter = Reporter(destination, progress)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    maker = _Maker(resolver, store, namespace, reporter, stop or threading.Event())
    if split_place(destination)[0] == "docker-archive":
        wanted = wanted or Platform.host()  # it holds no index
    with (
        closing(maker.source(source, source_credentials)) as opened,
        closing(maker.sink(destination, destination_credentials)) as sink,
    ):
        value = opened.image()
        reporter.tell("resolved", digest=value.digest, total=value.descriptor.size)
        return _write(value, sink, maker, wanted, form)


def push(
    store: "Store",
    namespace: str,
    name: str,
    resolver: Resolver,
    *,
    reference: str = "",
    platform: str | Platform | None = None,
    credentials: Credentials | None = None,
    progress: Callback | None = None,
    stop: threading.Event | None = None,
    chunk: int = CHUNK,
) -> Descriptor:
    """Send an image of a store to a registry.

    Args:
        store: Where it is.
        namespace: Whose name it has.
        name: Its name.
        resolver: Hosts and credentials.
        reference: What to call it there; its name by default.
        platform: Send this one of an index alone; by default the whole index, which must be stored as a whole.
        credentials: The caller's own.
        progress: Called with each event, from several threads, one at a time.
        stop: Gives the push up when set.
        chunk: Most bytes of one upload request.

    Returns:
        What the name leads to at the registry.

    Raises:
        NotFound: There is no such image, or a part of it is not stored.
        Unavailable, TimedOut, Unauthenticated, Denied: What went wrong at the registry.
    """
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform
    source = StoreSource(store, namespace, name)
    maker = _Maker(resolver, store, namespace, Reporter(reference or name, progress), stop or threading.Event())
    with closing(maker.remote_sink(reference or name, credentials, chunk)) as sink:
        return _write(source.image(), sink, maker, wanted, None)


def _write(
    value: Image | ImageIndex, sink: Sink, maker: "_Maker", platform: Platform | None, form: Form | None
) -> Descriptor:
    """Choose, convert and write an image."""
    if platform is not None and isinstance(value, ImageIndex):
        value = value.select(platform)
    if form is not None:
        value = in_form(value, form)
    host = sink.host if isinstance(sink, RemoteSink) else ""

    def came(how: str, blob: Descriptor) -> None:
        maker.reporter.tell(_KINDS[how], digest=blob.digest, offset=blob.size, total=blob.size, host=host)

    copied = write(value, sink, parallel=maker.resolver.limits.parallel, stop=maker.stop, notice=came)
    maker.reporter.tell("done", digest=copied.digest)
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
    return _Maker(resolver, store, namespace, Reporter(text, None), threading.Event()).source(text, credentials)


def open_sink(
    text: str,
    *,
    resolver: Resolver,
    store: "Store | None" = None,
    namespace: str = "default",
    credentials: Credentials | None = None,
    progress: Callback | None = None,
) -> Sink:
    """A place for an image; the caller closes it. See :func:`copy` for the arguments and errors."""
    return _Maker(resolver, store, namespace, Reporter(text, progress), threading.Event()).sink(text, credentials)


class _Maker:
    """Makes sources and sinks, by their transports, that are given up together."""

    def __init__(
        self, resolver: Resolver, store: "Store | None", namespace: str, reporter: Reporter, stop: threading.Event
    ) -> None:
        self.resolver = resolver
        self.reporter = reporter
        self.stop = stop
        self._store = store
        self._namespace = namespace

    def _opened_store(self, text: str) -> "Store":
        if self._store is None:
            raise InvalidInput("no store is open", field=text)
        return self._store

    def source(self, text: str, credentials: Credentials | None) -> Source:
        transport, details = split_place(text)
        if transport == "docker":
            return RemoteSource(details, self.resolver, self.reporter, credentials, stop=self.stop)
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
            return self.remote_sink(details, credentials)
        if transport == "store":
            return NameSink(self._opened_store(text), self._namespace, details)
        if transport == "dir":
            return DirectorySink(details)
        path, name = split_name(details)
        if transport == "docker-archive":
            return DockerArchiveSink(path, name)
        if transport == "oci":
            return LayoutSink(Layout(path, create=True), name, whole_name(name))
        return ArchiveSink(path, name, whole_name(name))

    def remote_sink(self, text: str, credentials: Credentials | None, chunk: int = CHUNK) -> RemoteSink:
        return RemoteSink(
            text, self.resolver, self.reporter, credentials, store=self._store, stop=self.stop, chunk=chunk
        )

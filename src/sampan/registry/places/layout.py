"""``oci:`` and ``oci-archive:``: an OCI image layout (image-layout.md) in a directory, or in a tar file."""

import fcntl
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator

import msgspec

from sampan.errors import InvalidInput, NotFound, StageFailed, WrongState
from sampan.registry.places.files import Archive, blob_chunks, read_small, write_file
from sampan.spec.image import MANIFEST_LIMIT, MT_OCI_INDEX, Descriptor, Index, check_digest, decode_as

NAME = "org.opencontainers.image.ref.name"
#: containerd's annotation of the whole name, beside the tag alone.
FULL_NAME = "io.containerd.image.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def blob_path(digest: str) -> str:
    """Where a layout keeps a blob."""
    return "/".join(("blobs", *check_digest(digest)))


def choose(index: Index, name: str, where: str) -> Descriptor:
    """The manifest that a name in a layout leads to; without a name, the only one there is.

    Raises:
        NotFound: There is none of that name; the message lists what there is.
        InvalidInput: There are several, and no name was given.
    """
    names = {descriptor.annotations.get(NAME, "") for descriptor in index.manifests}
    if not name:
        if len(index.manifests) == 1:
            return index.manifests[0]
        listed = ", ".join(sorted(filter(None, names))) or "no names"
        raise InvalidInput(f"holds {len(index.manifests)} images ({listed}): say which as {where}:NAME", field=where)
    for descriptor in index.manifests:
        if name in (descriptor.annotations.get(NAME), descriptor.annotations.get(FULL_NAME), descriptor.digest):
            return descriptor
    raise NotFound(
        f'{where}: has no image "{name}", but {", ".join(sorted(filter(None, names))) or "none with a name"}'
    )


class LayoutSource:
    """An image in a layout's directory.

    Args:
        folder: The directory.
        name: Which image; empty for the only one.
    """

    def __init__(self, folder: str, name: str = "") -> None:
        self._folder = folder
        self._name = name
        if not os.path.exists(os.path.join(folder, "oci-layout")):
            raise NotFound(f"{folder}: is no OCI layout: it has no file oci-layout")

    def index(self) -> Index:
        """What the layout holds."""
        path = os.path.join(self._folder, "index.json")
        return decode_as(read_small(path, MANIFEST_LIMIT), Index, path)

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return choose(self.index(), self._name, self._folder)

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return read_small(os.path.join(self._folder, blob_path(descriptor.digest)), MANIFEST_LIMIT)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return blob_chunks(os.path.join(self._folder, blob_path(descriptor.digest)))

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Source`."""


class ArchiveSource:
    """An image in a layout in a tar file, compressed or not."""

    def __init__(self, file: str, name: str = "") -> None:
        self._file = file
        self._name = name
        self._archive = Archive(file)

    def index(self) -> Index:
        """What the archive holds."""
        return decode_as(self._archive.read("index.json", MANIFEST_LIMIT), Index, f"{self._file}: index.json")

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return choose(self.index(), self._name, self._file)

    def document(self, descriptor: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._archive.read(blob_path(descriptor.digest), MANIFEST_LIMIT)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._archive.chunks(blob_path(descriptor.digest))

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Source`."""
        self._archive.close()


class LayoutSink:
    """Adds an image to a layout, making the directory if need be; an image of the same name is replaced.

    Args:
        folder: The directory.
        name: What to call the image; empty for no name.
        full_name: The whole reference, kept beside the tag.
    """

    def __init__(self, folder: str, name: str = "", full_name: str = "") -> None:
        self._folder = folder
        self._name = name
        self._full_name = full_name
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, "oci-layout")):
            raise WrongState(f"{folder}: is neither empty nor an OCI layout")
        os.makedirs(os.path.join(folder, "blobs/sha256"), exist_ok=True)
        if not os.path.exists(os.path.join(folder, "oci-layout")):
            write_file(os.path.join(folder, "oci-layout"), [_LAYOUT])

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        try:
            return os.stat(os.path.join(self._folder, blob_path(descriptor.digest))).st_size == descriptor.size
        except FileNotFoundError:
            return False

    def put_blob(self, descriptor: Descriptor, data: Iterator[bytes]) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        write_file(os.path.join(self._folder, blob_path(descriptor.digest)), data)

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        write_file(os.path.join(self._folder, blob_path(descriptor.digest)), [data])

    def finish(self, target: Descriptor) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        self.add(target, self._name, self._full_name)

    def add(self, target: Descriptor, name: str, full_name: str = "") -> None:
        """Name an image whose parts were all put."""
        annotations = {**target.annotations}
        annotations |= {NAME: name} if name else {}
        annotations |= {FULL_NAME: full_name} if full_name else {}
        named = msgspec.structs.replace(target, annotations=annotations)
        path = os.path.join(self._folder, "index.json")
        lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others: list[Descriptor] = []
            if os.path.exists(path):
                known = decode_as(read_small(path, MANIFEST_LIMIT), Index, path).manifests
                others = [one for one in known if not _replaces(one, named)]
            index = Index(schema_version=2, media_type=MT_OCI_INDEX, manifests=(*others, named))
            write_file(path, [msgspec.json.encode(index)])
        finally:
            os.close(lock)

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""


def _replaces(old: Descriptor, new: Descriptor) -> bool:
    name = new.annotations.get(NAME, "")
    if old.annotations.get(NAME, "") == name:
        return bool(name) or old.digest == new.digest
    return False


class ArchiveSink(LayoutSink):
    """Writes an OCI layout into a new tar file, which is there when it is whole."""

    def __init__(self, file: str, name: str = "", full_name: str = "") -> None:
        self._file = os.path.abspath(file)
        try:
            self._work = tempfile.mkdtemp(prefix=f".{os.path.basename(file)}.", dir=os.path.dirname(self._file))
        except OSError as error:
            raise StageFailed("write archive", error, path=file) from error
        super().__init__(os.path.join(self._work, "layout"), name, full_name)

    def finish(self, target: Descriptor) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        super().finish(target)
        self.write()

    def write(self) -> None:
        """Write the archive with all images that were added."""
        pack(os.path.join(self._work, "layout"), os.path.join(self._work, "tar"))
        os.rename(os.path.join(self._work, "tar"), self._file)

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Sink`."""
        shutil.rmtree(self._work, ignore_errors=True)


def pack(folder: str, file: str) -> None:
    """Write a directory's files into a tar file, the same files giving the same bytes."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for root, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(root, name)
                info = tarfile.TarInfo(os.path.relpath(path, folder))
                info.size, info.mode = os.stat(path).st_size, 0o644
                with open(path, "rb") as stream:
                    archive.addfile(info, stream)

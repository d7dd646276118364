"""``oci:`` and ``oci-archive:``: an OCI image layout (:mod:`sampan.image.layout`) in a directory, or in a tar file."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator

from sampan.errors import StageFailed
from sampan.image.files import Archive, blob_chunks, read_small
from sampan.image.layout import Layout, LayoutSink, blob_path, choose
from sampan.registry.places.interface import Source
from sampan.spec.image import MANIFEST_LIMIT, Descriptor, Index, decode_as


class LayoutSource(Source):
    """An image in a layout's directory.

    Args:
        folder: The directory.
        name: Which image; empty for the only one.
    """

    def __init__(self, folder: str, name: str = "") -> None:
        self._layout = Layout(folder)
        self._name = name

    def target(self) -> Descriptor:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return choose(self._layout.index(), self._name, self._layout.path)

    def document(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return read_small(os.path.join(self._layout.path, blob_path(target.digest)), MANIFEST_LIMIT)

    def blob(self, target: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return blob_chunks(os.path.join(self._layout.path, blob_path(target.digest)))


class ArchiveSource(Source):
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

    def document(self, target: Descriptor) -> bytes:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._archive.read(blob_path(target.digest), MANIFEST_LIMIT)

    def blob(self, target: Descriptor) -> Iterator[bytes]:
        """See :class:`~sampan.registry.places.interface.Source`."""
        return self._archive.chunks(blob_path(target.digest))

    def close(self) -> None:
        """See :class:`~sampan.registry.places.interface.Source`."""
        self._archive.close()


class ArchiveSink(LayoutSink):
    """Writes an OCI layout into a new tar file, which is there when it is whole."""

    def __init__(self, file: str, name: str = "", full_name: str = "") -> None:
        self._file = os.path.abspath(file)
        try:
            self._work = tempfile.mkdtemp(prefix=f".{os.path.basename(file)}.", dir=os.path.dirname(self._file))
        except OSError as error:
            raise StageFailed("write archive", error, path=file) from error
        super().__init__(Layout(os.path.join(self._work, "layout"), create=True), name, full_name)

    def finish(self, target: Descriptor, data: bytes) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
        super().finish(target, data)
        pack(self.layout.path, os.path.join(self._work, "tar"))
        os.rename(os.path.join(self._work, "tar"), self._file)

    def close(self) -> None:
        """See :class:`~sampan.image.writing.Sink`."""
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

"""Images of one namespace: pulled, listed, resolved from whatever a user calls them, removed."""

import builtins
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from sampan.engine.model import ContainerRecord, ImageRecord
from sampan.errors import Exhausted, InvalidInput, NotFound, StageFailed
from sampan.image.model import ImageIndex
from sampan.image.reference import Reference
from sampan.spec import image as spec
from sampan.storage import transfer
from sampan.storage.unpack import snapshot_name, unpack, unpacked

if TYPE_CHECKING:
    from sampan.engine.engine import Engine
    from sampan.registry import Credentials
    from sampan.storage.images import ImageEntry

#: Label that keeps an image from collection, as containerd has it.
PINNED_LABEL = "io.cri-containerd.pinned"
_HEX = frozenset("0123456789abcdef")


class ImageUsage(msgspec.Struct, frozen=True):
    """Disk used for images."""

    path: str
    bytes: int
    inodes: int


class ResolvedImage(NamedTuple):
    """An image as a container needs it."""

    record: ImageRecord
    manifest: spec.Descriptor
    config: spec.ImageConfig
    #: Digest of what the names lead to: an index, or the manifest.
    target_digest: str


class _Content(NamedTuple):
    manifest: spec.Descriptor
    config_digest: str
    config: spec.ImageConfig
    size: int


class Images:
    """The images of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        # What a digest stands for never changes, so that it may be remembered.
        self._content = lru_cache(maxsize=1024)(self._read_content)

    def _names(self) -> Any:
        return self._engine.store.images(self._engine.namespace)

    def pull(
        self,
        reference: str,
        *,
        credentials: "Credentials | None" = None,
        progress: Callable[[Any], None] | None = None,
        platform: str = "",
        labels: dict[str, str] | None = None,
        by_digest: bool = False,
    ) -> ImageRecord:
        """Fetch an image from its registry and unpack it.

        Args:
            reference: What to ask the registry for.
            credentials: The caller's own, for the registry.
            progress: Called with each event.
            platform: Another than the machine's.
            labels: Of the name.
            by_digest: Name it by its digest as well, so that it stays, for who runs it, when the tag moves on.

        Raises:
            InvalidInput: The reference is malformed.
            NotFound: No registry has it.
            Unavailable, Unauthenticated, Corrupt, TimedOut: What went wrong with which host.
        """
        from sampan.registry import pull

        engine = self._engine
        options: dict[str, Any] = {"platform": platform} if platform else {}
        pulled = pull(
            engine.store,
            engine.namespace,
            reference,
            engine.resolver,
            credentials=credentials,
            progress=progress,
            labels=labels,
            launch=engine.zygote.run_worker if engine.zygote else None,
            **options,
        )
        if by_digest:
            self._names().put(str(Reference.parse(reference).with_digest(pulled.target.digest)), pulled.target, labels)
        return self._record(pulled.target.digest, self._names().list())

    def push(
        self,
        name: str,
        reference: str,
        *,
        credentials: "Credentials | None" = None,
        progress: Callable[[Any], None] | None = None,
        platform: str = "",
    ) -> str:
        """Send an image to a registry; the digest that it has there.

        Args:
            name: One of its names.
            reference: What it is to be called in the registry.
            credentials: The caller's own, for the registry.
            progress: Called with each event.
            platform: Of an index, send this one alone.
        """
        from sampan.registry import push

        engine = self._engine
        source = str(Reference.parse(name))
        sent = push(
            engine.store,
            engine.namespace,
            source,
            engine.resolver,
            reference=reference,
            platform=platform or None,
            credentials=credentials,
            progress=progress,
        )
        return str(sent.digest)

    def save(self, names: Sequence[str], output: str | IO[bytes]) -> None:
        """Write images into an archive that OCI's and Docker's tools read.

        Args:
            names: Images, by name.
            output: A file, which appears whole or not at all, or a stream.

        Raises:
            NotFound: An image is not there, or not complete.
            Exhausted: The disk is full.
            StageFailed: It can't be written.
        """
        canonical = [str(Reference.parse(name)) for name in names]
        if not isinstance(output, str):
            self._write(canonical, output, "standard output")
            return
        # Not a name that others could have prepared: the folder may be anybody's.
        partial = f"{output}.{secrets.token_hex(8)}.partial"
        try:
            with _writing(output), open(partial, "xb") as file:
                self._write(canonical, file, output)
                file.flush()
                os.fsync(file.fileno())
            with _writing(output):
                os.rename(partial, output)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)

    def _write(self, names: "builtins.list[str]", file: IO[bytes], where: str) -> None:
        with _writing(where):
            transfer.save(self._engine.store, self._engine.namespace, names, file.write)

    def load(self, source: str | IO[bytes]) -> "builtins.list[str]":
        """Read images from an archive, compressed or not; their names.

        Args:
            source: A file, or a stream.

        Raises:
            Corrupt: It is no archive of images.
            Exhausted: The disk is full.
            StageFailed: It can't be read.
        """
        store, namespace = self._engine.store, self._engine.namespace
        if not isinstance(source, str):
            loaded = transfer.load(store, namespace, source.read)
        else:
            try:
                with open(source, "rb") as file:
                    loaded = transfer.load(store, namespace, file.read)
            except OSError as error:
                raise StageFailed("read the archive", error, path=source) from error
        return [one.name or one.target.digest for one in loaded]

    def list(self, reference: str = "") -> "builtins.list[ImageRecord]":
        """Every image, or those that ``reference`` names."""
        if reference:
            try:
                return [self.get(reference)]
            except NotFound:
                return []
        images: dict[str, builtins.list[ImageEntry]] = {}
        for entry in self._names().list():
            # Half of an image may have been removed by hand; `gc` and `fsck` speak of that.
            if image_id := self._id_at(entry):
                images.setdefault(image_id, []).append(entry)
        return [self._record(entries[-1].target.digest, entries) for entries in images.values()]

    def get(self, reference: str) -> ImageRecord:
        """The image that a name, a digest or (the beginning of) an id leads to.

        Raises:
            NotFound: There is none.
            InvalidInput: The text is no reference, or the beginning of several ids.
        """
        return self.resolve(reference).record

    def resolve(self, reference: str) -> ResolvedImage:
        """The image with its manifest and configuration; see :meth:`get`."""
        entries = self._names().list()
        digest = self._find(reference, entries)
        content = self._content(digest)
        return ResolvedImage(self._record(digest, entries), content.manifest, content.config, digest)

    def target(self, reference: str) -> spec.Descriptor:
        """What a name, a digest or an id leads to: an index or a manifest, whatever its platforms; see :meth:`get`."""
        return self._descriptor(self._find(reference, self._names().list()))

    def _find(self, reference: str, entries: "builtins.list[ImageEntry]") -> str:
        """Digest of the target that ``reference`` leads to, by what all names lead to."""
        if not reference:
            raise InvalidInput("is empty", field="image")
        by_id = self._find_by_id(reference, entries)
        if by_id:
            return by_id
        if len(reference.removeprefix("sha256:")) == 64 and _HEX.issuperset(reference.removeprefix("sha256:")):
            raise NotFound(f'image "{reference}" does not exist')
        parsed = Reference.parse(reference)
        name = str(parsed)
        for entry in entries:
            if entry.name == name or (parsed.digest and self._is_at(entry, parsed)):
                return str(entry.target.digest)
        raise NotFound(f'image "{reference}" does not exist', hint="pull it first")

    def _is_at(self, entry: "ImageEntry", wanted: Reference) -> bool:
        """Whether an image has the wanted digest in the wanted repository: its own, or its manifest's for here."""
        if Reference.parse(entry.name).repository != wanted.repository:
            return False
        if wanted.digest == entry.target.digest:
            return True
        try:
            return wanted.digest == self._content(entry.target.digest).manifest.digest
        except NotFound:
            return False

    def _find_by_id(self, text: str, entries: "builtins.list[ImageEntry]") -> str:
        """Target of the image whose id is or begins with ``text``; empty when ``text`` looks like none."""
        digits = text.removeprefix("sha256:")
        if not (4 <= len(digits) <= 64 and _HEX.issuperset(digits)):
            return ""
        begins = f"sha256:{digits}"
        found = {
            image_id: entry.target.digest for entry in entries if (image_id := self._id_at(entry)).startswith(begins)
        }
        if len(found) > 1:
            raise InvalidInput(f'"{text}" is the beginning of {len(found)} image ids', field="image")
        return next(iter(found.values()), "")

    def _read_content(self, digest: str) -> _Content:
        """Follow an index to this machine's manifest and that to its configuration.

        Raises:
            NotFound: A part is not stored.
        """
        found = transfer.image(self._engine.store, self._descriptor(digest))
        image = found.select() if isinstance(found, ImageIndex) else found
        size = image.size if image is found else image.size + found.descriptor.size
        return _Content(image.descriptor, image.id, image.config, size)

    def _descriptor(self, digest: str) -> spec.Descriptor:
        info = self._engine.store.content.info(digest)
        return spec.Descriptor(media_type=info.media_type, digest=digest, size=info.size)

    def _record(self, digest: str, entries: "builtins.list[ImageEntry]") -> ImageRecord:
        """The record of the image that ``digest`` leads to, with those of the names that are the same image's."""
        content = self._content(digest)
        tags: builtins.list[str] = []
        digests: dict[str, None] = {}
        created, pinned = 0, False
        for entry in entries:
            if self._id_at(entry) != content.config_digest:
                continue
            parsed = Reference.parse(entry.name, default_tag="")
            if parsed.tag:
                tags.append(f"{parsed.repository}:{parsed.tag}")
            digests[f"{parsed.repository}@{entry.target.digest}"] = None
            created = max(created, _nanoseconds(entry.created_at))
            pinned = pinned or entry.labels.get(PINNED_LABEL) == "pinned"
        config = content.config.config
        return ImageRecord(
            id=content.config_digest,
            repo_tags=tuple(tags),
            repo_digests=tuple(digests),
            size=content.size,
            user=(config.user or "") if config else "",
            pinned=pinned or self._is_pinned(tags, digests),
            created_at=created,
        )

    def _is_pinned(self, *names: Iterable[str]) -> bool:
        """Whether the configuration keeps an image of these names from the kubelet's garbage collection."""
        patterns = self._engine.config.pinned_images
        return any(fnmatchcase(name, pattern) for each in names for name in each for pattern in patterns)

    def remove(self, reference: str) -> None:
        """Remove every name of the image, and what nothing else needs.

        Raises:
            NotFound: There is no such image.
        """
        image = self.resolve(reference)
        for entry in self._names().list():
            if self._id_at(entry) == image.record.id:
                self._names().delete(entry.name)
        self._engine.store.gc()

    def unused(self) -> "builtins.list[ImageRecord]":
        """Images that no container needs and that are not pinned: those that may go when room is wanted."""
        needed: set[str] = set()
        for container in self._engine.container_records.list():
            spec = container.spec
            names = {spec.image_ref or spec.image, *(mount.image for mount in spec.mounts)}
            needed |= {container.image_id, *(self._id_of(name) for name in names if name)}
        return [image for image in self.list() if not image.pinned and image.id not in needed]

    def _id_of(self, name: str) -> str:
        try:
            return self.get(name).id
        except (NotFound, InvalidInput):
            return ""

    def untag(self, name: str) -> None:
        """Remove one name; the image goes with its last one.

        The last tag of a repository takes along the names there by digest, which the user never gave.

        Raises:
            NotFound: There is no such name.
        """
        names, reference = self._names(), Reference.parse(name)
        image_id = self._id_at(names.get(str(reference)))
        names.delete(str(reference))
        same = {
            entry.name: parsed
            for entry in names.list()
            if (parsed := Reference.parse(entry.name, default_tag="")).repository == reference.repository
            and image_id == self._id_at(entry)
        }
        if reference.tag and not any(parsed.tag for parsed in same.values()):
            for each in same:
                names.delete(each)
        self._engine.store.gc()

    def tag(self, source: str, name: str) -> None:
        """Give the image ``source`` a further name."""
        self._names().put(str(Reference.parse(name)), self.target(source))

    def _id_at(self, entry: "ImageEntry") -> str:
        """Id of the image that a name leads to; empty if a part of it is not stored."""
        try:
            return self._content(entry.target.digest).config_digest
        except NotFound:
            return ""

    def config(self, reference: str) -> spec.ImageConfig:
        """The configuration of an image."""
        return self.resolve(reference).config

    def find(self, reference: str) -> ResolvedImage | None:
        """An image; None if there is none of that name or id, or neither was given."""
        try:
            return self.resolve(reference) if reference else None
        except NotFound:
            return None

    def config_of(self, record: ContainerRecord) -> spec.ContainerConfig:
        """What a container's image says of running it; empty when the image is gone or there was none."""
        image = self.find(record.image_id)
        return (image.config.config if image else None) or spec.ContainerConfig()

    def snapshot_of(self, image: ResolvedImage) -> str:
        """The snapshot that holds the image's root file system, unpacked now if it is not."""
        if unpacked(self._engine.store, image.config):
            return snapshot_name(image.config)
        zygote = self._engine.zygote
        return unpack(self._engine.store, image.manifest, launch=zygote.run_worker if zygote else None)

    def usage(self) -> ImageUsage:
        """Disk used by content and snapshots of images."""
        total = inodes = 0
        for blob in self._engine.store.content.walk():
            total += blob.size
            inodes += 1
        for snapshot in self._engine.store.snapshots.walk():
            if snapshot.kind == "committed":
                used = self._engine.store.snapshots.usage(snapshot.key)
                total += used.bytes
                inodes += used.inodes
        return ImageUsage(os.path.join(self._engine.config.root, "snapshots"), total, inodes)


@contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has enough
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Exhausted(f"{where}: no space left to write the archive") from error
        raise StageFailed("write the archive", error, path=where) from error


def _nanoseconds(moment: Any) -> int:
    return int(moment)

"""The registry server's files: blobs, manifests, tags, uploads in one directory.

::

    ROOT/blobs/ALGORITHM/HEX                        shared by all repositories, immutable
    ROOT/repositories/NAME/_blobs/ALGORITHM-HEX     empty: the repository has the blob
    ROOT/repositories/NAME/_manifests/ALGORITHM-HEX the manifest's media type; its bytes are a blob
    ROOT/repositories/NAME/_tags/TAG                a digest
    ROOT/repositories/NAME/_subjects/ALGORITHM-HEX/ALGORITHM-HEX   empty: the second refers to the first
    ROOT/uploads/ID                                 what has come of a blob

A component of a repository's name never starts with an underscore, so names and our folders can't collide. Every file
is written beside its place and renamed.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator

from sampan.errors import Corrupt, InvalidInput, NotFound
from sampan.spec.image import Descriptor, Index, Manifest, check_digest, decode_manifest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_UPLOAD = re.compile(r"[0-9a-f]{32}\Z")


class ManifestUnknown(NotFound):
    """The repository has no such manifest."""


class NameUnknown(NotFound):
    """The registry has no such repository."""


class BlobUnknown(NotFound):
    """The repository has no such blob."""


class UploadUnknown(NotFound):
    """There is no such upload."""


class Tree:
    """See the module."""

    def __init__(self, root: str) -> None:
        self.root = root
        for name in ("blobs", "repositories", "uploads"):
            os.makedirs(os.path.join(root, name), mode=0o755, exist_ok=True)

    # ------------------------------------------------------------------ blobs

    def blob_path(self, digest: str) -> str:
        """Where a blob's bytes lie."""
        return os.path.join(self.root, "blobs", *check_digest(digest))

    def open_blob(self, name: str, digest: str) -> int:
        """A descriptor of a repository's blob.

        Raises:
            BlobUnknown: The repository does not have it.
        """
        if not os.path.exists(self._mark(name, "_blobs", digest)):
            raise BlobUnknown(f"{name}: {digest}")
        return os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC)

    def has_blob(self, name: str, digest: str) -> bool:
        """Whether the repository has it."""
        return os.path.exists(self._mark(name, "_blobs", digest))

    def link_blob(self, name: str, digest: str) -> None:
        """Let a repository have a blob that is stored."""
        self._write(self._mark(name, "_blobs", digest), b"")

    def delete_blob(self, name: str, digest: str) -> None:
        """Take a blob from a repository; its bytes may be another one's too and stay."""
        try:
            os.unlink(self._mark(name, "_blobs", digest))
        except FileNotFoundError:
            raise BlobUnknown(f"{name}: {digest}") from None

    # ------------------------------------------------------------------ uploads

    def start_upload(self) -> str:
        """A new, empty upload."""
        upload = secrets.token_hex(16)
        os.close(os.open(self._upload(upload), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return upload

    def upload_size(self, upload: str) -> int:
        """Bytes that have come."""
        try:
            return os.stat(self._upload(upload)).st_size
        except FileNotFoundError:
            raise UploadUnknown(upload) from None

    def append(self, upload: str, chunks: Iterable[bytes]) -> int:
        """Add to an upload; its size then. What came before an interruption stays."""
        self.upload_size(upload)
        with open(self._upload(upload), "ab") as file:
            file.writelines(chunks)
            return file.tell()

    def finish_upload(self, name: str, upload: str, digest: str) -> None:
        """Check an upload's digest and make it a blob of a repository.

        Raises:
            Corrupt: The bytes have another digest; the upload is gone.
        """
        algorithm, encoded = check_digest(digest)
        path = self._upload(upload)
        try:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise UploadUnknown(upload) from None
        if found != encoded:
            os.unlink(path)
            raise Corrupt(f"the bytes have digest {algorithm}:{found}")
        target = self.blob_path(digest)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(path, target)
        self.link_blob(name, digest)

    def cancel_upload(self, upload: str) -> None:
        """Throw an upload away."""
        try:
            os.unlink(self._upload(upload))
        except FileNotFoundError:
            raise UploadUnknown(upload) from None

    def _upload(self, upload: str) -> str:
        if not _UPLOAD.match(upload):
            raise UploadUnknown(upload[:40])
        return os.path.join(self.root, "uploads", upload)

    # ------------------------------------------------------------------ manifests

    def manifest(self, name: str, target: str) -> tuple[str, str, bytes]:
        """Digest, media type and bytes of a manifest by tag or digest."""
        digest = target if ":" in target else self._tag(name, target)
        try:
            with open(self._mark(name, "_manifests", digest)) as file:
                media_type = file.read()
            with open(self.blob_path(digest), "rb") as file:
                return digest, media_type, file.read()
        except FileNotFoundError:
            raise ManifestUnknown(f"{name}: {target}") from None

    def put_manifest(self, name: str, target: str, data: bytes, media_type: str) -> tuple[str, str]:
        """Store a manifest under a tag or its digest.

        Returns:
            Its digest, and its subject's or nothing.

        Raises:
            Corrupt: It is no manifest, or has not the digest it is put under.
            BlobUnknown, ManifestUnknown: It speaks of what the repository does not have.
        """
        algorithm = check_digest(target)[0] if ":" in target else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if ":" in target and target != digest:
            raise Corrupt(f"the manifest has digest {digest}")
        document = decode_manifest(data, media_type)
        self._check_parts(name, document)
        path = self.blob_path(digest)
        self._write(path, data)
        self._write(self._mark(name, "_manifests", digest), (media_type or document.media_type).encode())
        subject = document.subject.digest if document.subject else ""
        if subject:
            self._write(self._mark(name, os.path.join("_subjects", subject.replace(":", "-")), digest), b"")
        if target != digest:
            self._write(self._tag_path(name, target), digest.encode())
        return digest, subject

    def _check_parts(self, name: str, document: Manifest | Index) -> None:
        if isinstance(document, Index):
            for child in document.manifests:
                if not os.path.exists(self._mark(name, "_manifests", child.digest)):
                    raise ManifestUnknown(f"{name}: {child.digest}")
            return
        for part in (document.config, *document.layers):
            if not part.urls and not self.has_blob(name, part.digest):
                raise BlobUnknown(f"{name}: {part.digest}")

    def delete_manifest(self, name: str, target: str) -> None:
        """Delete a tag, or a manifest with the tags that lead to it."""
        if ":" not in target:
            self._tag(name, target)
            os.unlink(self._tag_path(name, target))
            return
        _, media_type, data = self.manifest(name, target)
        subject = decode_manifest(data, media_type).subject
        if subject:
            # First, for once the manifest has gone nothing says what it referred to.
            _remove(self._mark(name, os.path.join("_subjects", subject.digest.replace(":", "-")), target))
        os.unlink(self._mark(name, "_manifests", target))
        for tag in self.tags(name):
            if self._tag(name, tag) == target:
                os.unlink(self._tag_path(name, tag))

    def referrers(self, name: str, subject: str) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is ``subject``, as the referrers API gives them."""
        check_digest(subject)
        folder = os.path.join(self._repository(name), "_subjects", subject.replace(":", "-"))
        found = []
        for entry in _names(folder):
            try:
                digest, media_type, data = self.manifest(name, entry.replace("-", ":", 1))
            except ManifestUnknown:
                continue  # deleted since, or never wholly put
            document = decode_manifest(data, media_type)
            kind = document.artifact_type
            if not kind and isinstance(document, Manifest):
                kind = document.config.media_type
            found.append(
                Descriptor(
                    media_type=media_type,
                    digest=digest,
                    size=len(data),
                    artifact_type=kind,
                    annotations=document.annotations,
                )
            )
        return found

    # ------------------------------------------------------------------ lists

    def tags(self, name: str) -> list[str]:
        """Tags of a repository, sorted.

        Raises:
            NameUnknown: There is no such repository.
        """
        if not os.path.isdir(os.path.join(self._repository(name), "_manifests")):
            raise NameUnknown(name)
        return _names(os.path.join(self._repository(name), "_tags"))

    def repositories(self) -> list[str]:
        """Names of all repositories that have a manifest, sorted."""
        return sorted(self._walk(os.path.join(self.root, "repositories"), ""))

    def _walk(self, folder: str, name: str) -> Iterator[str]:
        for entry in _names(folder):
            if entry == "_manifests" and _names(os.path.join(folder, entry)):
                yield name
            elif not entry.startswith("_"):
                yield from self._walk(os.path.join(folder, entry), f"{name}/{entry}" if name else entry)

    # ------------------------------------------------------------------ paths

    def _repository(self, name: str) -> str:
        if not NAME.match(name) or len(name) > 255:
            raise InvalidInput(f'"{name[:60]}" is not a repository', field="name")
        return os.path.join(self.root, "repositories", name)

    def _mark(self, name: str, folder: str, digest: str) -> str:
        check_digest(digest)
        return os.path.join(self._repository(name), folder, digest.replace(":", "-"))

    def _tag_path(self, name: str, tag: str) -> str:
        if not TAG.match(tag):
            raise InvalidInput(f'"{tag[:60]}" is not a tag', field="reference")
        return os.path.join(self._repository(name), "_tags", tag)

    def _tag(self, name: str, tag: str) -> str:
        try:
            with open(self._tag_path(name, tag)) as file:
                return file.read()
        except FileNotFoundError:
            raise ManifestUnknown(f"{name}: {tag}") from None

    def _write(self, path: str, data: bytes) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = os.path.join(self.root, "uploads", f".{secrets.token_hex(8)}")
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass

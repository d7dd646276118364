"""The least that makes and pushes an OCI image: deterministic layers, multi-platform indexes, a registry client.

Independent of the package on purpose: images made here test its puller and unpacker against other code than its own.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import platform
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

#: Names that OCI gives the machines we may be on.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def host_architecture() -> str:
    """This machine's architecture, as OCI names it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Entry:
    """One entry of a layer."""

    path: str
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    target: str = ""
    uid: int = 0
    gid: int = 0


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, tarfile.DIRTYPE, mode=mode)


def file(path: str, data: bytes | str | Path, mode: int = 0o644) -> Entry:
    """A file of given content, or a copy of another file."""
    content = data.read_bytes() if isinstance(data, Path) else data.encode() if isinstance(data, str) else data
    return Entry(path, data=content, mode=mode)


def hard_link(path: str, target: str, mode: int = 0o755) -> Entry:
    """Another name of an earlier file of the same layer; ``mode`` is the file's, since unpackers set it again."""
    return Entry(path, tarfile.LNKTYPE, target=target, mode=mode)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, tarfile.SYMTYPE, target=target, mode=0o777)


def digest_of(data: bytes) -> str:
    """The digest of a blob."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Layer:
    """A compressed layer and the digest of what is in it."""

    data: bytes
    diff_id: str


def layer(entries: list[Entry]) -> Layer:
    """A layer of these entries, in this order; the same bytes whenever it is made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.path.lstrip("/"))
            info.type, info.mode, info.size = entry.kind, entry.mode, len(entry.data)
            info.linkname = entry.target.lstrip("/") if entry.kind == tarfile.LNKTYPE else entry.target
            info.uid, info.gid = entry.uid, entry.gid
            archive.addfile(info, io.BytesIO(entry.data))
    plain = buffer.getvalue()
    return Layer(gzip.compress(plain, compresslevel=6, mtime=0), digest_of(plain))


@dataclass(frozen=True)
class Image:
    """Layers, and the ``config`` object of the image configuration (Env, Entrypoint, Cmd, User, ...)."""

    layers: list[Layer]
    config: dict[str, Any] = field(default_factory=dict)

    def with_config(self, **changes: Any) -> Image:
        """The same layers with other settings."""
        return Image(self.layers, {**self.config, **changes})

    def documents(self, architecture: str) -> tuple[bytes, bytes]:
        """The configuration and the manifest for one architecture."""
        config = _json(
            {
                "architecture": architecture,
                "os": "linux",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": [item.diff_id for item in self.layers]},
                "history": [{"created_by": "scripts/oci_image.py"} for _ in self.layers],
            }
        )
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _descriptor(CONFIG, config),
                "layers": [_descriptor(LAYER, item.data) for item in self.layers],
            }
        )
        return config, manifest


def index_of(image: Image, architectures: list[str]) -> tuple[bytes, dict[str, bytes], list[bytes]]:
    """An index over the image for several architectures: its bytes, all blobs by digest, and the manifests."""
    blobs = {digest_of(item.data): item.data for item in image.layers}
    manifests, descriptors = [], []
    for architecture in architectures:
        config, manifest = image.documents(architecture)
        blobs[digest_of(config)] = config
        manifests.append(manifest)
        named = {"platform": {"architecture": architecture, "os": "linux"}}
        descriptors.append({**_descriptor(MANIFEST, manifest), **named})
    return _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors}), blobs, manifests


def both_architectures() -> list[str]:
    """This machine's architecture and another one, so that whoever pulls must choose."""
    ours = host_architecture()
    return ["arm64" if ours == "amd64" else "amd64", ours]


def push(image: Image, address: str, repository: str, tag: str) -> str:
    """Pushes the image as a two-architecture index to ``http://host:port``; returns the index's digest."""
    index, blobs, manifests = index_of(image, both_architectures())
    client = _Client(address, repository)
    try:
        for digest, data in blobs.items():
            client.blob(digest, data)
        for manifest in manifests:
            client.manifest(digest_of(manifest), MANIFEST, manifest)
        client.manifest(tag, INDEX, index)
    finally:
        client.close()
    return digest_of(index)


def write_layout(image: Image, folder: Path, name: str = "latest") -> str:
    """Writes an OCI layout of this machine's architecture, one image named ``name``; returns the manifest's digest."""
    config, manifest = image.documents(host_architecture())
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in [config, manifest, *(item.data for item in image.layers)]:
        (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    entry = {**_descriptor(MANIFEST, manifest), "annotations": {"org.opencontainers.image.ref.name": name}}
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}))
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return digest_of(manifest)


def write_archive(image: Image, path: Path, name: str = "latest") -> str:
    """Writes the layout of ``write_layout`` as a tar archive."""
    folder = path.with_name(path.name + ".layout")
    digest = write_layout(image, folder, name)
    with tarfile.open(path, "w") as archive:
        for item in sorted(folder.rglob("*")):
            archive.add(item, item.relative_to(folder), recursive=False)
    for item in sorted(folder.rglob("*"), reverse=True):
        item.rmdir() if item.is_dir() else item.unlink()
    folder.rmdir()
    return digest


class _Client:
    """The push side of the distribution protocol, for one repository of a plain HTTP registry."""

    def __init__(self, address: str, repository: str) -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
        self._root = f"/v2/{repository}"

    def close(self) -> None:
        self._connection.close()

    def blob(self, digest: str, data: bytes) -> None:
        if self._call("HEAD", f"{self._root}/blobs/{digest}", expect=(200, 404))[0] == 200:
            return
        _, location = self._call("POST", f"{self._root}/blobs/uploads/", expect=(202,))
        parts = urlsplit(location)
        query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
        self._call("PUT", f"{parts.path}?{query}", data, "application/octet-stream", expect=(201,))

    def manifest(self, reference: str, media_type: str, data: bytes) -> None:
        self._call("PUT", f"{self._root}/manifests/{reference}", data, media_type, expect=(201,))

    def _call(
        self, method: str, path: str, data: bytes = b"", media_type: str = "", *, expect: tuple[int, ...]
    ) -> tuple[int, str]:
        headers = {"Content-Type": media_type} if media_type else {}
        self._connection.request(method, path, body=data, headers=headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status not in expect:
            raise OSError(f"{method} {path}: {response.status} {body[:200].decode(errors='replace')}")
        return response.status, response.getheader("Location", "")


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()

"""Uploading blobs: whole or in chunks, and on from where a connection broke; or mounted from another repository."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from sampan.errors import (
    Corrupt,
    Denied,
    InvalidInput,
    NotFound,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from sampan.registry.auth import scope
from sampan.registry.client import Client
from sampan.registry.progress import Reporter
from sampan.registry.transport import Answer, Cancelled, Watch
from sampan.spec.image import Descriptor

if TYPE_CHECKING:
    from typing import IO

#: Larger blobs go in chunks of this size, so that a broken connection costs at most one.
CHUNK = 32 << 20
_PIECE = 1 << 20
_RESTARTS = 3
_FROM_ANOTHER = (NotFound, Denied, InvalidInput, Unsupported, Unauthenticated)


class Uploader:
    """Uploads blobs to one repository of one host."""

    def __init__(self, client: Client, reporter: Reporter, chunk: int = CHUNK) -> None:
        self._client = client
        self._reporter = reporter
        self._chunk = chunk

    def mount(self, digest: str, source: str) -> str:
        """Ask for a blob of another repository; the address of an upload where the host begins one instead."""
        watch = self._client.watch(self._client.limits.document)
        url = self._client.url("blobs/uploads/", {"mount": digest, "from": source})
        scopes = (scope(self._client.name, "pull,push"), scope(source, "pull"))
        try:
            answer = self._client.request("POST", url, ok=(201, 202), watch=watch, scopes=scopes, body=b"")
        except _FROM_ANOTHER:
            return self.begin()
        answer.close()
        return "" if answer.status == 201 else _location(answer)

    def begin(self) -> str:
        """Begin an upload; its address."""
        watch = self._client.watch(self._client.limits.document)
        url = self._client.url("blobs/uploads/")
        answer = self._client.request("POST", url, ok=(202,), watch=watch, actions="pull,push", body=b"")
        answer.close()
        return _location(answer)

    def upload(self, blob: Descriptor, file: "IO[bytes]", location: str = "") -> None:
        """Send a blob's bytes, from the start or on from where a connection broke."""
        watch = self._client.watch(self._client.limits.blob)
        for attempt in range(1, _RESTARTS + 1):
            try:
                location = location or self.begin()
                if blob.size > self._chunk:
                    location = self._send_chunks(blob, file, location, watch)
                    self._finish(blob, location, b"", watch)
                else:
                    file.seek(0)
                    self._finish(blob, location, self._pieces(blob, file, 0, blob.size), watch)
                return
            except Cancelled:
                raise
            except (Unavailable, TimedOut, NotFound, InvalidInput) as error:
                # An upload the host has lost is begun anew.
                if attempt == _RESTARTS or self._client.has_blob(blob.digest) == blob.size:
                    if attempt == _RESTARTS:
                        raise
                    return
                self._client.pause(attempt, error, watch)
                location = ""

    def _finish(self, blob: Descriptor, location: str, body: "bytes | Iterator[bytes]", watch: Watch) -> None:
        url = f"{location}{'&' if urlsplit(location).query else '?'}digest={blob.digest.replace(':', '%3A')}"
        length = 0 if isinstance(body, bytes) else blob.size
        headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        request = {"actions": "pull,push", "headers": headers, "body": body}
        self._client.request("PUT", url, ok=(201, 204), watch=watch, **request).close()  # type: ignore[arg-type]

    def _send_chunks(self, blob: Descriptor, file: "IO[bytes]", location: str, watch: Watch) -> str:
        offset, failures = 0, 0
        while offset < blob.size:
            end = min(offset + self._chunk, blob.size)
            file.seek(offset)
            headers = {
                "Content-Length": str(end - offset),
                "Content-Range": f"{offset}-{end - 1}",
                "Content-Type": "application/octet-stream",
            }
            pieces = self._pieces(blob, file, offset, end)
            try:
                answer = self._client.request(
                    "PATCH",
                    location,
                    ok=(202, 204, 416),
                    watch=watch,
                    actions="pull,push",
                    headers=headers,
                    body=pieces,
                )
                answer.close()
                location = _location(answer) if answer.header("Location") else location
                come = _received(answer)
                offset = end if come is None and answer.status != 416 else min(come or 0, blob.size)
                failures = 0 if answer.status != 416 else failures + 1
            except Cancelled:
                raise
            except (Unavailable, TimedOut) as error:
                failures += 1
                if failures >= self._client.limits.attempts:
                    raise
                self._client.pause(failures, error, watch)
                location, offset = self._status(location, watch)
            if failures >= self._client.limits.attempts:
                raise Unavailable(f"{self._client.host.name}: blob {blob.digest}: does not take the upload's chunks")
        return location

    def _status(self, location: str, watch: Watch) -> tuple[str, int]:
        """How much of an upload the host has."""
        answer = self._client.request("GET", location, ok=(204, 200), watch=watch, actions="pull,push")
        answer.close()
        fresh = _location(answer) if answer.header("Location") else location
        return fresh, _received(answer) or 0

    def _pieces(self, blob: Descriptor, file: "IO[bytes]", offset: int, end: int) -> Iterator[bytes]:
        host = self._client.host.name
        while offset < end:
            data = file.read(min(_PIECE, end - offset))
            if not data:
                raise Corrupt(f"content {blob.digest}: has {offset} bytes, not {blob.size}")
            yield data
            offset += len(data)
            self._reporter.bytes("uploading", blob.digest, offset, blob.size, host)


def _location(answer: Answer) -> str:
    location = answer.header("Location")
    if not location:
        raise Unavailable(f"{answer.what}: {answer.status} without the upload's address")
    target = str(urljoin(answer.url, location))
    if urlsplit(answer.url).scheme == "https" and urlsplit(target).scheme != "https":
        raise Unavailable(f"{answer.what}: sends the upload from https to {urlsplit(target).scheme}")
    return target


def _received(answer: Answer) -> int | None:
    """Bytes the host has, by its Range header: ``0-0`` is nothing or one byte, and is taken for nothing."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.header("Range"))
    if not match:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0

"""A registry: the server's side of the OCI distribution specification 1.1, over a directory.

Scope: all endpoints of the specification (pull, push monolithic and chunked, mounts, tags, deletion, referrers) and the
catalog; TLS; Basic authentication. One thread for a connection. Meant for a development machine, a test, an edge node;
not for the open internet, where a proxy in front of it counts and limits.
"""

import base64
import hmac
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from sampan.errors import Corrupt, InvalidInput, NotFound, SampanError, Unsupported
from sampan.registry.tree import BlobUnknown, ManifestUnknown, NameUnknown, Tree, UploadUnknown
from sampan.spec.image import MANIFEST_LIMIT, MT_OCI_INDEX, Index

_CHUNK = 256 << 10
_ROUTES = tuple(
    (re.compile(rf"/v2/{pattern}\Z"), name)
    for pattern, name in (
        ("", "root"),
        ("_catalog", "catalog"),
        ("(?P<name>.+)/tags/list", "tags"),
        ("(?P<name>.+)/manifests/(?P<target>[^/]+)", "manifest"),
        ("(?P<name>.+)/referrers/(?P<digest>[^/]+)", "referrers"),
        ("(?P<name>.+)/blobs/uploads/", "uploads"),
        ("(?P<name>.+)/blobs/uploads/(?P<upload>[^/]+)", "upload"),
        ("(?P<name>.+)/blobs/(?P<digest>[^/]+)", "blob"),
    )
)
_CODES: tuple[tuple[type[SampanError], int, str], ...] = (
    (BlobUnknown, 404, "BLOB_UNKNOWN"),
    (ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
    (NameUnknown, 404, "NAME_UNKNOWN"),
    (UploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
    (NotFound, 404, "NAME_UNKNOWN"),
    (Corrupt, 400, "DIGEST_INVALID"),
    (Unsupported, 415, "UNSUPPORTED"),
    (InvalidInput, 400, "NAME_INVALID"),
)


class Handler(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    server_version = "sampan-registry"
    sys_version = ""
    timeout = 120
    #: Whole responses leave in one segment, not in two that wait for each other.
    wbufsize = 64 << 10
    disable_nagle_algorithm = True
    server: "_Server"
    _methods: ClassVar[dict[str, tuple[str, ...]]] = {
        "root": ("GET", "HEAD"),
        "catalog": ("GET",),
        "tags": ("GET",),
        "manifest": ("GET", "HEAD", "PUT", "DELETE"),
        "referrers": ("GET",),
        "uploads": ("POST",),
        "upload": ("GET", "PATCH", "PUT", "DELETE"),
        "blob": ("GET", "HEAD", "DELETE"),
    }

    # ------------------------------------------------------------------ dispatch

    def _dispatch(self) -> None:
        self.query: dict[str, list[str]] = {}
        self._unread = int(self.headers.get("Content-Length") or 0) if self._plain_length() else 0
        try:
            registry = self.server.registry
            if registry.intercept and registry.intercept(self):
                return
            if not registry.admits(self.headers.get("Authorization", "")):
                self.refuse()
                return
            self._route()
        except SampanError as error:
            self._fail(error)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError, TimeoutError):
            self.close_connection = True

    # The names are http.server's.
    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _dispatch  # noqa: N815

    def _plain_length(self) -> bool:
        return (self.headers.get("Content-Length") or "").isdecimal()

    def _route(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        for pattern, name in _ROUTES:
            if match := pattern.match(path):
                if self.command not in self._methods[name]:
                    self._answer_error(405, "UNSUPPORTED", f"{self.command} is not for this")
                    return
                getattr(self, f"_{name}")(**match.groupdict())
                return
        self._answer_error(404, "NAME_UNKNOWN", "no such endpoint")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: who wants a log sets ``intercept``."""

    def _fail(self, error: SampanError) -> None:
        for kind, status, code in _CODES:
            if isinstance(error, kind):
                self._answer_error(status, code, error.message)
                return
        self._answer_error(500, "UNKNOWN", error.message)

    def refuse(self) -> None:
        """Answer 401."""
        realm = {"WWW-Authenticate": 'Basic realm="sampan"'}
        self._answer_error(401, "UNAUTHORIZED", "authentication is required", realm)

    def _answer_error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = msgspec.json.encode({"errors": [{"code": code, "message": message, "detail": None}]})
        self.answer(status, body, {"Content-Type": "application/json", **(headers or {})})

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response."""
        if self._unread or self.headers.get("Transfer-Encoding"):
            # What of the request was not read would be taken for the next one.
            self.close_connection = True
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    # ------------------------------------------------------------------ bodies

    def _body(self) -> Iterator[bytes]:
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            yield from self._chunked()
            return
        while self._unread:
            data = self.rfile.read(min(_CHUNK, self._unread))
            if not data:
                self.close_connection = True
                raise InvalidInput("the body ended early", field="body")
            self._unread -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(80).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", line):
                self.close_connection = True
                raise InvalidInput("a chunk of the body has no size", field="body")
            size = int(line, 16)
            while size:
                data = self.rfile.read(min(_CHUNK, size))
                if not data:
                    self.close_connection = True
                    raise InvalidInput("the body ended early", field="body")
                size -= len(data)
                yield data
            self.rfile.readline(8)
            if line.strip(b"0") == b"":
                del self.headers["Transfer-Encoding"]
                return

    def _one(self, name: str) -> str:
        return self.query.get(name, [""])[0]

    @property
    def tree(self) -> Tree:
        """The files."""
        return self.server.registry.tree

    # ------------------------------------------------------------------ endpoints

    def _root(self) -> None:
        headers = {"Docker-Distribution-API-Version": "registry/2.0", "Content-Type": "application/json"}
        self.answer(200, b"{}", headers)

    def _catalog(self) -> None:
        self._list(self.tree.repositories(), "repositories", {}, "/v2/_catalog")

    def _tags(self, name: str) -> None:
        self._list(self.tree.tags(name), "tags", {"name": name}, f"/v2/{name}/tags/list")

    def _list(self, items: list[str], field: str, document: dict[str, object], path: str) -> None:
        if last := self._one("last"):
            items = [item for item in items if item > last]
        headers = {"Content-Type": "application/json"}
        count = self._one("n")
        if count.isdecimal() and int(count) < len(items):
            items = items[: int(count)]
            if items:
                headers["Link"] = f'<{path}?n={count}&last={quote(items[-1])}>; rel="next"'
        self.answer(200, msgspec.json.encode({**document, field: items}), headers)

    def _manifest(self, name: str, target: str) -> None:
        if self.command == "DELETE":
            self.tree.delete_manifest(name, target)
            self.answer(202)
        elif self.command == "PUT":
            self._put_manifest(name, target)
        else:
            digest, media_type, data = self.tree.manifest(name, target)
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "Content-Length": str(len(data))}
            self.answer(200, data, headers)

    def _put_manifest(self, name: str, target: str) -> None:
        data = bytearray()
        for chunk in self._body():
            data += chunk
            if len(data) > MANIFEST_LIMIT:
                self._answer_error(413, "MANIFEST_INVALID", f"more than {MANIFEST_LIMIT} bytes")
                return
        media_type = (self.headers.get("Content-Type") or "").partition(";")[0].strip()
        digest, subject = self.tree.put_manifest(name, target, bytes(data), media_type)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if subject:
            headers["OCI-Subject"] = subject
        self.answer(201, b"", headers)

    def _referrers(self, name: str, digest: str) -> None:
        found = self.tree.referrers(name, digest)
        headers = {"Content-Type": MT_OCI_INDEX}
        if kind := self._one("artifactType"):
            found = [descriptor for descriptor in found if descriptor.artifact_type == kind]
            headers["OCI-Filters-Applied"] = "artifactType"
        index = Index(schema_version=2, media_type=MT_OCI_INDEX, manifests=tuple(found))
        # "manifests" is required even when it is empty, which the encoder would leave out.
        document = {**msgspec.to_builtins(index), "manifests": msgspec.to_builtins(found)}
        self.answer(200, msgspec.json.encode(document), headers)

    def _blob(self, name: str, digest: str) -> None:
        if self.command == "DELETE":
            self.tree.delete_blob(name, digest)
            self.answer(202)
            return
        fd = self.tree.open_blob(name, digest)
        try:
            self._send_file(fd, digest)
        finally:
            os.close(fd)

    def _send_file(self, fd: int, digest: str) -> None:
        size = os.fstat(fd).st_size
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Accept-Ranges": "bytes",
        }
        start, end, status = 0, size, 200
        if wanted := re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", self.headers.get("Range") or ""):
            start, end, status = int(wanted[1]), min(size, int(wanted[2] or size) + 1 if wanted[2] else size), 206
            if start >= end:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.answer(status, b"", {**headers, "Content-Length": str(end - start)})
        if self.command != "HEAD":
            self._copy_out(fd, start, end)

    def _copy_out(self, fd: int, start: int, end: int) -> None:
        if start >= end:
            return  # of an empty blob; sendfile takes no count of 0
        if isinstance(self.connection, ssl.SSLSocket):
            while start < end and (data := os.pread(fd, min(_CHUNK, end - start), start)):
                self.wfile.write(data)
                start += len(data)
            self.wfile.flush()
            return
        with open(os.dup(fd), "rb") as file:
            self.connection.sendfile(file, start, end - start)

    def _uploads(self, name: str) -> None:
        self.tree.has_blob(name, "sha256:" + "0" * 64)  # refuses a bad name before anything is made
        digest, source = self._one("mount"), self._one("from")
        if digest and source and self.tree.has_blob(source, digest):
            self.tree.link_blob(name, digest)
            self._created(name, digest)
            return
        upload = self.tree.start_upload()
        if digest := self._one("digest"):
            self.tree.append(upload, self._body())
            self.tree.finish_upload(name, upload, digest)
            self._created(name, digest)
            return
        self._accepted(202, name, upload, 0)

    def _upload(self, name: str, upload: str) -> None:
        size = self.tree.upload_size(upload)
        if self.command == "GET":
            self._accepted(204, name, upload, size)
        elif self.command == "DELETE":
            self.tree.cancel_upload(upload)
            self.answer(204)
        else:
            with self.server.registry.upload_lock(upload):
                self._receive(name, upload)

    def _receive(self, name: str, upload: str) -> None:
        size = self.tree.upload_size(upload)
        span = re.fullmatch(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/.*)?", self.headers.get("Content-Range") or "")
        if span and int(span[1]) != size:
            self._accepted(416, name, upload, size)
            return
        size = self.tree.append(upload, self._body())
        if self.command == "PATCH":
            self._accepted(202, name, upload, size)
            return
        digest = self._one("digest")
        self.tree.finish_upload(name, upload, digest)
        self._created(name, digest)

    def _accepted(self, status: int, name: str, upload: str, size: int) -> None:
        headers = {"Location": f"/v2/{name}/blobs/uploads/{upload}", "Docker-Upload-UUID": upload}
        headers["Range"] = f"0-{max(0, size - 1)}"
        self.answer(status, b"", headers)

    def _created(self, name: str, digest: str) -> None:
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
        self.answer(201, b"", headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    registry: "RegistryServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that breaks off is no event."""


#: Sees each request first; True if it answered it.
Intercept = Callable[[Handler], bool]


class RegistryServer:
    """A registry on an address of this machine.

    Args:
        root: Its directory.
        host: Address to listen on.
        port: Port; 0 for any that is free.
        tls: Context with the server's certificate, or None for plain HTTP.
        users: User names and passwords; None lets everyone in.
        intercept: Sees each request first, and may answer it.
    """

    def __init__(
        self,
        root: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        intercept: Intercept | None = None,
    ) -> None:
        self.tree = Tree(root)
        self.intercept = intercept
        self._users = None if users is None else {f"{name}:{word}" for name, word in users.items()}
        self._server = _Server((host, port), Handler, bind_and_activate=True)
        self._server.registry = self
        if tls is not None:
            # Without the handshake in accept(): a silent client would hold up all others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread: threading.Thread | None = None
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """``host:port``."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def admits(self, authorization: str) -> bool:
        """Whether a request with this Authorization header is let in."""
        if self._users is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded.encode(), validate=True)
        except ValueError:
            return False
        known = [hmac.compare_digest(given, user.encode()) for user in self._users]
        return scheme.lower() == "basic" and any(known)

    def upload_lock(self, upload: str) -> threading.Lock:
        """One request at a time for an upload."""
        with self._lock:
            if len(self._locks) > 10_000:
                self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
            return self._locks.setdefault(upload, threading.Lock())

    def start(self) -> "RegistryServer":
        """Serve in a thread."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="registry", daemon=True)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve in this thread until :meth:`close`."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop listening."""
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

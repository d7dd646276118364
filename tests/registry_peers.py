"""Registries for tests: ours with faults to order, Debian's docker-registry, a token server; and small images."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from sampan.registry.server import Handler, RegistryServer
from sampan.registry.tree import Tree
from sampan.spec.image import (
    MT_OCI_CONFIG,
    MT_OCI_INDEX,
    MT_OCI_LAYER_GZIP,
    MT_OCI_MANIFEST,
    Descriptor,
    describe,
)
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store

#: bcrypt of "secret", for docker-registry's htpasswd file.
HTPASSWD = "user:$2b$05$JFbkf1dFuqL0OAfdGPhHMO7cKOb7GkucTKHQBghOqEXO085TeRety\n"


# ------------------------------------------------------------------ images


@dataclass
class Image:
    """An image in memory: blobs by digest, and what names it."""

    target: Descriptor
    blobs: dict[str, bytes]
    manifests: list[Descriptor]
    layers: list[Descriptor] = field(default_factory=list)
    config: Descriptor | None = None

    def put_into(self, tree: Tree, name: str, tag: str) -> None:
        """Store it in a registry's tree."""
        known = {descriptor.digest for descriptor in self.manifests}
        for digest, data in self.blobs.items():
            if digest not in known:
                upload = tree.start_upload()
                tree.append(upload, [data])
                tree.finish_upload(name, upload, digest)
        for descriptor in self.manifests:
            tree.put_manifest(name, descriptor.digest, self.blobs[descriptor.digest], descriptor.media_type)
        tree.put_manifest(name, tag, self.blobs[self.target.digest], self.target.media_type)

    def write_layout(self, folder: Path, tag: str = "latest") -> Path:
        """Write it as an OCI layout."""
        (folder / "blobs/sha256").mkdir(parents=True)
        for digest, data in self.blobs.items():
            (folder / "blobs" / digest.replace(":", "/")).write_bytes(data)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        named = msgspec.structs.replace(self.target, annotations={"org.opencontainers.image.ref.name": tag})
        index = {"schemaVersion": 2, "mediaType": MT_OCI_INDEX, "manifests": [msgspec.to_builtins(named)]}
        (folder / "index.json").write_text(json.dumps(index))
        return folder


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar archive, the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o755, 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_image(
    layers: Sequence[Mapping[str, bytes]], *, architecture: str = "amd64", config: Mapping[str, object] | None = None
) -> Image:
    """An image of gzip layers with these files."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> Descriptor:
        descriptor = describe(data, media_type)
        blobs[descriptor.digest] = data
        return descriptor

    tars = [tar_of(files) for files in layers]
    parts = [add(gzip.compress(data, 1, mtime=0), MT_OCI_LAYER_GZIP) for data in tars]
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars]},
    }
    made_config = add(json.dumps(document).encode(), MT_OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MT_OCI_MANIFEST,
        "config": msgspec.to_builtins(made_config),
        "layers": [msgspec.to_builtins(part) for part in parts],
    }
    target = add(json.dumps(manifest).encode(), MT_OCI_MANIFEST)
    return Image(target, blobs, [target], parts, made_config)


def busybox_image() -> Image:
    """busybox in one layer, something else in a second."""
    return make_image([{"bin/busybox": Path("/bin/busybox").read_bytes()}, {"etc/motd": b"ahoy\n"}])


def check_busybox(store: Store, snapshot: str, folder: Path) -> None:
    """See that a snapshot holds the files of :func:`busybox_image`.

    Args:
        store: The store.
        snapshot: The snapshot's name.
        folder: Where it may be mounted for a moment.
    """
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    attach(store.snapshots.view("look", snapshot), str(target))
    try:
        assert (target / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
        assert (target / "etc/motd").read_text() == "ahoy\n"
    finally:
        detach(str(target))
        store.snapshots.remove("look")


def noise_image(layers: int = 3, size: int = 300_000, seed: str = "") -> Image:
    """An image whose layers can't be compressed, so that transfers take several reads."""

    def noise(number: int) -> bytes:
        return hashlib.shake_128(f"{seed}{number}".encode()).digest(size)

    return make_image([{f"noise{number}": noise(number)} for number in range(layers)])


def make_index(images: Mapping[str, Image]) -> Image:
    """An index over images by platform (``linux/amd64``)."""
    entries, blobs, manifests = [], {}, []
    for platform, image in images.items():
        system, architecture = platform.split("/")[:2]
        entry = {**msgspec.to_builtins(image.target), "platform": {"os": system, "architecture": architecture}}
        entries.append(entry)
        blobs.update(image.blobs)
        manifests += image.manifests
    data = json.dumps({"schemaVersion": 2, "mediaType": MT_OCI_INDEX, "manifests": entries}).encode()
    target = describe(data, MT_OCI_INDEX)
    return Image(target, {**blobs, target.digest: data}, [*manifests, target])


# ------------------------------------------------------------------ our registry, with faults


@dataclass
class Fault:
    """What to do wrong, at which requests."""

    #: One of the names handled by :meth:`FaultRegistry._do`.
    kind: str
    #: Part of the path that the request must have.
    where: str = "/blobs/"
    #: How many requests it meets; -1 for all.
    times: int = -1
    #: Methods it meets.
    methods: tuple[str, ...] = ("GET",)
    #: Depends on the kind: bytes let through, a status, a header's value, an address.
    value: Any = None
    met: int = 0


class FaultRegistry(RegistryServer):
    """Our registry, doing wrong what it is told to; remembers each request."""

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, intercept=self._intercept, **options)
        self.faults: list[Fault] = []
        #: (method, path, headers in lower case)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._guard = threading.Lock()
        #: Set to let requests held by a ``hang`` fault go.
        self.released = threading.Event()

    def seen(self, method: str, part: str) -> list[str]:
        """Paths of the requests of a method that have ``part`` in them."""
        return [path for verb, path, _ in self.requests if verb == method and part in path]

    def close(self) -> None:
        self.released.set()
        super().close()

    def _intercept(self, handler: Handler) -> bool:
        with self._guard:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append((handler.command, handler.path, headers))
            fault = next((fault for fault in self.faults if self._meets(fault, handler)), None)
            if fault:
                fault.met += 1
        return self._do(fault, handler) if fault else False

    @staticmethod
    def _meets(fault: Fault, handler: Handler) -> bool:
        fresh = fault.times < 0 or fault.met < fault.times
        return fresh and fault.where in handler.path and handler.command in fault.methods

    def _do(self, fault: Fault, handler: Handler) -> bool:
        act = getattr(self, f"_{fault.kind}")
        return bool(act(handler, fault.value))

    def _status(self, handler: Handler, value: Any) -> bool:
        code, headers = value if isinstance(value, tuple) else (value, {})
        body = b'{"errors":[{"code":"FAULT","message":"ordered"}]}'
        handler.answer(code, body, {"Content-Type": "application/json", **headers})
        return True

    def _blob_data(self, handler: Handler) -> tuple[bytes, int]:
        path = urlsplit(handler.path).path
        if "/manifests/" in path:
            name, target = path.removeprefix("/v2/").split("/manifests/")
            return self.tree.manifest(name, target)[2], 0
        digest = path.rsplit("/", 1)[1]
        wanted = handler.headers.get("Range") or ""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        return Path(self.tree.blob_path(digest)).read_bytes(), start

    def _begin(
        self, handler: Handler, length: int, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, text in (headers or {}).items():
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()

    def _partial_headers(self, data: bytes, start: int) -> tuple[int, dict[str, str]]:
        if not start:
            return 200, {}
        return 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}

    def _truncate(self, handler: Handler, value: Any) -> bool:
        """Break the connection off after ``value`` bytes."""
        data, start = self._blob_data(handler)
        status, headers = self._partial_headers(data, start)
        self._begin(handler, len(data) - start, status, headers)
        handler.wfile.write(data[start : start + value])
        handler.wfile.flush()
        handler.close_connection = True
        return True

    def _short(self, handler: Handler, value: Any) -> bool:
        """A whole response of fewer bytes than the manifest says."""
        data, _ = self._blob_data(handler)
        self._begin(handler, len(data) - value)
        handler.wfile.write(data[: len(data) - value])
        return True

    def _long(self, handler: Handler, value: Any) -> bool:
        """More bytes than the manifest says, without a length."""
        data, _ = self._blob_data(handler)
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data + b"x" * value)
        handler.close_connection = True
        return True

    def _reset(self, handler: Handler, value: Any) -> bool:
        """Reset the connection after ``value`` bytes."""
        data, start = self._blob_data(handler)
        status, headers = self._partial_headers(data, start)
        self._begin(handler, len(data) - start, status, headers)
        handler.wfile.write(data[start : start + value])
        handler.wfile.flush()
        linger_now = b"\1\0\0\0\0\0\0\0"
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_now)
        handler.connection.close()
        handler.close_connection = True
        raise ConnectionResetError

    def _flip(self, handler: Handler, value: Any) -> bool:
        """One other byte, from the resumed part on: a wrong digest."""
        data, start = self._blob_data(handler)
        status, headers = self._partial_headers(data, start)
        sent = bytearray(data[start:])
        sent[len(sent) // 2] ^= 1
        if "/manifests/" in handler.path:
            headers["Content-Type"] = MT_OCI_MANIFEST
        self._begin(handler, len(sent), status, headers)
        handler.wfile.write(sent)
        return True

    def _ignore_range(self, handler: Handler, value: Any) -> bool:
        data, _ = self._blob_data(handler)
        self._begin(handler, len(data))
        handler.wfile.write(data)
        return True

    def _wrong_range(self, handler: Handler, value: Any) -> bool:
        """Another part than was asked for."""
        data, start = self._blob_data(handler)
        if not start:
            return False
        self._begin(handler, len(data), 206, {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"})
        handler.wfile.write(data)
        return True

    def _drip(self, handler: Handler, value: Any) -> bool:
        """A byte now and then."""
        data, start = self._blob_data(handler)
        status, headers = self._partial_headers(data, start)
        if "/manifests/" in handler.path:
            headers["Content-Type"] = MT_OCI_MANIFEST
        self._begin(handler, len(data) - start, status, headers)
        for byte in data[start:]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if self.released.wait(value):
                break
        handler.close_connection = True
        return True

    def _hang(self, handler: Handler, value: Any) -> bool:
        """No answer at all."""
        self.released.wait(30)
        handler.close_connection = True
        return True

    def _gate(self, handler: Handler, value: Any) -> bool:
        """As it should be, but only after :attr:`released` is set."""
        self.released.wait(30)
        return False

    def _loop(self, handler: Handler, value: Any) -> bool:
        handler.answer(307, b"", {"Location": handler.path + "x"})
        return True

    def _redirect(self, handler: Handler, value: Any) -> bool:
        handler.answer(307, b"", {"Location": value + handler.path})
        return True

    def _endless(self, handler: Handler, value: Any) -> bool:
        """A manifest without an end."""
        handler.send_response(200)
        handler.send_header("Content-Type", MT_OCI_MANIFEST)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        while not self.released.is_set():
            handler.wfile.write(b" " * 65536)
        return True

    def _body(self, handler: Handler, value: Any) -> bool:
        """Any body, of any type."""
        media_type, data = value
        handler.answer(200, data, {"Content-Type": media_type})
        return True


# ------------------------------------------------------------------ tokens


class TokenServer:
    """A token server; counts what it was asked, and lets in one user."""

    def __init__(
        self,
        user: str = "",
        password: str = "",
        refresh: str = "",
        *,
        issue: Callable[[list[str]], str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.authorizations: list[str] = []
        self.valid: set[str] = set()
        self.lifetime = 300
        outer = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization", "")
                outer.authorizations.append(authorization)
                wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
                self._give(parse_qs(urlsplit(self.path).query), not user or authorization == wanted)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                form = parse_qs(data.decode())
                self._give(form, form.get("refresh_token") == [refresh] and bool(refresh))

            def _give(self, form: dict[str, list[str]], admitted: bool) -> None:
                outer.asked.append(form)
                scopes = [scope for value in form.get("scope", []) for scope in value.split()]
                token = issue(scopes) if issue else f"token-{len(outer.asked)}"
                if admitted:
                    outer.valid.add(token)
                body = json.dumps({"token": token, "expires_in": outer.lifetime} if admitted else {}).encode()
                self.send_response(200 if admitted else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def guard(self, registry: FaultRegistry, service: str = "test") -> None:
        """Make a registry ask for this server's tokens."""
        first = registry.intercept
        assert first is not None

        def check(handler: Handler) -> bool:
            given = handler.headers.get("Authorization", "")
            if given.removeprefix("Bearer ") in self.valid:
                return first(handler)
            registry.requests.append((handler.command, handler.path, {"authorization": given}))
            parts = urlsplit(handler.path).path.split("/")
            name = "/".join(parts[2:-2]).removesuffix("/blobs") or "x"
            actions = "pull" if handler.command in ("GET", "HEAD") else "pull,push"
            challenge = f'Bearer realm="{self.url}",service="{service}",scope="repository:{name}:{actions}"'
            handler.answer(401, b"", {"WWW-Authenticate": challenge})
            return True

        registry.intercept = check

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ Debian's docker-registry


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def docker_registry(
    folder: Path,
    *,
    htpasswd: bool = False,
    certificate: tuple[Path, Path] | None = None,
    token: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run Debian's docker-registry; gives ``127.0.0.1:port``."""
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        port = free_port()
        lines = [
            "version: 0.1",
            "log: {level: error, accesslog: {disabled: true}}",
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}",
            f"http:\n  addr: 127.0.0.1:{port}",
        ]
        if certificate:
            lines.append(f"  tls: {{certificate: {certificate[0]}, key: {certificate[1]}}}")
        if htpasswd:
            (folder / "htpasswd").write_text(HTPASSWD)
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}")
        if token:
            lines.append("auth: " + json.dumps({"token": dict(token)}))
        (folder / "config.yml").write_text("\n".join(lines) + "\n")
        with open(folder / "log", "wb") as log:
            child = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            if not _listens(child, port):
                continue
            yield f"127.0.0.1:{port}"
            return
        finally:
            child.terminate()
            child.wait(10)
    raise RuntimeError(f"docker-registry does not start: {(folder / 'log').read_text()[-500:]}")


def _listens(child: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 15
    while time.monotonic() < end and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def make_certificates(folder: Path, *, rsa: bool = False) -> tuple[Path, Path, Path]:
    """A CA, and a certificate with its key for 127.0.0.1 signed by it, by openssl(1)."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key, key, request, certificate = (
        folder / name for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem")
    )
    kind = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    new_key = ["-newkey", *kind, "-nodes"]

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=test CA")
    openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    with tempfile.NamedTemporaryFile("w", dir=folder) as extensions:
        extensions.write("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        extensions.flush()
        sign: list[str | Path] = [
            "-CA",
            ca,
            "-CAkey",
            ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions.name,
        ]
        openssl("x509", "-req", "-in", request, *sign, "-out", certificate)
    os.chmod(key, 0o600)
    return ca, certificate, key


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For our own servers over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def write_hosts(folder: Path, domain: str, text: str) -> Path:
    """A ``hosts.toml`` for a registry; gives the root of such folders."""
    (folder / domain).mkdir(parents=True, exist_ok=True)
    (folder / domain / "hosts.toml").write_text(text)
    return folder

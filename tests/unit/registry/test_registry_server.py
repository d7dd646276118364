"""Our registry server as the specification has it, seen through the client and through plain requests."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from registry_peers import make_image, noise_image
from sampan.errors import NotFound, Unauthenticated
from sampan.image.reference import Reference
from sampan.registry import Credentials, Limits, Resolver
from sampan.registry.client import Client
from sampan.registry.server import RegistryServer
from sampan.spec.image import MT_OCI_EMPTY, MT_OCI_MANIFEST, describe

HTTP = urllib3.PoolManager(retries=False)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(str(tmp_path / "registry")) as server:
        yield server


def client(registry: RegistryServer, name: str, credentials: Credentials | None = None) -> Client:
    resolver = Resolver((), (), Limits(attempts=1))
    return resolver.repository(Reference.parse(f"{registry.address}/{name}"), credentials=credentials).pusher()


def send(
    registry: RegistryServer, method: str, path: str, body: bytes = b"", **headers: str
) -> urllib3.BaseHTTPResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    url = path if path.startswith("http") else f"http://{registry.address}{path}"
    return HTTP.request(method, url, body=body or None, headers=names)


def test_tags_catalog_and_deletion(registry: RegistryServer) -> None:
    image = noise_image(layers=1, size=10)
    for tag in ("1", "2", "x"):
        image.put_into(registry.tree, "a/b", tag)
    image.put_into(registry.tree, "c", "1")
    repository = client(registry, "a/b")
    assert repository.tags() == ["1", "2", "x"]
    assert repository.catalog() == ["a/b", "c"]
    repository.delete_manifest("x")
    assert repository.tags() == ["1", "2"]
    repository.delete_manifest(image.target.digest)
    assert repository.tags() == []
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        repository.fetch_manifest("1")
    assert repository.has_blob(image.layers[0].digest) == image.layers[0].size
    repository.delete_blob(image.layers[0].digest)
    assert repository.has_blob(image.layers[0].digest) is None
    with pytest.raises(NotFound, match="NAME_UNKNOWN"):
        client(registry, "nothing").tags()


def test_lists_come_in_pages(registry: RegistryServer) -> None:
    image = noise_image(layers=1, size=10)
    for number in range(5):
        image.put_into(registry.tree, "a", f"t{number}")
    answer = send(registry, "GET", "/v2/a/tags/list?n=2")
    assert json.loads(answer.data) == {"name": "a", "tags": ["t0", "t1"]}
    assert answer.headers["Link"] == '</v2/a/tags/list?n=2&last=t1>; rel="next"'
    answer = send(registry, "GET", "/v2/a/tags/list?n=9&last=t3")
    assert json.loads(answer.data)["tags"] == ["t4"]
    assert "Link" not in answer.headers


def test_a_blob_by_parts(registry: RegistryServer) -> None:
    data = bytes(range(256)) * 10
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    answer = send(registry, "POST", "/v2/a/blobs/uploads/")
    assert answer.status == 202
    location = f"http://{registry.address}{answer.headers['Location']}"
    assert send(registry, "PATCH", location, data[:1000], Content_Range="0-999").headers["Range"] == "0-999"
    assert send(registry, "PATCH", location, data[5:], Content_Range="5-2559").status == 416
    answer = send(registry, "GET", location)
    assert (answer.status, answer.headers["Range"]) == (204, "0-999")
    answer = send(registry, "PUT", f"{location}?digest={digest}", data[1000:], Content_Range="1000-2559")
    assert answer.status == 201
    answer = send(registry, "GET", answer.headers["Location"], Range="bytes=10-19")
    assert (answer.status, answer.data, answer.headers["Content-Range"]) == (206, data[10:20], "bytes 10-19/2560")
    assert send(registry, "GET", f"/v2/a/blobs/{digest}", Range="bytes=2560-").status == 416
    assert send(registry, "GET", f"/v2/a/blobs/{digest}").data == data
    head = send(registry, "HEAD", f"/v2/a/blobs/{digest}")
    assert (head.headers["Content-Length"], head.headers["Docker-Content-Digest"]) == ("2560", digest)


def test_an_empty_blob_leaves_the_connection_open(registry: RegistryServer) -> None:
    digest = f"sha256:{hashlib.sha256().hexdigest()}"
    assert send(registry, "POST", f"/v2/a/blobs/uploads/?digest={digest}").status == 201
    connection = http.client.HTTPConnection(registry.address, timeout=10)
    try:
        for _ in range(2):
            connection.request("GET", f"/v2/a/blobs/{digest}")
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "0", b"")
    finally:
        connection.close()


def test_a_chunked_body_and_a_monolithic_post(registry: RegistryServer) -> None:
    data = b"hello" * 1000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert send(registry, "POST", f"/v2/a/blobs/uploads/?digest={digest}", data).status == 201
    location = send(registry, "POST", "/v2/b/blobs/uploads/").headers["Location"]
    url = f"http://{registry.address}{location}"
    assert HTTP.request("PATCH", url, body=iter([data[:77], data[77:]]), chunked=True).status == 202
    assert send(registry, "PUT", f"{url}?digest={digest}").status == 201
    assert send(registry, "GET", f"/v2/b/blobs/{digest}").data == data


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v2/%2e%2e/%2e%2e/tags/list", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/_tags/manifests/x", b"", 400, "NAME_INVALID"),
        ("POST", "/v2/UPPER/blobs/uploads/", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/a/blobs/sha256:zz", b"", 400, "NAME_INVALID"),
        ("PATCH", "/v2/a/blobs/uploads/..%2f..%2fx", b"x", 404, "NAME_UNKNOWN"),
        ("PATCH", "/v2/a/blobs/uploads/xyz", b"x", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", "/v2/a/manifests/x", b"nonsense", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/a/manifests/.bad", b'{"schemaVersion":2,"manifests":[]}', 400, "NAME_INVALID"),
        ("PUT", "/v2/a/blobs/sha256:" + "0" * 64, b"", 405, "UNSUPPORTED"),
        ("GET", "/v1/", b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/blobs/sha256:" + "0" * 64, b"", 404, "BLOB_UNKNOWN"),
    ],
)
def test_what_is_wrong_is_said(
    registry: RegistryServer, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    answer = send(registry, method, path, body)
    assert answer.status == status
    assert json.loads(answer.data)["errors"][0]["code"] == code


def test_a_manifest_whose_parts_are_missing(registry: RegistryServer) -> None:
    image = make_image([{"a": b"b"}])
    answer = send(registry, "PUT", "/v2/a/manifests/1", image.blobs[image.target.digest], Content_Type=MT_OCI_MANIFEST)
    assert (answer.status, json.loads(answer.data)["errors"][0]["code"]) == (404, "BLOB_UNKNOWN")


def test_an_upload_with_another_digest(registry: RegistryServer) -> None:
    answer = send(registry, "POST", "/v2/a/blobs/uploads/?digest=sha256:" + "0" * 64, b"data")
    assert (answer.status, json.loads(answer.data)["errors"][0]["code"]) == (400, "DIGEST_INVALID")


def test_referrers(registry: RegistryServer) -> None:
    image = make_image([{"a": b"b"}])
    image.put_into(registry.tree, "a", "1")
    repository = client(registry, "a")
    assert repository.referrers(image.target.digest) == []
    empty = describe(b"{}", MT_OCI_EMPTY)
    send(registry, "POST", f"/v2/a/blobs/uploads/?digest={empty.digest}", b"{}")
    for kind in ("application/sbom", "application/signature"):
        manifest = {
            "schemaVersion": 2,
            "mediaType": MT_OCI_MANIFEST,
            "artifactType": kind,
            "config": {"mediaType": MT_OCI_EMPTY, "digest": empty.digest, "size": 2},
            "layers": [],
            "subject": {"mediaType": MT_OCI_MANIFEST, "digest": image.target.digest, "size": image.target.size},
        }
        data = json.dumps(manifest).encode()
        answer = send(
            registry, "PUT", f"/v2/a/manifests/{describe(data, '').digest}", data, Content_Type=MT_OCI_MANIFEST
        )
        assert answer.headers["OCI-Subject"] == image.target.digest
    found = repository.referrers(image.target.digest)
    assert sorted(one.artifact_type for one in found) == ["application/sbom", "application/signature"]
    assert [one.artifact_type for one in repository.referrers(image.target.digest, "application/sbom")] == [
        "application/sbom"
    ]
    repository.delete_manifest(found[0].digest)
    assert repository.referrers(image.target.digest) == found[1:]


def test_a_referrer_that_has_gone_hides_no_other(registry: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a registry that was killed while it deleted one, or that is deleting one at the moment."""
    image = make_image([{"a": b"b"}])
    image.put_into(registry.tree, "a", "1")
    document = json.loads(image.blobs[image.target.digest])
    document["subject"] = {"mediaType": MT_OCI_MANIFEST, "digest": image.target.digest, "size": image.target.size}
    left, gone = (
        registry.tree.put_manifest("a", tag, json.dumps({**document, "artifactType": tag}).encode(), MT_OCI_MANIFEST)[0]
        for tag in ("left", "gone")
    )
    unlink = os.unlink

    def killed(path: str) -> None:
        if "_manifests" in path:
            raise InterruptedError
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        with pytest.raises(InterruptedError):
            registry.tree.delete_manifest("a", gone)
    assert [one.digest for one in registry.tree.referrers("a", image.target.digest)] == [left]
    folder = Path(registry.tree.root, "repositories/a/_subjects", image.target.digest.replace(":", "-"))
    (folder / ("sha256-" + "0" * 64)).touch()
    assert [one.digest for one in client(registry, "a").referrers(image.target.digest)] == [left]


def test_users(tmp_path: Path) -> None:
    with RegistryServer(str(tmp_path / "closed"), users={"me": "secret"}) as closed:
        image = make_image([{"a": b"b"}])
        image.put_into(closed.tree, "a", "1")
        with pytest.raises(Unauthenticated):
            client(closed, "a").tags()
        with pytest.raises(Unauthenticated, match="as user me"):
            client(closed, "a", Credentials("me", "wrong")).tags()
        assert client(closed, "a", Credentials("me", "secret")).tags() == ["1"]

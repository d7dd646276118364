"""The server's side of the OCI distribution specification 1.1, endpoint by endpoint: ours, and Debian's beside it.

The specification's own conformance suite is a Go module that not every proxy serves; this asks the same of a registry.
What Debian's docker-registry (2.8, of version 1.0 of the specification) does otherwise is named at the check.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from registry_peers import docker_registry
from sampan.registry.server import RegistryServer
from sampan.spec.image import MT_OCI_CONFIG, MT_OCI_EMPTY, MT_OCI_INDEX, MT_OCI_LAYER_GZIP, MT_OCI_MANIFEST

pytestmark = pytest.mark.root

NAME = "conformance/repo"
BLOB = b"some layer's bytes" * 1000
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
JSON = dict[str, object]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Requests to one registry."""

    def __init__(self, address: str, *, ours: bool) -> None:
        self.address = address
        self.ours = ours
        self._pool = urllib3.PoolManager(retries=False)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> urllib3.BaseHTTPResponse:
        url = path if path.startswith("http") else f"http://{self.address}{path}"
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._pool.request(method, url, body=body, headers=sent)

    def start(self, name: str = NAME) -> str:
        answer = self.ask("POST", f"/v2/{name}/blobs/uploads/", Content_Length="0")
        assert answer.status == 202
        return self.location(answer)

    def location(self, answer: urllib3.BaseHTTPResponse) -> str:
        place = answer.headers["Location"]
        return place if place.startswith("http") else f"http://{self.address}{place}"

    def put(self, data: bytes, name: str = NAME) -> str:
        place = self.start(name)
        mark = "&" if "?" in place else "?"
        kind = "application/octet-stream"
        answer = self.ask("PUT", f"{place}{mark}digest={digest(data)}", data, Content_Type=kind)
        assert answer.status == 201
        assert self.ask("GET", self.location(answer)).data == data
        return digest(data)

    def put_manifest(self, document: JSON, target: str = "", name: str = NAME) -> tuple[str, urllib3.BaseHTTPResponse]:
        data = json.dumps(document).encode()
        kind = str(document["mediaType"])
        return digest(data), self.ask("PUT", f"/v2/{name}/manifests/{target or digest(data)}", data, Content_Type=kind)


def manifest(**more: object) -> JSON:
    config = {"mediaType": MT_OCI_CONFIG, "digest": digest(CONFIG), "size": len(CONFIG)}
    layer = {"mediaType": MT_OCI_LAYER_GZIP, "digest": digest(BLOB), "size": len(BLOB)}
    return {"schemaVersion": 2, "mediaType": MT_OCI_MANIFEST, "config": config, "layers": [layer], **more}


@pytest.fixture(params=["ours", "docker-registry"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    if request.param == "ours":
        with RegistryServer(str(tmp_path / "registry")) as server:
            yield Registry(server.address.removeprefix("http://"), ours=True)
    elif not shutil.which("docker-registry"):
        pytest.skip("needs docker-registry")
    else:
        with docker_registry(tmp_path / "registry") as address:
            yield Registry(address, ours=False)


def fault(answer: urllib3.BaseHTTPResponse) -> str:
    return str(json.loads(answer.data)["errors"][0]["code"])


def test_pull(registry: Registry) -> None:
    assert registry.ask("GET", "/v2/").status == 200
    registry.put(BLOB)
    registry.put(CONFIG)
    name, answer = registry.put_manifest(manifest(), "latest")
    assert answer.status == 201
    assert answer.headers["Docker-Content-Digest"] == name
    for target in ("latest", name):
        head = registry.ask("HEAD", f"/v2/{NAME}/manifests/{target}", Accept=MT_OCI_MANIFEST)
        got = registry.ask("GET", f"/v2/{NAME}/manifests/{target}", Accept=MT_OCI_MANIFEST)
        assert head.status == got.status == 200
        assert head.headers["Content-Length"] == str(len(got.data))
        assert head.headers["Content-Type"] == got.headers["Content-Type"] == MT_OCI_MANIFEST
        assert digest(got.data) == head.headers["Docker-Content-Digest"] == name
    head = registry.ask("HEAD", f"/v2/{NAME}/blobs/{digest(BLOB)}")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(BLOB)))
    part = registry.ask("GET", f"/v2/{NAME}/blobs/{digest(BLOB)}", Range="bytes=10-19")
    assert (part.status, part.data) == (206, BLOB[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(BLOB)}"
    for path, code in (
        (f"{NAME}/manifests/nosuch", "MANIFEST_UNKNOWN"),
        (f"{NAME}/manifests/{digest(b'')}", "MANIFEST_UNKNOWN"),
        (f"{NAME}/blobs/{digest(b'x')}", "BLOB_UNKNOWN"),
    ):
        answer = registry.ask("GET", f"/v2/{path}")
        assert (answer.status, fault(answer)) == (404, code)
        assert registry.ask("HEAD", f"/v2/{path}").status == 404


def test_push_by_chunks(registry: Registry) -> None:
    place = registry.start()
    middle = len(BLOB) // 2
    kind = "application/octet-stream"
    first = registry.ask("PATCH", place, BLOB[:middle], Content_Range=f"0-{middle - 1}", Content_Type=kind)
    assert (first.status, first.headers["Range"]) == (202, f"0-{middle - 1}")
    place = registry.location(first)
    status = registry.ask("GET", place)
    assert (status.status, status.headers["Range"]) == (204, f"0-{middle - 1}")
    # Out of order; docker-registry 2.8 takes that.
    if registry.ours:
        assert registry.ask("PATCH", place, BLOB[:9], Content_Range="0-8", Content_Type=kind).status == 416
    rest = f"{middle}-{len(BLOB) - 1}"
    second = registry.ask("PATCH", registry.location(status), BLOB[middle:], Content_Range=rest, Content_Type=kind)
    assert (second.status, second.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
    place = registry.location(second)
    done = registry.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest(BLOB)}")
    assert done.status == 201
    assert registry.ask("GET", registry.location(done)).data == BLOB


def test_push_at_once_mounts_and_cancellation(registry: Registry) -> None:
    registry.put(BLOB, "conformance/source")
    mounted = registry.ask(
        "POST", f"/v2/{NAME}/blobs/uploads/?mount={digest(BLOB)}&from=conformance/source", Content_Length="0"
    )
    assert mounted.status == 201
    assert registry.ask("GET", registry.location(mounted)).data == BLOB
    missing = registry.ask("POST", f"/v2/{NAME}/blobs/uploads/?mount={digest(b'no')}&from=conformance/source")
    assert missing.status == 202
    single = registry.ask(
        "POST", f"/v2/{NAME}/blobs/uploads/?digest={digest(CONFIG)}", CONFIG, Content_Type="application/octet-stream"
    )
    assert single.status in ((201,) if registry.ours else (201, 202))  # 202: it goes on by PUT
    place = registry.start()
    assert registry.ask("DELETE", place).status == 204
    assert registry.ask("GET", place).status == 404
    place = registry.start()
    wrong = registry.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest(b'other')}", BLOB)
    assert (wrong.status, fault(wrong)) == (400, "DIGEST_INVALID")


def test_manifests_that_are_refused(registry: Registry) -> None:
    _, answer = registry.put_manifest(manifest(), "latest")
    assert answer.status in (400, 404)  # its blobs are not there
    assert fault(answer) in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")
    registry.put(BLOB)
    registry.put(CONFIG)
    _, answer = registry.put_manifest(manifest(), digest(b"another"))
    assert (answer.status, fault(answer)) == (400, "DIGEST_INVALID")
    answer = registry.ask("PUT", f"/v2/{NAME}/manifests/latest", b"{no json", Content_Type=MT_OCI_MANIFEST)
    assert answer.status == 400


def test_discovery(registry: Registry) -> None:
    registry.put(BLOB)
    registry.put(CONFIG)
    tags = ["a", "b", "latest", "v1.0", "z_9"]
    for tag in tags:
        assert registry.put_manifest(manifest(), tag)[1].status == 201
    listed = json.loads(registry.ask("GET", f"/v2/{NAME}/tags/list").data)
    assert listed["name"] == NAME
    assert sorted(listed["tags"]) == tags
    assert registry.ask("GET", "/v2/conformance/nosuch/tags/list").status == 404
    if registry.ours:  # pages of tags came to docker-registry with version 3
        page = registry.ask("GET", f"/v2/{NAME}/tags/list?n=2")
        assert json.loads(page.data)["tags"] == ["a", "b"]
        assert 'rel="next"' in page.headers["Link"]
        last = registry.ask("GET", f"/v2/{NAME}/tags/list?n=9&last=latest")
        assert json.loads(last.data)["tags"] == ["v1.0", "z_9"]
        assert json.loads(registry.ask("GET", f"/v2/{NAME}/tags/list?n=0").data)["tags"] in ([], None)


def test_referrers(registry: Registry) -> None:
    if not registry.ours:
        pytest.skip("docker-registry 2.8 has no referrers API")
    for blob in (BLOB, CONFIG, b"{}"):
        registry.put(blob)
    subject, _ = registry.put_manifest(manifest(), "latest")
    size = len(json.dumps(manifest()).encode())
    about = {"mediaType": MT_OCI_MANIFEST, "digest": subject, "size": size}
    empty = {"mediaType": MT_OCI_EMPTY, "digest": digest(b"{}"), "size": 2}
    made = []
    for kind in ("application/x-one", "application/x-two"):
        document = manifest(subject=about, artifactType=kind, config=empty, annotations={"kind": kind})
        name, answer = registry.put_manifest(document)
        assert (answer.status, answer.headers["OCI-Subject"]) == (201, subject)
        made.append(name)
    index: JSON = {"schemaVersion": 2, "mediaType": MT_OCI_INDEX, "manifests": [], "subject": about}
    index["artifactType"] = "application/x-three"
    name, answer = registry.put_manifest(index)
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, subject)
    made.append(name)
    answer = registry.ask("GET", f"/v2/{NAME}/referrers/{subject}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, MT_OCI_INDEX)
    found = {one["digest"]: one for one in json.loads(answer.data)["manifests"]}
    assert set(found) == set(made)
    assert found[made[0]]["artifactType"] == "application/x-one"
    assert found[made[0]]["annotations"] == {"kind": "application/x-one"}
    filtered = registry.ask("GET", f"/v2/{NAME}/referrers/{subject}?artifactType=application/x-two")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [one["digest"] for one in json.loads(filtered.data)["manifests"]] == [made[1]]
    # Of what is not there, too: an empty list, never a 404.
    nothing = registry.ask("GET", f"/v2/{NAME}/referrers/{digest(b'nothing')}")
    assert (nothing.status, json.loads(nothing.data)["manifests"]) == (200, [])
    # A subject may come after what refers to it.
    later = {"mediaType": MT_OCI_MANIFEST, "digest": digest(b"later"), "size": 5}
    assert registry.put_manifest(manifest(subject=later))[1].status == 201
    assert registry.ask("DELETE", f"/v2/{NAME}/manifests/{made[0]}").status == 202
    left = json.loads(registry.ask("GET", f"/v2/{NAME}/referrers/{subject}").data)["manifests"]
    assert {one["digest"] for one in left} == set(made[1:])


def test_content_management(registry: Registry) -> None:
    registry.put(BLOB)
    registry.put(CONFIG)
    name, _ = registry.put_manifest(manifest(), "latest")
    if registry.ours:  # docker-registry deletes tags since version 3
        registry.put_manifest(manifest(), "other")
        assert registry.ask("DELETE", f"/v2/{NAME}/manifests/other").status == 202
        assert registry.ask("GET", f"/v2/{NAME}/manifests/other").status == 404
        assert registry.ask("GET", f"/v2/{NAME}/manifests/latest").status == 200
    assert registry.ask("DELETE", f"/v2/{NAME}/manifests/{name}").status == 202
    assert registry.ask("GET", f"/v2/{NAME}/manifests/{name}").status == 404
    assert registry.ask("GET", f"/v2/{NAME}/manifests/latest").status == 404
    assert registry.ask("DELETE", f"/v2/{NAME}/blobs/{digest(BLOB)}").status == 202
    assert registry.ask("GET", f"/v2/{NAME}/blobs/{digest(BLOB)}").status == 404
    assert registry.ask("DELETE", f"/v2/{NAME}/blobs/{digest(BLOB)}").status == 404

"""docker-registry over TLS with tokens; buildah and umoci, each reading what we write and writing what we read."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_peers import (
    TokenServer,
    busybox_image,
    check_busybox,
    docker_registry,
    make_certificates,
    server_context,
    write_hosts,
)
from sampan.errors import Unauthenticated
from sampan.image.layout import Layout
from sampan.image.model import Image
from sampan.registry import Credentials, Limits, Resolver, copy, pull, push
from sampan.registry.server import RegistryServer
from sampan.storage.mount import attach, detach
from sampan.storage.store import Store
from sampan.storage.transfer import image
from sampan.storage.unpack import unpack

pytestmark = pytest.mark.root

LIMITS = Limits(backoff=0.01, attempts=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store")) as opened:
        yield opened


# ------------------------------------------------------------------ docker-registry, TLS and tokens


class TokenIssuer:
    """Signs tokens that docker-registry believes (RFC 7519, RS256 with the certificate in the header)."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._key = key
        der = subprocess.run(
            ["openssl", "x509", "-in", str(certificate), "-outform", "DER"], check=True, capture_output=True
        ).stdout
        self._chain = [base64.b64encode(der).decode()]

    def token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        claims = {"iss": "test", "sub": "user", "aud": "registry", "nbf": now - 60, "iat": now, "exp": now + 300,
                  "jti": str(now), "access": access}  # fmt: skip
        signed = b".".join(_plain(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)], input=signed, check=True, capture_output=True
        ).stdout
        return (signed + b"." + _plain(signature)).decode()


def _plain(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")
def test_docker_registry_over_tls_with_tokens(tmp_path: Path, store: Store) -> None:
    ca, certificate, key = make_certificates(tmp_path / "tls", rsa=True)
    issuer = TokenIssuer(certificate, key)
    certs = tmp_path / "certs.d"
    with (
        TokenServer("user", "secret", issue=issuer.token, tls=server_context(certificate, key)) as tokens,
        docker_registry(
            tmp_path / "registry",
            certificate=(certificate, key),
            token={"realm": tokens.url, "service": "registry", "issuer": "test", "rootcertbundle": str(certificate)},
        ) as address,
    ):
        write_hosts(certs, address, f'server = "https://{address}"\nca = "{ca}"\n')
        resolver = Resolver((str(certs),), (str(tmp_path / "none.json"),), LIMITS)
        known = Credentials("user", "secret")
        layout = busybox_image().write_layout(tmp_path / "layout")
        where = f"docker://{address}/team/app:1"
        sent = copy(f"oci:{layout}:latest", where, resolver=resolver, destination_credentials=known)
        assert any("repository:team/app:pull,push" in scope for form in tokens.asked for scope in form["scope"])
        with pytest.raises(Unauthenticated):
            pull(store, "default", f"{address}/team/app:1", resolver)
        pulled = pull(store, "default", f"{address}/team/app:1", resolver, credentials=known)
        assert pulled.target.digest == sent.digest
        push(store, "default", pulled.name, resolver, reference=f"{address}/other/app:2", credentials=known)
        assert resolver.repository(f"{address}/other/app:2", credentials=known).tags() == ["2"]
    check_busybox(store, pulled.snapshot, tmp_path)


# ------------------------------------------------------------------ buildah


def buildah(storage: Path, *words: str) -> str:
    command = ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "vfs", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("buildah"), reason="needs buildah")
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_buildah_both_ways(tmp_path: Path, store: Store, form: str) -> None:
    (tmp_path / "motd").write_text("ahoy\n")
    storage = tmp_path / "buildah"
    with RegistryServer(str(tmp_path / "registry")) as registry:
        host = registry.address.removeprefix("http://")
        # What buildah builds and pushes, we pull.
        made = buildah(storage, "from", "scratch")
        buildah(storage, "copy", made, "/bin/busybox", "/bin/busybox")
        buildah(storage, "copy", made, str(tmp_path / "motd"), "/etc/motd")
        buildah(storage, "config", "--entrypoint", '["/bin/busybox"]', "--cmd", "sh", made)
        image = buildah(storage, "commit", "--quiet", "--format", form, made)
        buildah(storage, "push", "--quiet", "--tls-verify=false", image, f"docker://{host}/built:1")
        resolver = Resolver((), (), LIMITS)
        pulled = pull(store, "default", f"{host}/built:1", resolver)
        check_busybox(store, pulled.snapshot, tmp_path)
        # What we push, buildah pulls, and mounts.
        push(store, "default", pulled.name, resolver, reference=f"{host}/again:1")
        again = buildah(storage, "from", "--tls-verify=false", f"docker://{host}/again:1")
        mounted = Path(buildah(storage, "mount", again))
        try:
            assert (mounted / "etc/motd").read_text() == "ahoy\n"
            assert (mounted / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
        finally:
            buildah(storage, "umount", again)
            buildah(storage, "rm", "--all")


# ------------------------------------------------------------------ umoci


@pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci")
def test_umoci_both_ways(tmp_path: Path, store: Store) -> None:
    def umoci(*words: str) -> None:
        done = subprocess.run(["umoci", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    resolver = Resolver((), (), LIMITS)
    first = busybox_image().write_layout(tmp_path / "first")
    ours = f"{tmp_path}/ours"
    copy(f"oci:{first}:latest", "store:mine:1", resolver=resolver, store=store)
    copy("store:mine:1", f"oci:{ours}:here", resolver=resolver, store=store)
    # umoci unpacks what we wrote, changes it, and packs it again into our layout.
    bundle = tmp_path / "bundle"
    umoci("unpack", "--image", f"{ours}:here", str(bundle))
    (bundle / "rootfs/etc/motd").write_text("changed\n")
    os.unlink(bundle / "rootfs/bin/busybox")
    umoci("repack", "--image", f"{ours}:changed", str(bundle))
    umoci("config", "--image", f"{ours}:changed", "--config.cmd", "/other")
    assert sorted(Layout(ours).names()) == ["changed", "here"]
    copy(f"oci:{ours}:changed", "store:changed:1", resolver=resolver, store=store)
    target = store.images("default").get("docker.io/library/changed:1").target
    got = image(store, target)
    assert isinstance(got, Image)
    assert got.config.container.cmd == ("/other",)
    made = tmp_path / "mnt"
    made.mkdir()
    attach(store.snapshots.view("look", unpack(store, target)), str(made))
    try:
        assert (made / "etc/motd").read_text() == "changed\n"
        assert not (made / "bin/busybox").exists()
    finally:
        detach(str(made))
        store.snapshots.remove("look")

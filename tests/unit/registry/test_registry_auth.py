"""Challenges, tokens, and where secrets go."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_peers import (
    Fault,
    FaultRegistry,
    TokenServer,
    make_certificates,
    noise_image,
    server_context,
    write_hosts,
)
from sampan.errors import Unauthenticated, Unavailable
from sampan.registry import Credentials, Limits, Resolver, pull, push
from sampan.registry.auth import Challenge, parse_challenges
from sampan.registry.server import Handler
from sampan.storage.store import Store

LIMITS = Limits(backoff=0.01, attempts=2, read=5.0)
SECRET = "b3BlbiBzZXNhbWU"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store"), snapshotter="native") as opened:
        yield opened


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultRegistry]:
    with FaultRegistry(str(tmp_path / "registry")) as server:
        noise_image().put_into(server.tree, "team/app", "1")
        yield server


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    server = TokenServer("me", SECRET, refresh="refresh-me")
    yield server
    server.close()


RESOLVER = Resolver((), (), LIMITS)


def fetch(
    store: Store, registry: FaultRegistry, credentials: Credentials | None, resolver: Resolver = RESOLVER
) -> None:
    pull(store, "default", f"{registry.address}/team/app:1", resolver, unpack=False, credentials=credentials)


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        ('Basic realm="a \\"b\\", c"', [("basic", {"realm": 'a "b", c'})]),
        ("Negotiate, basic Realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (
            'Bearer realm="r" , service=s,Basic realm="b"',
            [("bearer", {"realm": "r", "service": "s"}), ("basic", {"realm": "b"})],
        ),
        ("", []),
        ("= , ===", []),
    ],
)
def test_challenges(header: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header) == [Challenge(*one) for one in challenges]


@given(st.text(max_size=300))
def test_no_header_breaks_the_parser(header: str) -> None:
    parse_challenges(header)


def test_one_token_serves_a_whole_pull(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    tokens.guard(registry)
    fetch(store, registry, Credentials("me", SECRET))
    assert len(tokens.asked) == 1
    assert tokens.asked[0] == {"service": ["test"], "scope": ["repository:team/app:pull"], "account": ["me"]}


def test_a_token_that_ran_out_is_renewed(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    tokens.guard(registry)
    guard = registry.intercept
    assert guard is not None

    def forget_once(handler: Handler) -> bool:
        if "/blobs/" in handler.path and len(tokens.asked) == 1:
            tokens.valid.clear()
        return guard(handler)

    registry.intercept = forget_once
    fetch(store, registry, Credentials("me", SECRET))
    assert 2 <= len(tokens.asked) <= 5


def test_an_identity_token_is_posted(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    tokens.guard(registry)
    fetch(store, registry, Credentials(identity_token="refresh-me"))
    assert tokens.asked[0]["grant_type"] == ["refresh_token"]
    assert tokens.asked[0]["scope"] == ["repository:team/app:pull"]
    assert not tokens.authorizations


def test_a_registry_token_is_sent_as_it_is(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    tokens.guard(registry)
    tokens.valid.add("given")
    fetch(store, registry, Credentials(registry_token="given"))
    assert not tokens.asked
    with pytest.raises(Unauthenticated, match="as bearer token"):
        fetch(store, registry, Credentials(registry_token="stale"))


@pytest.mark.parametrize("credentials", [None, Credentials("me", "wrong"), Credentials(identity_token="wrong")])
def test_refused_by_the_token_server(
    store: Store, registry: FaultRegistry, tokens: TokenServer, credentials: Credentials | None
) -> None:
    tokens.guard(registry)
    with pytest.raises(Unauthenticated, match="the token server refuses") as caught:
        fetch(store, registry, credentials)
    assert "wrong" not in str(caught.value)


def test_a_push_asks_for_more_and_a_mount_for_both(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    tokens.guard(registry)
    mine = Credentials("me", SECRET)
    fetch(store, registry, mine)
    there = f"{registry.address}/team/copy:1"
    push(store, "default", f"{registry.address}/team/app:1", RESOLVER, reference=there, credentials=mine)
    scopes = [set(form["scope"]) for form in tokens.asked]
    assert {"repository:team/copy:pull,push", "repository:team/app:pull"} in scopes
    assert registry.tree.tags("team/copy") == ["1"]


def test_a_storm_of_401_ends(store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    challenge = f'Bearer realm="{tokens.url}",service="x",scope="repository:team/app:pull"'
    registry.faults.append(Fault("status", "/", methods=("GET", "HEAD"), value=(401, {"WWW-Authenticate": challenge})))
    with pytest.raises(Unauthenticated, match="401 Unauthorized as user me"):
        fetch(store, registry, Credentials("me", SECRET))
    assert len(tokens.asked) <= 3


@pytest.mark.parametrize("realm", ["ftp://x/", "token", "", "http://[bad/"])
def test_a_token_server_that_is_none(store: Store, registry: FaultRegistry, realm: str) -> None:
    registry.faults.append(
        Fault("status", "/", methods=("GET", "HEAD"), value=(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    )
    with pytest.raises(Unauthenticated, match="as token server: not a"):
        fetch(store, registry, Credentials("me", SECRET))


def test_secrets_stay_with_the_registry_on_redirects(tmp_path: Path, store: Store, registry: FaultRegistry) -> None:
    """CVE-2020-15157, and the like with headers of hosts.toml."""
    registry._users = {f"me:{SECRET}"}
    text = f'server = "http://{registry.address}"\n[header]\nx-secret = "{SECRET}"\n'
    hosts = write_hosts(tmp_path / "certs.d", "r.example", text)
    resolver = Resolver((str(hosts),), (), LIMITS)
    with FaultRegistry(str(tmp_path / "registry")) as elsewhere:
        registry.faults.append(Fault("redirect", value=f"http://{elsewhere.address}"))
        mine = Credentials("me", SECRET)
        pull(store, "default", "r.example/team/app:1", resolver, unpack=False, credentials=mine)
        assert len(elsewhere.requests) == 4
        for _, path, headers in elsewhere.requests:
            assert SECRET not in f"{path}{headers}"
            assert "authorization" not in headers
        assert all(headers.get("x-secret") == SECRET for _, _, headers in registry.requests)


def test_a_host_that_was_redirected_to_gets_no_answer_to_its_challenge(
    tmp_path: Path, store: Store, registry: FaultRegistry
) -> None:
    with TokenServer("me", SECRET) as thief, FaultRegistry(str(tmp_path / "registry")) as elsewhere:
        challenge = {"WWW-Authenticate": f'Bearer realm="{thief.url}",service="x"'}
        elsewhere.faults.append(Fault("status", value=(401, challenge)))
        registry.faults.append(Fault("redirect", value=f"http://{elsewhere.address}"))
        with pytest.raises(Unauthenticated, match="a host that was redirected to"):
            fetch(store, registry, Credentials("me", SECRET))
        assert not thief.asked


def test_https_does_not_become_http(tmp_path: Path, store: Store, registry: FaultRegistry, tokens: TokenServer) -> None:
    ca, certificate, key = make_certificates(tmp_path / "tls")
    with FaultRegistry(str(tmp_path / "registry"), tls=server_context(certificate, key)) as secure:
        hosts = write_hosts(tmp_path / "certs.d", "r.example", f'server="https://{secure.address}"\nca="{ca}"\n')
        resolver = Resolver((str(hosts),), (), LIMITS)
        mine = Credentials("me", SECRET)
        secure.faults[:] = [Fault("redirect", value=f"http://{registry.address}")]
        with pytest.raises(Unavailable, match="from https to http"):
            pull(store, "default", "r.example/team/app:1", resolver, unpack=False, credentials=mine)
        tokens.guard(secure)
        with pytest.raises(Unauthenticated, match="credentials do not go from https to http"):
            pull(store, "default", "r.example/team/app:1", resolver, unpack=False, credentials=mine)
        assert not tokens.asked
        assert not registry.requests


def test_client_certificates(tmp_path: Path, store: Store) -> None:
    ca, certificate, key = make_certificates(tmp_path / "tls")
    context = server_context(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with FaultRegistry(str(tmp_path / "strict"), tls=context) as strict:
        noise_image().put_into(strict.tree, "team/app", "1")
        text = f'server="https://{strict.address}"\nca="{ca}"\n'
        certs = tmp_path / "certs.d"
        resolver = Resolver((str(certs),), (), LIMITS)
        write_hosts(certs, "r.example", text)
        with pytest.raises(Unavailable, match=strict.address):
            pull(store, "default", "r.example/team/app:1", resolver, unpack=False)
        write_hosts(certs, "r.example", f'{text}client=[["{certificate}", "{key}"]]\n')
        pull(store, "default", "r.example/team/app:1", resolver, unpack=False)


def test_skip_verify(tmp_path: Path, store: Store) -> None:
    _, certificate, key = make_certificates(tmp_path / "tls")
    with FaultRegistry(str(tmp_path / "tls-registry"), tls=server_context(certificate, key)) as secure:
        noise_image().put_into(secure.tree, "team/app", "1")
        hosts = write_hosts(tmp_path / "certs.d", "r.example", f'server="https://{secure.address}"\nskip_verify=true\n')
        pull(store, "default", "r.example/team/app:1", Resolver((str(hosts),), (), LIMITS), unpack=False)


@pytest.mark.parametrize("way", ["hosts.toml", "environment", "NO_PROXY"])
def test_proxies(
    tmp_path: Path, store: Store, registry: FaultRegistry, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Our registry takes a proxy's requests, which have whole addresses in their first line."""
    text = 'server = "http://registry.invalid"\n'
    proxy = f"http://{registry.address}"
    if way == "hosts.toml":
        text += f'proxy = "{proxy}"\n'
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    else:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "example.com,.invalid" if way == "NO_PROXY" else "example.com")
    resolver = Resolver((str(write_hosts(tmp_path / "certs.d", "r.example", text)),), (), LIMITS)
    if way == "NO_PROXY":
        with pytest.raises(Unavailable, match=r"registry\.invalid: HEAD"):
            pull(store, "default", "r.example/team/app:1", resolver, unpack=False)
        assert not registry.requests
        return
    pull(store, "default", "r.example/team/app:1", resolver, unpack=False)
    assert registry.seen("HEAD", "http://registry.invalid/v2/team/app/manifests/1")


def test_plain_http_where_tls_is_spoken(tmp_path: Path, store: Store, registry: FaultRegistry) -> None:
    hosts = write_hosts(tmp_path / "certs.d", "r.example", f'server="https://{registry.address}"\n')
    resolver = Resolver((str(hosts),), (), LIMITS)
    with pytest.raises(Unavailable, match="it may speak plain HTTP"):
        pull(store, "default", "r.example/team/app:1", resolver, unpack=False)


def test_a_mirror_never_sees_the_registrys_secret(tmp_path: Path, store: Store, registry: FaultRegistry) -> None:
    registry._users = {f"me:{SECRET}"}
    with FaultRegistry(str(tmp_path / "mirror"), users={"someone": "else"}) as mirror:
        text = f'server="http://{registry.address}"\n[host."http://{mirror.address}"]\n'
        hosts = write_hosts(tmp_path / "certs.d", "r.example", text)
        auth = tmp_path / "auth.json"
        auth.write_text('{"auths":{"r.example":{"username":"me","password":"' + SECRET + '"}}}')
        for credentials in (None, Credentials("me", SECRET)):
            resolver = Resolver((str(hosts),), (str(auth),), LIMITS)
            pull(store, "default", "r.example/team/app:1", resolver, unpack=False, credentials=credentials)
        assert mirror.requests
        assert all("authorization" not in headers for _, _, headers in mirror.requests)

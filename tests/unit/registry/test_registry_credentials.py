"""The chain of credentials: files, paths, helpers."""

from __future__ import annotations

import base64
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidInput, Unavailable
from sampan.registry.credentials import Chain, Credentials, default_files, explicit
from sampan.registry.login import login_file, logout
from sampan.spec.docker import decode_docker_config, normalise_key, with_entry


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def chain(tmp_path: Path, document: object) -> Chain:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    return Chain([str(tmp_path / "missing.json"), str(file)])


def user(chain: Chain, domain: str, path: str = "") -> str:
    return chain.find(domain, path).credentials.username


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("r.example:5000", "r.example:5000"),
    ],
)
def test_spellings_of_a_registry(tmp_path: Path, key: str, domain: str) -> None:
    found = chain(tmp_path, {"auths": {key: {"auth": encoded("me:se:cret")}}}).find(domain, "some/image")
    assert (found.credentials.username, found.credentials.password) == ("me", "se:cret")


def test_the_most_particular_path_wins(tmp_path: Path) -> None:
    auths = {
        "quay.io": {"auth": encoded("host:x")},
        "quay.io/team": {"auth": encoded("team:x")},
        "quay.io/team/app": {"username": "app", "password": "x"},
        "r.example:5000": {"auth": encoded("other:x")},
    }
    made = chain(tmp_path, {"auths": auths})
    assert user(made, "quay.io", "team/app") == "app"
    assert user(made, "quay.io", "team/app/sub") == "app"
    assert user(made, "quay.io", "team/application") == "team"
    assert user(made, "quay.io", "teams/app") == "host"
    assert user(made, "r.example") == ""
    assert not made.find("quay.io.evil.example").credentials


def test_tokens(tmp_path: Path) -> None:
    auths = {
        "a.example": {"auth": encoded("<token>:"), "identitytoken": "refresh"},
        "b.example": {"registrytoken": "bearer"},
    }
    made = chain(tmp_path, {"auths": auths})
    assert made.find("a.example").credentials == Credentials(identity_token="refresh")
    assert made.find("b.example").credentials == Credentials(registry_token="bearer")


def test_a_file_that_is_broken_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": []}')
    with pytest.raises(InvalidInput, match=r"config\.json: not a docker config: .*auths"):
        Chain([str(tmp_path / "config.json")]).find("quay.io")
    made = chain(tmp_path, {"auths": {"quay.io": {"auth": "c2VjcmV0"}}})
    with pytest.raises(
        InvalidInput, match=r"auths\[quay.io\]\.auth: is not base64 of user:password: no colon"
    ) as caught:
        made.find("quay.io")
    assert "c2VjcmV0" not in str(caught.value)


def test_the_files_by_environment() -> None:
    everything = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/u", "DOCKER_CONFIG": "/d"}
    assert default_files(everything) == [
        "/run/u/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/d/config.json",
    ]
    assert default_files({**everything, "REGISTRY_AUTH_FILE": "/a.json"}) == ["/a.json"]
    assert default_files({"HOME": "/h"}) == ["/h/.config/containers/auth.json", "/h/.docker/config.json"]
    assert default_files({}) == []


HELPER = """#!/bin/sh
read -r server
echo "$1 $server" >> "$0.log"
case "$server" in
  https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"hub","Secret":"s"}' ;;
  token.example) echo '{"ServerURL":"x","Username":"<token>","Secret":"refresh"}' ;;
  broken.example) echo 'not json' ;;
  angry.example) echo 'the keyring is locked'; exit 1 ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_helpers(tmp_path: Path, helper: Path) -> None:
    made = chain(tmp_path, {"credsStore": "test", "auths": {"https://index.docker.io/v1/": {}}})
    found = made.find("docker.io", "library/nginx")
    assert (found.credentials.username, found.reason.split(" (")[0]) == ("hub", "credential store test")
    assert made.find("token.example").credentials == Credentials(identity_token="refresh")
    assert not made.find("unknown.example").credentials
    with pytest.raises(Unavailable, match="its answer is not the protocol's JSON"):
        made.find("broken.example")
    with pytest.raises(Unavailable, match="exit 1: the keyring is locked"):
        made.find("angry.example")
    assert "get https://index.docker.io/v1/" in Path(f"{helper}.log").read_text()


def test_a_helper_of_one_registry_wins_over_an_entry(tmp_path: Path, helper: Path) -> None:
    document = {"credHelpers": {"docker.io": "test"}, "auths": {"docker.io": {"auth": encoded("file:x")}}}
    assert user(chain(tmp_path, document), "docker.io") == "hub"


@pytest.mark.parametrize(("name", "cause"), [("missing", "not found in PATH"), ("../x", "is not the name")])
def test_a_helper_that_is_not_there(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises((Unavailable, InvalidInput), match=cause):
        chain(tmp_path, {"credsStore": name}).find("docker.io")


def test_the_callers_credentials_go_to_the_named_registry_only() -> None:
    mine = Credentials("me", "secret")
    assert explicit(mine, "docker.io", "registry-1.docker.io", is_upstream=True) == mine
    assert explicit(mine, "docker.io", "mirror.example", is_upstream=False) is None
    for_mirror = Credentials("me", "secret", server="https://mirror.example")
    assert explicit(for_mirror, "docker.io", "mirror.example", is_upstream=False) == for_mirror
    assert explicit(for_mirror, "docker.io", "registry-1.docker.io", is_upstream=True) is None
    hub = Credentials("me", "secret", server="https://index.docker.io/v1/")
    assert explicit(hub, "docker.io", "registry-1.docker.io", is_upstream=True) == hub
    assert explicit(None, "docker.io", "registry-1.docker.io", is_upstream=True) is None


def test_from_cri() -> None:
    assert Credentials.from_cri() is None
    assert Credentials.from_cri(auth=encoded("me:x")) == Credentials("me", "x")
    assert Credentials.from_cri(username="me", password="x", server_address="https://r.example/v1/") == Credentials(
        "me", "x", server="r.example"
    )
    with pytest.raises(InvalidInput, match="auth: is not base64"):
        Credentials.from_cri(auth="***")


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("me", "secret", "secret", "secret"))


def test_what_else_is_in_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        '{"detachKeys": "ctrl-x", "auths": {"https://quay.io/v1/": {"auth": "eDp5"}, "b.example": {"new": 1}}}'
    )
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    assert login_file() == str(file)
    assert logout("quay.io")
    assert json.loads(file.read_text()) == {"detachKeys": "ctrl-x", "auths": {"b.example": {"new": 1}}}


@given(st.text(max_size=60))
def test_keys_are_normalised_once(key: str) -> None:
    once = normalise_key(key)
    assert normalise_key(normalise_key(once)) == normalise_key(once)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for read in (lambda: decode_docker_config(data, "f"), lambda: with_entry(data, "k", None, "f")):
        with suppress(InvalidInput):
            read()

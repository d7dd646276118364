"""hosts.toml: what containerd's own documentation shows, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_peers import write_hosts
from sampan.errors import InvalidInput
from sampan.registry import Resolver
from sampan.registry.hosts import CAPABILITIES, hosts_for, is_loopback


def urls(domain: str, *roots: Path) -> list[str]:
    return [host.url for host in hosts_for(domain, [str(root) for root in roots])]


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("r.example:5000", "https://r.example:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.9:5000", "http://127.0.0.9:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("127.example.com", "https://127.example.com/v2"),
        ("localhost.example.com", "https://localhost.example.com/v2"),
    ],
)
def test_without_configuration(tmp_path: Path, domain: str, url: str) -> None:
    (host,) = hosts_for(domain, [str(tmp_path / "missing")])
    assert host.url == url
    assert host.upstream
    assert host.capabilities == CAPABILITIES


def test_a_loopback_name() -> None:
    assert is_loopback("localhost:1")
    assert not is_loopback("127.0.0.1.example:5000")
    assert not is_loopback("1.127.0.0.1")


def test_mirrors_in_the_order_of_the_file_then_the_server(tmp_path: Path) -> None:
    text = """
server = "https://registry-1.docker.io"

[host."https://public-mirror.example.com"]
  capabilities = ["pull"]
[host."http://another.example.com:5000/prefix"]
  capabilities = ["Pull", "resolve"]
  dial_timeout = "1m1.5s"
  skip_verify = true
  [host."http://another.example.com:5000/prefix".header]
    x-one = "a"
    x-many = ["b", "c"]
[host."https://odd.example.com/not/v2/api"]
  override_path = true
"""
    write_hosts(tmp_path, "docker.io", text)
    first, second, third, last = hosts_for("docker.io", [str(tmp_path)])
    assert first.url == "https://public-mirror.example.com/v2"
    assert first.capabilities == {"pull"}
    assert not first.upstream
    assert second.url == "http://another.example.com:5000/prefix/v2"
    assert second.dial_timeout == 61.5
    assert second.skip_verify
    assert second.headers == (("x-one", "a"), ("x-many", "b"), ("x-many", "c"))
    assert third.url == "https://odd.example.com/not/v2/api"
    assert last.url == "https://registry-1.docker.io/v2"
    assert last.upstream


def test_the_order_of_folders(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_hosts(one, "_default", 'server = "https://default.example"')
    assert urls("r.example:5000", one, two) == ["https://default.example/v2"]
    write_hosts(two, "r.example:5000", 'server = "https://particular.example"')
    assert urls("r.example:5000", one, two) == ["https://particular.example/v2"]
    write_hosts(two, "r.example_5000_", 'server = "https://escaped.example"')
    assert urls("r.example:5000", one, two) == ["https://escaped.example/v2"]
    assert urls("other.example", one, two) == ["https://default.example/v2"]


def test_without_a_server_the_registry_itself_is_last(tmp_path: Path) -> None:
    write_hosts(tmp_path, "_default", '[host."https://m.example"]')
    assert urls("docker.io", tmp_path) == ["https://m.example/v2", "https://registry-1.docker.io/v2"]
    assert urls("127.0.0.1:5000", tmp_path) == ["https://m.example/v2", "http://127.0.0.1:5000/v2"]


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "r.example"
    folder.mkdir()
    for name in ("ca.pem", "c.pem", "c.key", "both.pem"):
        (folder / name).write_text("")
    text = 'server="https://r.example"\nca="ca.pem"\nclient=[["c.pem","c.key"],"both.pem"]\n'
    write_hosts(tmp_path, "r.example", text)
    (host,) = hosts_for("r.example", [str(tmp_path)])
    assert host.ca == (str(folder / "ca.pem"),)
    assert host.client == ((str(folder / "c.pem"), str(folder / "c.key")), (str(folder / "both.pem"), ""))


def test_dockers_certificate_files(tmp_path: Path) -> None:
    folder = tmp_path / "r.example"
    folder.mkdir()
    for name in ("ca.crt", "a.cert", "a.key"):
        (folder / name).write_text("")
    (host,) = hosts_for("r.example", [str(tmp_path)])
    assert host.ca == (str(folder / "ca.crt"),)
    assert host.client == ((str(folder / "a.cert"), str(folder / "a.key")),)
    (folder / "a.key").unlink()
    with pytest.raises(InvalidInput, match=r"a\.key is missing"):
        hosts_for("r.example", [str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("server = [", "not TOML"),
        ("server = 5", "server a URL"),
        ("host = 5", "table of hosts"),
        ('[host."https://"]', 'host."https://": "https://" is not the URL'),
        ('[host."https://u:p@h"]', "is not the URL"),
        ('[host."https://h:port"]', "is not the URL"),
        ('[host."https://h"]\ncapabilities=["fly"]', '"https://h".capabilities: "fly" is none of'),
        ('[host."https://h"]\nca="missing.pem"', '"https://h".ca: .*missing.pem does not exist'),
        ('[host."https://h"]\nskip_verify="yes"', "skip_verify: is not true or false"),
        ('[host."https://h"]\noverride_path=1', "override_path: is not true or false"),
        ('[host."https://h"]\ndial_timeout="soon"', "dial_timeout: is not a duration"),
        ('[host."https://h"]\nread_timeout=5', "read_timeout: is not a duration"),
        ('[host."https://h"]\nminimum_rate="fast"', "minimum_rate: is not a number"),
        ('[host."https://h"]\nheader={a=1}', "header.a: is neither"),
        ('[host."https://h"]\nheader={a="x\\r\\nB: c"}', "header.a: is not an HTTP header"),
        ('[host."https://h"]\nclient=[["a"]]', "client: is neither a path"),
        ('[host."https://h"]\nproxy="socks5://p"', "proxy: is not the http"),
        ('[host."https://h"]\nskip-verify=true', '"skip-verify" is not a field'),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_field(tmp_path: Path, text: str, field: str) -> None:
    write_hosts(tmp_path, "r.example", text)
    with pytest.raises(InvalidInput, match=field) as caught:
        hosts_for("r.example", [str(tmp_path)])
    assert str(tmp_path / "r.example/hosts.toml") in str(caught.value)


def test_explain(tmp_path: Path) -> None:
    write_hosts(tmp_path, "docker.io", '[host."https://m.example"]\ncapabilities=["pull"]\nskip_verify=true\n')
    auth = tmp_path / "auth.json"
    auth.write_text('{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"}}}')
    explanation = Resolver((str(tmp_path),), (str(auth),)).explain("nginx")
    assert explanation.reference == "docker.io/library/nginx:latest"
    mirror, hub = explanation.hosts
    assert (mirror.url, mirror.capabilities, mirror.credentials) == ("https://m.example/v2", ("pull",), "anonymous")
    assert mirror.tls == "TLS, not verified (skip_verify)"
    assert (hub.url, hub.credentials) == ("https://registry-1.docker.io/v2", "user me")
    assert hub.credentials_reason == f'entry "https://index.docker.io/v1/" in {auth}'
    text = "\n".join(explanation.lines())
    assert "asks:         https://registry-1.docker.io/v2/library/nginx/manifests/latest" in text
    assert "secret" not in text

"""Which hosts serve a registry's content, in what order, and how each is spoken to.

The configuration is containerd's: directories ``<root>/<host>/hosts.toml`` (docs/hosts.md of containerd). For a
registry ``r.example:5000`` the folders ``r.example_5000_``, ``r.example:5000`` and ``_default`` are looked for, the
first that exists serves. A folder without ``hosts.toml`` may hold Docker's certificate files (``*.crt``, ``*.cert``
with ``*.key``). Unlike containerd, a file that can't be read is an error that names the field, never skipped.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sampan.errors import InvalidInput

CAPABILITIES = frozenset({"pull", "resolve", "push"})
DEFAULT_DIRECTORIES = ("/etc/sampan/certs.d", "/etc/containerd/certs.d")
_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"
_FIELDS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy"}
    # Ours; containerd passes over fields that it doesn't know.
    | {"read_timeout", "minimum_rate"}
)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host that may serve a registry's content."""

    scheme: str
    #: Name and port, as in the URL.
    name: str
    #: Root of the API: ``/v2``, or what ``override_path`` says.
    path: str = "/v2"
    capabilities: frozenset[str] = CAPABILITIES
    headers: tuple[tuple[str, str], ...] = ()
    ca: tuple[str, ...] = ()
    #: Pairs of certificate and key files; an empty key is in the certificate's file.
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False
    dial_timeout: float | None = None
    #: Seconds between two reads, and bytes a second that a body must come with; None for what holds for all hosts.
    read_timeout: float | None = None
    minimum_rate: int | None = None
    proxy: str = ""
    #: Whether it is the registry that the image's name says, or the ``server`` that stands for it.
    upstream: bool = False
    #: Why it is in the list.
    reason: str = ""

    @property
    def url(self) -> str:
        """Root of the API."""
        return f"{self.scheme}://{self.name}{self.path}"

    def can(self, capability: str) -> bool:
        """Whether it is to be used for ``pull``, ``resolve`` or ``push``."""
        return capability in self.capabilities


def is_loopback(name: str) -> bool:
    """Whether a host name with or without a port means this machine: ``localhost``, 127/8, ``[::1]``."""
    host = name.rpartition(":")[0] if re.search(r":\d+$", name) else name
    return host in ("localhost", "[::1]", "::1") or bool(re.fullmatch(r"127(?:\.\d{1,3}){3}", host))


def hosts_for(domain: str, directories: Sequence[str] = DEFAULT_DIRECTORIES) -> list[Host]:
    """Hosts to be tried for a registry, in order; the last one is the registry itself or its ``server``.

    Raises:
        InvalidInput: A configuration file is wrong; names file and field.
    """
    for folder in _folders(domain, directories):
        file = os.path.join(folder, "hosts.toml")
        if os.path.exists(file):
            return _read_hosts(file, domain)
        if certificates := _docker_certificates(folder):
            ca, client = certificates
            reason = f"certificate files in {folder}"
            return [_upstream(domain, ca=ca, client=client, reason=reason, scheme="https")]
    return [_upstream(domain, reason="no hosts.toml for it")]


def _folders(domain: str, directories: Sequence[str]) -> Iterator[str]:
    names = [domain, "_default"]
    if ":" in domain and re.search(r":\d+$", domain):
        host, _, port = domain.rpartition(":")
        names.insert(0, f"{host}_{port}_")
    # A more particular folder of a later root wins over an earlier root's _default.
    for name in names:
        for root in directories:
            folder = os.path.join(root, name)
            if os.path.isdir(folder):
                yield folder


def _upstream(domain: str, *, scheme: str = "", reason: str, **options: Any) -> Host:
    name = _HUB_HOST if domain == _HUB else domain
    if not scheme:
        scheme = "http" if is_loopback(domain) else "https"
        reason += "; plain HTTP since it is a loopback address" if scheme == "http" else ""
    return Host(scheme=scheme, name=name, upstream=True, reason=f"the registry itself: {reason}", **options)


def _read_hosts(file: str, domain: str) -> list[Host]:
    import tomllib  # here, since few machines have such a file

    try:
        with open(file, "rb") as stream:
            document = tomllib.load(stream)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"not TOML: {error}", field=file) from None
    except OSError as error:
        raise InvalidInput(f"can't be read: {error.strerror}", field=file) from None
    tables = document.pop("host", {})
    server = document.pop("server", "")
    if not isinstance(tables, dict) or not isinstance(server, str):
        raise InvalidInput("host is a table of hosts, server a URL", field=file)
    hosts = []
    for url, table in tables.items():
        where = f'{file}: host."{url}"'
        if not isinstance(table, dict):
            raise InvalidInput("is not a table", field=where)
        hosts.append(_host(url, table, where, file, f"a mirror in {file}"))
    if server:
        last = _host(server, document, f"{file}: server", file, f"the server in {file}", upstream=True)
    else:
        last = _upstream(domain, reason=f"{file} names no server", **_options(document, file, file))
    return [*hosts, last]


def _host(url: str, table: dict[str, Any], where: str, file: str, reason: str, upstream: bool = False) -> Host:
    full = url if re.match(r"https?://", url) else f"https://{url}"
    try:
        parts = urlsplit(full)
        bad = not parts.hostname or bool(parts.query or parts.fragment) or parts.username is not None
        _ = parts.port
    except ValueError:
        bad = True
    if bad:
        raise InvalidInput(f'"{url}" is not the URL of a host', field=where)
    override = table.get("override_path", False)
    if not isinstance(override, bool):
        raise InvalidInput("is not true or false", field=f"{where}.override_path")
    path = parts.path.rstrip("/")
    if not override and not path.endswith("/v2"):
        path += "/v2"
    options = _options(table, where, file)
    return Host(scheme=parts.scheme, name=parts.netloc, path=path, reason=reason, upstream=upstream, **options)


def _options(table: dict[str, Any], where: str, file: str) -> dict[str, Any]:
    if unknown := sorted(set(table) - _FIELDS):
        raise InvalidInput(f'"{unknown[0]}" is not a field of hosts.toml', field=where)
    base = os.path.dirname(file)
    skip = table.get("skip_verify", False)
    if not isinstance(skip, bool):
        raise InvalidInput("is not true or false", field=f"{where}.skip_verify")
    options: dict[str, Any] = {
        "skip_verify": skip,
        "ca": tuple(_files(table.get("ca", []), base, f"{where}.ca")),
        "client": tuple(_pairs(table.get("client", []), base, f"{where}.client")),
        "headers": tuple(_headers(table.get("header", {}), f"{where}.header")),
        "proxy": _proxy(table.get("proxy", ""), f"{where}.proxy"),
    }
    for field in {"dial_timeout", "read_timeout"} & set(table):
        options[field] = _duration(table[field], f"{where}.{field}")
    if "minimum_rate" in table:
        options["minimum_rate"] = _rate(table["minimum_rate"], f"{where}.minimum_rate")
    if table.get("capabilities"):
        options["capabilities"] = _capabilities(table["capabilities"], f"{where}.capabilities")
    return options


def _strings(value: object, field: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise InvalidInput("is neither a text nor a list of texts", field=field)
    return values


def _capabilities(value: object, field: str) -> frozenset[str]:
    named = frozenset(text.lower() for text in _strings(value, field))
    if unknown := sorted(named - CAPABILITIES):
        raise InvalidInput(f'"{unknown[0]}" is none of pull, resolve, push', field=field)
    return named


def _files(value: object, base: str, field: str) -> list[str]:
    files = [os.path.join(base, name) for name in _strings(value, field)]
    for file in files:
        if not os.path.isfile(file):
            raise InvalidInput(f"{file} does not exist", field=field)
    return files


def _pairs(value: object, base: str, field: str) -> Iterator[tuple[str, str]]:
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        names = [item, ""] if isinstance(item, str) else item
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise InvalidInput("is neither a path nor a list of paths or of pairs of paths", field=field)
        certificate, key = names
        _files([name for name in names if name], base, field)
        yield os.path.join(base, certificate), os.path.join(base, key) if key else ""


def _headers(value: object, field: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        raise InvalidInput("is not a table", field=field)
    for name, given in value.items():
        for text in _strings(given, f"{field}.{name}"):
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not re.fullmatch(r"[\t\x20-\x7e]*", text):
                raise InvalidInput("is not an HTTP header", field=f"{field}.{name}")
            yield name, text


def _duration(value: object, field: str) -> float:
    text = value if isinstance(value, str) else ""
    if not text or _DURATION_PART.sub("", text):
        raise InvalidInput('is not a duration such as "500ms" or "1m30s"', field=field)
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def _rate(value: object, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput("is not a number of bytes a second", field=field)
    return value


def _proxy(value: object, field: str) -> str:
    if not value:
        return ""
    if not isinstance(value, str) or not re.match(r"https?://[^/]+/?\Z", value):
        raise InvalidInput("is not the http:// or https:// URL of a proxy", field=field)
    return value


def _docker_certificates(folder: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]] | None:
    names = sorted(os.listdir(folder))
    ca = tuple(os.path.join(folder, name) for name in names if name.endswith(".crt"))
    client = []
    for name in names:
        if name.endswith(".cert"):
            key = os.path.join(folder, name.removesuffix(".cert") + ".key")
            if not os.path.exists(key):
                raise InvalidInput(f"{key} is missing beside {name}", field=folder)
            client.append((os.path.join(folder, name), key))
    return (ca, tuple(client)) if ca or client else None

"""Docker's ``config.json`` and Podman's ``auth.json``: the files that hold registry credentials.

Facts: docker's ``cli/config/configfile`` and containers-auth.json(5). Scope: reading and changing the document.
Out of scope: which files there are, and running credential helpers (:mod:`sampan.registry.credentials`).
"""

import base64
import binascii

import msgspec

from sampan.errors import InvalidInput

#: Docker Hub's key in these files, and the server name its credential helpers are asked for.
HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
#: A file of credentials is small; what is larger is something else.
CONFIG_LIMIT = 4 << 20


class AuthEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one registry or repository is opened with; the names are those of the file."""

    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(default="", name="identitytoken")
    registry_token: str = msgspec.field(default="", name="registrytoken")

    @property
    def empty(self) -> bool:
        """Whether it says nothing: Docker leaves ``{}`` where a credential store has the secret."""
        return not (self.auth or self.username or self.identity_token or self.registry_token)


class DockerConfig(msgspec.Struct, frozen=True):
    """The parts of the file that speak of credentials."""

    auths: dict[str, AuthEntry] = {}
    creds_store: str = msgspec.field(default="", name="credsStore")
    cred_helpers: dict[str, str] = msgspec.field(default={}, name="credHelpers")


def decode_docker_config(data: bytes, source: str) -> DockerConfig:
    """Read the file.

    Args:
        data: Its bytes.
        source: Its path, for the error.

    Raises:
        InvalidInput: It is not JSON or has a field of another type.
    """
    if len(data) > CONFIG_LIMIT:
        raise InvalidInput(f"{len(data)} bytes are more than a file of credentials has", field=source)
    try:
        return msgspec.json.decode(data or b"{}", type=DockerConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not a docker config: {error}", field=source) from None


def decode_auth(encoded: str, field: str) -> tuple[str, str]:
    """Split the ``auth`` field: base64 of ``user:password``.

    Raises:
        InvalidInput: It is not; the value itself is never shown.
    """
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise InvalidInput("is not base64 of user:password", field=field) from None
    user, colon, password = text.partition(":")
    if not colon:
        raise InvalidInput("is not base64 of user:password: no colon", field=field)
    # Docker's own writer pads the password with zero bytes.
    return user, password.rstrip("\0")


def encode_auth(username: str, password: str) -> str:
    """The ``auth`` field for a user and a password."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def normalise_key(key: str) -> str:
    """A key of ``auths`` as ``host[:port][/path]``: no scheme, no API version, one name for Docker Hub."""
    bare = key.partition("://")[2] or key
    bare = bare.rstrip("/")
    for version in ("/v1", "/v2"):
        bare = bare.removesuffix(version)
    host, slash, path = bare.partition("/")
    host = host.lower()
    if host in _HUB_HOSTS:
        host = "docker.io"
    return f"{host}{slash}{path}"


def candidate_keys(domain: str, path: str) -> list[str]:
    """Normalised keys that cover a repository, the most particular first (containers-auth.json(5))."""
    host = normalise_key(domain)
    parts = path.split("/") if path else []
    return ["/".join([host, *parts[:count]]) for count in range(len(parts), -1, -1)]


def helper_server(domain: str) -> str:
    """The server name a credential helper knows a registry by."""
    return HUB_KEY if normalise_key(domain) == "docker.io" else domain


def with_entry(data: bytes, key: str, entry: AuthEntry | None, source: str) -> bytes:
    """The file with one entry of ``auths`` set, or taken out; every other field, known or not, stays.

    Args:
        data: The file as it is; empty for none.
        key: Registry or repository.
        entry: New entry, or None to take it out.
        source: The file's path, for the error.

    Raises:
        InvalidInput: The file is not what it should be.
    """
    decode_docker_config(data, source)
    document: dict[str, object] = msgspec.json.decode(data or b"{}", type=dict[str, object])
    auths = dict(msgspec.convert(document.get("auths") or {}, type=dict[str, object]))
    for other in [name for name in auths if normalise_key(name) == normalise_key(key)]:
        del auths[other]
    if entry is not None:
        auths[HUB_KEY if normalise_key(key) == "docker.io" else key] = msgspec.to_builtins(entry)
    document["auths"] = auths
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"

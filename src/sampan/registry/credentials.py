"""Where credentials come from: one chain for every command and for the CRI.

The order, first match wins:

1. what the caller gave (the CRI's ``AuthConfig``, ``--creds``), for the registry that the image name says and for
   no other host: a mirror never sees the secret of the registry it mirrors;
2. ``$REGISTRY_AUTH_FILE`` alone, where it is set; or else
   ``$XDG_RUNTIME_DIR/containers/auth.json``, ``~/.config/containers/auth.json``,
   ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``.

In a file, an entry for a repository's path wins over one for its host; a ``credHelpers`` entry wins over ``auths``,
and ``credsStore`` is asked where the host's entry is empty or missing, as Docker does.
"""

import os
import subprocess
from collections.abc import Sequence

import msgspec

from sampan.errors import InvalidInput, NotFound, TimedOut, Unavailable
from sampan.spec.docker import (
    AuthEntry,
    DockerConfig,
    candidate_keys,
    decode_auth,
    decode_docker_config,
    helper_server,
    normalise_key,
)

#: What a helper gives as user name when the secret is an identity token.
TOKEN_USER = "<token>"
_HELPER_TIMEOUT = 30.0
_HELPER_OUTPUT_LIMIT = 1 << 20


class Credentials(msgspec.Struct, frozen=True):
    """What a registry is opened with; all empty for nobody in particular."""

    username: str = ""
    password: str = ""
    #: OAuth2 refresh token, exchanged for access tokens.
    identity_token: str = ""
    #: Bearer token, sent as it is.
    registry_token: str = ""
    #: Host that they are for, as the caller said; empty for the registry in the image's name.
    server: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __repr__(self) -> str:
        return f"Credentials({self.describe()})"

    def describe(self) -> str:
        """What kind they are, without the secret."""
        if self.registry_token:
            return "bearer token"
        if self.identity_token:
            return "identity token"
        return f"user {self.username}" if self.username else "anonymous"

    @classmethod
    def from_cri(
        cls,
        *,
        username: str = "",
        password: str = "",
        auth: str = "",
        server_address: str = "",
        identity_token: str = "",
        registry_token: str = "",
    ) -> "Credentials | None":
        """Translate the CRI's ``AuthConfig``; None where it is empty.

        Raises:
            InvalidInput: ``auth`` is not base64 of user:password.
        """
        if auth and not username:
            username, password = decode_auth(auth, "auth")
        made = cls(username, password, identity_token, registry_token, normalise_key(server_address))
        return made or None


class Found(msgspec.Struct, frozen=True):
    """Credentials, and why these."""

    credentials: Credentials
    reason: str


NOBODY = Credentials()


def default_files(environ: dict[str, str] | None = None) -> list[str]:
    """Files of credentials by environment, in order; they need not exist."""
    env = dict(os.environ) if environ is None else environ
    if named := env.get("REGISTRY_AUTH_FILE"):
        return [named]
    files = []
    home = env.get("HOME", "")
    if runtime := env.get("XDG_RUNTIME_DIR"):
        files.append(os.path.join(runtime, "containers/auth.json"))
    if configuration := env.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else ""):
        files.append(os.path.join(configuration, "containers/auth.json"))
    if docker := env.get("DOCKER_CONFIG") or (os.path.join(home, ".docker") if home else ""):
        files.append(os.path.join(docker, "config.json"))
    return files


class Chain:
    """Looks credentials up; files are read at each look-up, so that a login is seen at once.

    Args:
        files: Files to search in order; None for those of the environment.
    """

    def __init__(self, files: Sequence[str] | None = None) -> None:
        self._files = files

    @property
    def files(self) -> list[str]:
        """Files that are searched, in order."""
        return list(self._files) if self._files is not None else default_files()

    def find(self, domain: str, path: str = "") -> Found:
        """Credentials for a repository, anonymous where none are found.

        Args:
            domain: Host of the registry, with its port.
            path: Repository on it.

        Raises:
            InvalidInput: A file is broken; said rather than skipped, since a skipped file looks like a wrong password.
            Unavailable: A credential helper failed.
        """
        for file in self.files:
            config = _load(file)
            found = _search(config, file, domain, path) if config else None
            if found:
                return found
        searched = ", ".join(self.files) or "no file"
        return Found(NOBODY, f"no entry for {normalise_key(domain)} in {searched}")


def _load(file: str) -> DockerConfig | None:
    try:
        with open(file, "rb") as stream:
            return decode_docker_config(stream.read(), file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidInput(f"can't be read: {error.strerror}", field=file) from None


def _search(config: DockerConfig, file: str, domain: str, path: str) -> Found | None:
    auths = {normalise_key(key): (key, entry) for key, entry in config.auths.items()}
    helpers = {normalise_key(key): name for key, name in config.cred_helpers.items()}
    for key in candidate_keys(domain, path):
        if name := helpers.get(key):
            server = helper_server(domain) if key == normalise_key(domain) else key
            if credentials := ask_helper(name, server):
                return Found(credentials, f"credential helper {name} for {key} ({file})")
        if key in auths and not auths[key][1].empty:
            spelt, entry = auths[key]
            return Found(_from_entry(entry, f"{file}: auths[{spelt}].auth"), f'entry "{spelt}" in {file}')
    if config.creds_store and (credentials := ask_helper(config.creds_store, helper_server(domain))):
        return Found(credentials, f"credential store {config.creds_store} ({file})")
    return None


def _from_entry(entry: AuthEntry, field: str) -> Credentials:
    username, password = entry.username, entry.password
    if entry.auth and not username:
        username, password = decode_auth(entry.auth, field)
    if entry.identity_token and username in ("", TOKEN_USER):
        username = password = ""
    return Credentials(username, password, entry.identity_token, entry.registry_token)


class _HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str
    secret: str


def ask_helper(name: str, server: str) -> Credentials | None:
    """Ask ``docker-credential-NAME`` for a server's secret; None where it has none.

    Raises:
        Unavailable: The helper is not there, failed, or gave something else.
    """
    try:
        output = run_helper(name, "get", server.encode())
    except NotFound:
        return None
    try:
        answer = msgspec.json.decode(output, type=_HelperAnswer)
    except msgspec.DecodeError:
        raise Unavailable(f"docker-credential-{name}: get {server}: its answer is not the protocol's JSON") from None
    if answer.username == TOKEN_USER:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)


def run_helper(name: str, verb: str, data: bytes) -> bytes:
    """Run a credential helper (docker-credential-helpers' protocol: a verb as argument, data on stdin).

    Raises:
        InvalidInput: The name is not a plain one.
        NotFound: The helper has no such entry.
        Unavailable: It is not installed or failed.
        TimedOut: It did not answer.
    """
    if not name or "/" in name or name.startswith("."):
        raise InvalidInput(f'"{name}" is not the name of a credential helper', field="credHelpers")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, verb], input=data, capture_output=True, timeout=_HELPER_TIMEOUT, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{program}: not found in PATH", hint="install it, or log in again without it") from None
    except OSError as error:
        raise Unavailable(f"{program}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{program} {verb}: no answer in {_HELPER_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = (done.stdout or done.stderr)[:200].decode("utf-8", "replace").strip()
        if "credentials not found" in said.lower():
            raise NotFound(f"{program}: {said}")
        raise Unavailable(f"{program} {verb}: exit {done.returncode}: {said}")
    if len(done.stdout) > _HELPER_OUTPUT_LIMIT:
        raise Unavailable(f"{program} {verb}: answers more than {_HELPER_OUTPUT_LIMIT} bytes")
    return done.stdout


def explicit(credentials: Credentials | None, domain: str, host: str, is_upstream: bool) -> Credentials | None:
    """What the caller's own credentials say for a host: themselves, or None where they are not meant for it."""
    if not credentials:
        return None
    if credentials.server:
        wanted = normalise_key(credentials.server).partition("/")[0]
        return credentials if wanted in (normalise_key(host), normalise_key(domain) if is_upstream else "") else None
    return credentials if is_upstream else None

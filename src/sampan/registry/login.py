"""Logging in: credentials are tried at the registry, then kept where every tool finds them."""

import os
import secrets

import msgspec

from sampan.errors import InvalidInput, NotFound, StageFailed
from sampan.image.reference import Reference
from sampan.registry.auth import Authorizer
from sampan.registry.client import Client
from sampan.registry.credentials import Credentials, Found, default_files, run_helper
from sampan.registry.resolver import Resolver
from sampan.spec.docker import (
    AuthEntry,
    decode_docker_config,
    encode_auth,
    helper_server,
    normalise_key,
    with_entry,
)


def login(resolver: Resolver, registry: str, username: str, password: str, *, file: str = "") -> str:
    """Check credentials at a registry and keep them.

    Args:
        resolver: Hosts.
        registry: Host of the registry, or a repository on it (``r.example/team``) for credentials of that path.
        username: User name.
        password: Password or access token.
        file: File to keep them in; by default the first of the credential chain that exists, or Docker's.

    Returns:
        Where they are kept: the file, or the credential helper.

    Raises:
        Unauthenticated: The registry refuses them; nothing is kept.
        InvalidInput: The registry's name or the file is malformed.
    """
    domain, path = _split(registry)
    if not username or ":" in username:
        raise InvalidInput("must be given and have no colon", field="username")
    host = resolver.hosts(domain)[-1]
    transport = resolver.transport(host)
    found = Found(Credentials(username, password), "given to login")
    Client(transport, Authorizer(transport, found), path).ping()
    return _keep(registry, AuthEntry(auth=encode_auth(username, password)), username, password, file or login_file())


def logout(registry: str, *, file: str = "") -> bool:
    """Forget the credentials of a registry; whether there were any."""
    domain, _ = _split(registry)
    path = file or login_file()
    data = _read(path)
    config = decode_docker_config(data, path)
    key = normalise_key(registry)
    had = any(normalise_key(name) == key for name in config.auths)
    if helper := _helper(path, data, registry):
        try:
            run_helper(helper, "erase", helper_server(domain).encode())
            had = True
        except NotFound:
            pass
    if had:
        _write(path, with_entry(data, registry, None, path))
    return had


def login_file() -> str:
    """Where logins are kept: the first file of the chain that exists, or else Docker's."""
    files = default_files()
    if not files:
        raise InvalidInput("neither HOME nor REGISTRY_AUTH_FILE is set", field="environment")
    return next((file for file in files if os.path.exists(file)), files[-1])


def _split(registry: str) -> tuple[str, str]:
    key = normalise_key(registry)
    domain, _, path = key.partition("/")
    # A host is what can stand before a repository; parsing one says what is wrong with it.
    Reference.parse(f"{domain}/{path or 'x'}")
    return domain, path


def _helper(file: str, data: bytes, registry: str) -> str:
    config = decode_docker_config(data, file)
    named = {normalise_key(key): name for key, name in config.cred_helpers.items()}
    return named.get(normalise_key(registry)) or config.creds_store


def _keep(registry: str, entry: AuthEntry, username: str, password: str, file: str) -> str:
    data = _read(file)
    helper = _helper(file, data, registry)
    if not helper:
        _write(file, with_entry(data, registry, entry, file))
        return file
    server = helper_server(normalise_key(registry))
    secret = {"ServerURL": server, "Username": username, "Secret": password}
    run_helper(helper, "store", msgspec.json.encode(secret))
    _write(file, with_entry(data, registry, AuthEntry(), file))
    return f"docker-credential-{helper}"


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StageFailed("read credentials", error, path=file) from error


def _write(file: str, data: bytes) -> None:
    """Replace the file at once, for its owner's eyes only; through a link, as people keep such files elsewhere."""
    target = os.path.realpath(file)
    folder = os.path.dirname(target)
    beside = os.path.join(folder, f".{os.path.basename(target)}.{secrets.token_hex(6)}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(fd)
            os.rename(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise StageFailed("write credentials", error, path=file) from error

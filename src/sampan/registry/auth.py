"""How a host is told who asks: Basic, and Bearer tokens from a token server.

The flow is the distribution project's "token authentication" and its OAuth2 variant. Nothing is sent before a host has
asked with 401. Tokens are kept for the scopes they were got for, until they run out. Credentials go to the host's own
origin and to the token server it names, which must be reached by https if the host was.
"""

import base64
import re
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlencode, urlsplit

import msgspec

from sampan.errors import Corrupt, InvalidInput, SampanError, Unauthenticated, Unavailable
from sampan.registry.credentials import Found
from sampan.registry.transport import Answer, Transport, Watch, origin

_CLIENT_ID = "sampan"
_TOKEN_LIMIT = 1 << 20
#: What the specification gives a token that says no lifetime.
_DEFAULT_LIFETIME = 60.0
#: Renewed this many seconds before it runs out.
_MARGIN = 5.0


class Challenge(msgspec.Struct, frozen=True):
    """One challenge of a WWW-Authenticate header; scheme and names in lower case."""

    scheme: str
    parameters: dict[str, str]


_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_VALUE = r'"((?:[^"\\]|\\.)*)"|([^\s,"=]+)'
_PART = re.compile(rf"\s*,?\s*({_NAME})(?:\s*=\s*(?:{_VALUE})|(?=\s|,|\Z))")


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header (RFC 9110, 11.6.1), which may hold several challenges; rubbish gives fewer."""
    found: list[Challenge] = []
    position = 0
    header = header[:8192]
    while match := _PART.match(header, position):
        if match.end() == position:
            break
        position = match.end()
        name = match[1].lower()
        value = match[2] if match[2] is not None else match[3]
        if value is None:
            found.append(Challenge(name, {}))
        elif found:
            found[-1].parameters.setdefault(name, re.sub(r"\\(.)", r"\1", value))
    return found


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class _Token(msgspec.Struct, frozen=True):
    value: str
    #: By the monotonic clock.
    expires_at: float


class Authorizer:
    """Answers one host's challenges for one user; shared by the threads of one operation.

    Args:
        transport: The host.
        found: Who asks.
    """

    def __init__(self, transport: Transport, found: Found) -> None:
        self._transport = transport
        self._credentials = found.credentials
        self._reason = found.reason
        self._origin = origin(transport.host.url)
        self._lock = threading.Lock()
        self._basic = False
        self._bearer: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        #: Scopes that the host asked for, by the scopes we wanted.
        self._asked: dict[tuple[str, ...], tuple[str, ...]] = {}

    def headers(self, scopes: Sequence[str], watch: Watch) -> dict[str, str]:
        """The Authorization header for a request of these scopes, as far as the host has asked for one."""
        with self._lock:
            if self._basic:
                return {"Authorization": self._basic_header()}
            if self._bearer is None:
                return {}
            return {"Authorization": f"Bearer {self._token(tuple(scopes), watch)}"}

    def challenged(self, answer: Answer, scopes: Sequence[str], sent: str) -> None:
        """Take in a 401, so that :meth:`headers` gives what it asks for.

        Args:
            answer: The 401.
            scopes: What the request was for.
            sent: Authorization header that the host refused, or empty.

        Raises:
            Unauthenticated: There is nothing to answer with, or what we have was refused.
        """
        if origin(answer.url) != self._origin:
            raise Unauthenticated(f"{answer.what}: 401 from a host that was redirected to; no credentials go there")
        challenges = parse_challenges(answer.header("WWW-Authenticate"))
        schemes = {challenge.scheme: challenge for challenge in reversed(challenges)}
        with self._lock:
            if bearer := schemes.get("bearer"):
                self._take_bearer(bearer, tuple(scopes), sent)
            elif "basic" in schemes:
                self._take_basic(answer, sent)
            else:
                offered = ", ".join(sorted(schemes)) or "nothing"
                raise Unauthenticated(f"{answer.what}: 401, offering {offered[:100]} instead of Basic or Bearer")

    def refused(self, answer: Answer) -> Unauthenticated:
        """The error for a 401 that came in spite of fresh authorization."""
        return Unauthenticated(f"{answer.what}: 401 Unauthorized as {self._credentials.describe()}", hint=self._hint())

    def _hint(self) -> str:
        if self._credentials:
            return f"the credentials came from: {self._reason}"
        return f"log in with `sampan login {self._transport.host.name}`; {self._reason}"

    def _take_basic(self, answer: Answer, sent: str) -> None:
        if not self._credentials.username or sent:
            raise self.refused(answer)
        self._basic = True

    def _basic_header(self) -> str:
        text = f"{self._credentials.username}:{self._credentials.password}"
        return "Basic " + base64.b64encode(text.encode()).decode()

    def _take_bearer(self, challenge: Challenge, scopes: tuple[str, ...], sent: str) -> None:
        self._bearer = challenge
        self._basic = False
        token = self._tokens.get(scopes)
        if token is None or sent == f"Bearer {token.value}":
            # Refused or never got: the next request gets a new one, for what the host asks beside what we want.
            self._tokens.pop(scopes, None)
            asked = tuple(challenge.parameters.get("scope", "").split())
            self._asked[scopes] = tuple(dict.fromkeys((*asked, *(scopes if not asked else _others(scopes, asked)))))

    def _token(self, scopes: tuple[str, ...], watch: Watch) -> str:
        if self._credentials.registry_token:
            return self._credentials.registry_token
        token = self._tokens.get(scopes)
        if token is None or token.expires_at <= time.monotonic():
            token = self._fetch(self._asked.get(scopes, scopes), watch)
            self._tokens[scopes] = token
        return token.value

    def _fetch(self, scopes: tuple[str, ...], watch: Watch) -> _Token:
        assert self._bearer is not None
        host = self._transport.host.name
        realm = self._bearer.parameters.get("realm", "")
        service = self._bearer.parameters.get("service", "")
        problem = _bad_realm(realm, self._origin[0])
        if problem:
            raise Unauthenticated(f'{host}: names "{realm[:160]}" as token server: {problem}')
        started = time.monotonic()
        try:
            answer = self._ask(realm, service, scopes, watch)
        except Unauthenticated:
            raise
        except SampanError as error:
            raise Unavailable(f"{host}: token server: {error.message}", hint=error.hint) from None
        lifetime = answer.expires_in if answer.expires_in and answer.expires_in > 0 else _DEFAULT_LIFETIME
        value = answer.token or answer.access_token
        if not value or not re.fullmatch(r"[\x21-\x7e]+", value):
            raise Unavailable(f"{host}: token server {urlsplit(realm).netloc}: its answer has no token")
        return _Token(value, started + max(1.0, lifetime - _MARGIN))

    def _ask(self, realm: str, service: str, scopes: tuple[str, ...], watch: Watch) -> _TokenAnswer:
        credentials = self._credentials
        watch = watch.within(self._transport.limits.document)
        if credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT_ID,
                "scope": " ".join(scopes),
                "refresh_token": credentials.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._transport.send("POST", realm, headers, body=urlencode(form).encode(), watch=watch)
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            if credentials.username:
                query.append(("account", credentials.username))
            url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(query) if query else realm
            secret = {"Authorization": self._basic_header()} if credentials.username else {}
            answer = self._transport.send("GET", url, {}, secret=secret, watch=watch)
        if answer.status in (400, 401, 403):
            answer.close()
            raise Unauthenticated(
                f"{answer.what}: {answer.status}: the token server refuses {credentials.describe()}", hint=self._hint()
            )
        if answer.status != 200:
            answer.close()
            raise Unavailable(f"{answer.what}: {answer.status}")
        data = answer.read(_TOKEN_LIMIT, watch)
        try:
            return msgspec.json.decode(data, type=_TokenAnswer)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Corrupt(f"{answer.what}: {error}") from None


def _others(wanted: tuple[str, ...], asked: tuple[str, ...]) -> list[str]:
    """Scopes beyond the repository the host asked about: the source of a mount."""
    names = {scope.rsplit(":", 1)[0] for scope in asked}
    return [scope for scope in wanted[1:] if scope.rsplit(":", 1)[0] not in names]


def _bad_realm(realm: str, scheme: str) -> str:
    try:
        parts = urlsplit(realm)
        _ = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "not an http or https address"
    if scheme == "https" and parts.scheme != "https":
        return "credentials do not go from https to http"
    return ""


def scope(repository: str, actions: str) -> str:
    """A token scope for a repository: ``repository:library/nginx:pull``.

    Raises:
        InvalidInput: The name has a character that would change the scope's meaning.
    """
    if not re.fullmatch(r"[a-z0-9._/-]+", repository):
        raise InvalidInput(f'"{repository[:120]}" is not a repository', field="repository")
    return f"repository:{repository}:{actions}"

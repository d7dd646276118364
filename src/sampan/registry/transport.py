"""HTTP to one registry host: connections, deadlines, redirects. No knowledge of the distribution API.

Rules:

- every wait is bounded: to connect, between two reads, for a whole document, and by a least rate for a body;
- a redirect is followed for reads only, a few hops, never from https to http; what is secret (``Authorization``, the
  headers of ``hosts.toml``) goes to the first origin alone, never to where it redirects (CVE-2020-15157);
- an error names the host, the request and the cause.
"""

import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
import urllib3
from urllib3 import exceptions as http_errors
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout

from sampan.errors import Corrupt, InvalidInput, SampanError, TimedOut, Unavailable
from sampan.registry.hosts import Host, is_loopback

#: Most bytes taken by one read; one read is one recv, so that a slow peer is noticed.
CHUNK = 256 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT = 5
_USER_AGENT = "sampan/0.1"

Body = bytes | Iterator[bytes] | None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a registry host is waited for. Seconds and bytes."""

    connect: float = 30.0
    #: Between two reads.
    read: float = 30.0
    #: For a whole manifest, token or other document.
    document: float = 60.0
    #: For a whole blob; None leaves it to the least rate.
    blob: float | None = None
    #: Bytes a second that a body must come with, on average over ``rate_window``.
    minimum_rate: int = 1024
    rate_window: float = 30.0
    #: Tries of one request at one host.
    attempts: int = 5
    backoff: float = 0.2
    backoff_limit: float = 10.0
    #: A registry that asks for a longer pause than this is given up.
    retry_after_limit: float = 60.0
    #: Blobs of one image that are on their way at a time.
    parallel: int = 4


class Cancelled(Unavailable):
    """The caller gave the operation up; another of its parts failed first."""


class Watch:
    """How long an operation may still take, and whether it still should.

    Args:
        seconds: From now on; None for no bound.
        stop: Set when the operation is given up.
    """

    def __init__(self, seconds: float | None = None, stop: threading.Event | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._seconds = seconds
        self._stop = stop or threading.Event()

    def within(self, seconds: float | None) -> "Watch":
        """A watch of its own time that stops with this one."""
        left = self.left()
        shorter = min((value for value in (seconds, left) if value is not None), default=None)
        return Watch(shorter, self._stop)

    def left(self) -> float | None:
        """Seconds that are left, or None."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self, what: str) -> None:
        """Raise if the time is over or the operation was given up."""
        if self._stop.is_set():
            raise Cancelled(f"{what}: given up")
        if self._end is not None and time.monotonic() >= self._end:
            raise TimedOut(f"{what}: not done within {self._seconds:.3g} s")

    def pause(self, seconds: float, what: str) -> None:
        """Wait, unless that would pass the deadline."""
        left = self.left()
        if left is not None and seconds >= left:
            raise TimedOut(f"{what}: not done within {self._seconds:.3g} s")
        if self._stop.wait(seconds):
            raise Cancelled(f"{what}: given up")


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL: what a secret is bound to."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, (parts.hostname or "").lower(), port or (443 if parts.scheme == "https" else 80)


class Answer:
    """A response whose body is still to be read; closing it twice is harmless."""

    def __init__(self, response: BaseHTTPResponse, what: str, url: str, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.status = response.status
        self.headers = response.headers
        #: The request in words: ``host: GET /v2/…``.
        self.what = what
        #: Where the answer came from, after redirects.
        self.url = url

    def header(self, name: str) -> str:
        """A header's value, or empty."""
        return str(self.headers.get(name, ""))

    @property
    def length(self) -> int | None:
        """What Content-Length says, or None."""
        text = self.header("Content-Length")
        return int(text) if text.isdecimal() and len(text) < 20 else None

    def chunks(self, watch: Watch) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            Unavailable: The connection broke, or the body came slower than the least rate.
            TimedOut: A read or the whole took too long.
        """
        waited, window = 0.0, 0
        while True:
            watch.check(self.what)
            before = time.monotonic()
            try:
                # One recv at a time: read() would wait for a full buffer from a peer that drips.
                data = self._response.read1(CHUNK)
            except (http_errors.HTTPError, OSError) as error:
                raise explain_failure(error, self.what) from None
            if not data:
                return
            waited += time.monotonic() - before
            window += len(data)
            if waited >= self._limits.rate_window:
                if window < self._limits.minimum_rate * waited:
                    raise Unavailable(
                        f"{self.what}: too slow: {window} bytes in {waited:.1f} s, the least rate is "
                        f"{self._limits.minimum_rate} bytes a second"
                    )
                waited, window = 0.0, 0
            yield data

    def read(self, limit: int, watch: Watch) -> bytes:
        """The whole body, if it has at most ``limit`` bytes.

        Raises:
            Corrupt: It has more.
        """
        if (self.length or 0) > limit:
            self.close()
            raise Corrupt(f"{self.what}: says {self.length} bytes, more than the {limit} that are read")
        parts, size = [], 0
        for chunk in self.chunks(watch):
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                self.close()
                raise Corrupt(f"{self.what}: sends more than the {limit} bytes that are read")
        self.release()
        return b"".join(parts)

    def release(self) -> None:
        """Give the connection back for the next request."""
        self._response.release_conn()

    def close(self) -> None:
        """End the connection: what is still in it is not wanted."""
        self._response.close()
        self._response.release_conn()


class Transport:
    """Connections for one :class:`~sampan.registry.hosts.Host`; shared by threads."""

    def __init__(self, host: Host, limits: Limits) -> None:
        self.host = host
        own = {"read": host.read_timeout, "minimum_rate": host.minimum_rate}
        self.limits = msgspec.structs.replace(
            limits, **{name: value for name, value in own.items() if value is not None}
        )
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._context: ssl.SSLContext | None = None

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        secret: Mapping[str, str] | None = None,
        body: Body = None,
        watch: Watch,
    ) -> Answer:
        """Send one request, following redirects of reads.

        Args:
            method: HTTP method.
            url: Where to.
            headers: Headers for every hop.
            secret: Headers for the first origin only.
            body: Bytes, or an iterator that can be used once.
            watch: Bounds the time until the headers have come.

        Raises:
            Unavailable: The host can't be reached or broke off.
            TimedOut: It did not answer in time.
        """
        first = origin(url)
        asked = url
        for _ in range(_REDIRECT_LIMIT + 1):
            sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
            if secret and origin(url) == first:
                sent.update(secret)
            answer = self._send_once(method, url, sent, body, watch)
            location = answer.header("Location")
            if answer.status not in _REDIRECTS or method not in ("GET", "HEAD") or not location:
                return answer
            answer.close()
            target = urljoin(url, location)
            if problem := _bad_redirect(url, target):
                raise Unavailable(f"{answer.what}: redirects to {_brief(target)}: {problem}")
            url = target
        raise Unavailable(f"{describe(method, asked)}: redirects more than {_REDIRECT_LIMIT} times")

    def _send_once(self, method: str, url: str, headers: dict[str, str], body: Body, watch: Watch) -> Answer:
        what = describe(method, url)
        watch.check(what)
        left = watch.left()
        bound = [value for value in (self.limits.read, left) if value is not None]
        connect = min(self.host.dial_timeout or self.limits.connect, *bound, self.limits.connect)
        try:
            response = self._pool(url).request(
                method,
                url,
                headers=headers,
                body=body,
                timeout=Timeout(connect=max(0.001, connect), read=max(0.001, min(bound))),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (http_errors.HTTPError, OSError, ValueError) as error:
            raise explain_failure(error, what) from None
        return Answer(response, what, url, self.limits)

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = self._proxy(url)
        encrypted = origin(url)[0] == "https"
        with self._lock:
            pool = self._pools.get((proxy, encrypted))
            if pool is None:
                options: dict[str, Any] = {"maxsize": self.limits.parallel + 2, "block": False}
                if encrypted:  # reading all the system's certificates takes longer than a pull of a small image
                    options["ssl_context"] = self._ssl_context()
                pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                self._pools[proxy, encrypted] = pool
            return pool

    def _proxy(self, url: str) -> str:
        if self.host.proxy:
            return self.host.proxy
        scheme, name, port = origin(url)
        if is_loopback(name) or name == "::1" or not any(key.lower().endswith("_proxy") for key in os.environ):
            return ""
        # Here, since it takes as long to import as all of urllib3, and few machines have a proxy.
        from urllib.request import getproxies_environment
        from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined]

        proxies = getproxies_environment()
        if bypassed(f"{name}:{port}", proxies):
            return ""
        return proxies.get(scheme) or proxies.get("all") or ""

    def _ssl_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = _make_context(self.host)
        return self._context

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()


def _make_context(host: Host) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if host.skip_verify:
        # Asked for in hosts.toml, and shown by explain: urllib3 need not say so at each request.
        urllib3.disable_warnings(http_errors.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for file in host.ca:
        try:
            context.load_verify_locations(file)
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput(f"{file} is not a certificate: {error}", field=f"{host.name}: ca") from None
    for certificate, key in host.client:
        try:
            context.load_cert_chain(certificate, key or None)
        except (ssl.SSLError, OSError) as error:
            where = f"{host.name}: client"
            raise InvalidInput(f"{certificate} is no certificate with a key: {error}", field=where) from None
    return context


def _bad_redirect(source: str, target: str) -> str:
    scheme, name, _ = origin(target)
    if scheme not in ("http", "https") or not name:
        return "not an http or https address"
    if urlsplit(source).scheme == "https" and scheme != "https":
        return "from https to http"
    return ""


def describe(method: str, url: str) -> str:
    """A request in words, for errors: host first, no query, since that may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}: {method} {_brief(parts.path or '/')}"


def _brief(text: str) -> str:
    bare = text.partition("?")[0]
    shown = bare if len(bare) <= 160 else bare[:157] + "..."
    return shown.encode("unicode_escape").decode("ascii")


def explain_failure(error: Exception, what: str) -> SampanError:
    """The domain's error for one of urllib3's or the socket's."""
    # urllib3 derives its "connection refused" from the time-out.
    refused = isinstance(error, http_errors.NewConnectionError)
    if isinstance(error, http_errors.ConnectTimeoutError) and not refused:
        return TimedOut(f"{what}: no connection in time")
    if isinstance(error, TimeoutError | http_errors.TimeoutError) and not refused:
        return TimedOut(f"{what}: no answer in time")
    if isinstance(error, http_errors.ProxyError):
        return Unavailable(f"{what}: proxy: {_root(error)}")
    if isinstance(error, http_errors.NameResolutionError):
        return Unavailable(f"{what}: the host's name is not known")
    if isinstance(error, http_errors.SSLError | ssl.SSLError):
        return _tls_failure(error, what)
    if missing := next((one for one in (error, *error.args) if isinstance(one, http_errors.IncompleteRead)), None):
        return Unavailable(f"{what}: the connection ended {missing.expected} bytes early")
    if isinstance(error, ValueError) and not isinstance(error, http_errors.HTTPError):
        return InvalidInput(f"{what}: {error}")
    return Unavailable(f"{what}: {_root(error)}")


def _tls_failure(error: Exception, what: str) -> SampanError:
    text = _root(error)
    hint = ""
    if "CERTIFICATE_VERIFY_FAILED" in text:
        hint = "name its CA in hosts.toml, or put it among the system's certificates"
    elif "WRONG_VERSION_NUMBER" in text or "record layer" in text:
        hint = 'it may speak plain HTTP: say server = "http://…" in hosts.toml'
    return Unavailable(f"{what}: TLS: {text}", hint=hint)


def _root(error: BaseException) -> str:
    """The innermost cause's own words."""
    for _ in range(8):
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException) or inner is error:
            inner = next((item for item in error.args if isinstance(item, BaseException)), None)
        if inner is None:
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error)[:200] or type(error).__name__

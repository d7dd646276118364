"""The distribution API of one repository on one host (OCI distribution specification 1.1).

Every verb retries what may pass (connections, 408, 429, 5xx) with back-off and the host's Retry-After, answers
challenges, and bounds what it reads. Which hosts there are is decided above, in :mod:`sampan.registry.repository`.
"""

import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import msgspec

from sampan.errors import (
    Corrupt,
    Denied,
    Exhausted,
    InvalidInput,
    NotFound,
    SampanError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from sampan.registry.auth import Authorizer, scope
from sampan.registry.transport import Answer, Body, Cancelled, Transport, Watch, origin
from sampan.spec.image import (
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    MT_DOCKER_LIST,
    MT_DOCKER_MANIFEST,
    MT_OCI_INDEX,
    MT_OCI_MANIFEST,
    Descriptor,
    Index,
    check_digest,
    decode_as,
    decode_manifest,
    digest_of,
)

_ACCEPT = f"{MT_OCI_INDEX}, {MT_OCI_MANIFEST}, {MT_DOCKER_LIST}, {MT_DOCKER_MANIFEST}, */*;q=0.1"
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_PASSING = (Unavailable, TimedOut)
_ERROR_BODY_LIMIT = 64 << 10
_PAGES_LIMIT = 10_000
_T = TypeVar("_T", bound=msgspec.Struct)
#: Called with the delay and the error before a request is tried again.
Notice = Callable[[float, SampanError], None]


class _Fault(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Faults(msgspec.Struct, frozen=True):
    errors: tuple[_Fault, ...] = ()


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


class _Catalog(msgspec.Struct, frozen=True):
    repositories: tuple[str, ...] | None = None


class Client:
    """A repository on a host.

    Args:
        transport: The host's connections.
        authorizer: Who asks.
        name: Repository, without the host; empty for verbs on the whole registry.
        namespace: Registry that the image's name says, told to mirrors as ``?ns=``; empty for the registry itself.
        notice: Told of each retry.
        stop: Set when the operation is given up.
    """

    def __init__(
        self,
        transport: Transport,
        authorizer: Authorizer,
        name: str,
        *,
        namespace: str = "",
        notice: Notice | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.transport = transport
        self.host = transport.host
        self.name = name
        self.limits = transport.limits
        self._authorizer = authorizer
        self._namespace = namespace
        self._notice = notice
        self._stop = stop or threading.Event()

    # ------------------------------------------------------------------ requests

    def watch(self, seconds: float | None) -> Watch:
        """A watch for one operation at this host."""
        return Watch(seconds, self._stop)

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Address of a path of this repository: ``manifests/latest``; of the API's root if it starts with a slash."""
        base = f"{self.host.url}{path}" if path.startswith("/") else f"{self.host.url}/{quote(self.name)}/{path}"
        values = dict(query or {})
        if self._namespace:
            values["ns"] = self._namespace
        return f"{base}?{urlencode(values)}" if values else base

    def request(
        self,
        method: str,
        url: str,
        *,
        ok: Sequence[int],
        watch: Watch,
        actions: str = "pull",
        scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> Answer:
        """Send a request until it is answered with a status of ``ok``; the caller closes the answer.

        Raises:
            NotFound, Denied, Unauthenticated, InvalidInput: What the host's status means.
            Unavailable, TimedOut: The host failed at the last try too.
        """
        wanted = tuple(scopes) or ((scope(self.name, actions),) if self.name else ())
        # An iterator can be sent once: whoever gives one sees to retries.
        tries = self.limits.attempts if body is None or isinstance(body, bytes) else 1
        for attempt in range(1, tries + 1):
            pause: float | None = None
            try:
                answer = self._authorized(method, url, wanted, headers or {}, body, watch)
                if answer.status in ok:
                    return answer
                pause = self._retry_after(answer)
                error = self._fault(answer, watch)
            except _PASSING as failure:
                error = failure
            if isinstance(error, Cancelled) or not isinstance(error, _PASSING) or attempt == tries:
                raise error
            self.pause(attempt, error, watch, pause)
        raise AssertionError("unreachable")

    def pause(self, attempt: int, error: SampanError, watch: Watch, asked: float | None = None) -> None:
        """Wait before the next try: as long as the host asked, or twice as long as before, with some chance in it."""
        delay = min(self.limits.backoff * 2 ** (attempt - 1), self.limits.backoff_limit) * random.uniform(0.75, 1.25)
        if asked is not None:
            if asked > self.limits.retry_after_limit:
                raise Unavailable(f"{error.message}; it asks for a pause of {asked:.0f} s")
            delay = max(asked, delay)
        if self._notice:
            self._notice(delay, error)
        watch.pause(delay, error.message)

    def _authorized(
        self, method: str, url: str, scopes: Sequence[str], headers: Mapping[str, str], body: Body, watch: Watch
    ) -> Answer:
        mine = origin(url) == origin(self.host.url)
        for last in (False, False, True):
            authorization = self._authorizer.headers(scopes, watch) if mine else {}
            secret = {**dict(self.host.headers), **authorization} if mine else {}
            answer = self.transport.send(method, url, headers, secret=secret, body=body, watch=watch)
            if answer.status != 401 or not mine:
                return answer
            answer.close()
            if last:
                break
            self._authorizer.challenged(answer, scopes, authorization.get("Authorization", ""))
            if body is not None and not isinstance(body, bytes):
                raise Unavailable(f"{answer.what}: asks who it is in the middle of an upload")
        raise self._authorizer.refused(answer)

    def _retry_after(self, answer: Answer) -> float | None:
        text = answer.header("Retry-After")
        if answer.status not in _RETRIED or not text:
            return None
        if text.isdecimal() and len(text) < 10:
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time())
        except (ValueError, TypeError, OverflowError):
            return None

    def _fault(self, answer: Answer, watch: Watch) -> SampanError:
        said = self._said(answer, watch)
        text = f"{answer.what}: {answer.status}{f': {said}' if said else ''}"
        if answer.status in _RETRIED:
            return Unavailable(text)
        kinds: dict[int, type[SampanError]] = {401: Unauthenticated, 403: Denied, 404: NotFound, 405: Unsupported}
        kinds |= {413: Exhausted, 501: Unsupported}
        if answer.status == 401:
            return self._authorizer.refused(answer)
        if kind := kinds.get(answer.status):
            return kind(text)
        return InvalidInput(text) if 400 <= answer.status < 500 else Unavailable(text)

    def _said(self, answer: Answer, watch: Watch) -> str:
        """The host's own words, bounded and made printable."""
        try:
            # Not stopped with the operation: what is read here may be why it stops.
            data = answer.read(_ERROR_BODY_LIMIT, Watch(min(self.limits.read, watch.left() or self.limits.read)))
            faults = msgspec.json.decode(data, type=_Faults).errors if data else ()
        except (SampanError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer.close()
            return ""
        words = "; ".join(": ".join(part for part in (fault.code, fault.message) if part) for fault in faults[:3])
        return words[:300].encode("unicode_escape").decode("ascii")

    # ------------------------------------------------------------------ reading

    def ping(self) -> None:
        """Check that the host speaks the distribution API and lets us in."""
        watch = self.watch(self.limits.document)
        answer = self.request("GET", self.url("/"), ok=(200,), watch=watch)
        answer.close()

    def resolve(self, target: str) -> Descriptor:
        """What a tag or digest leads to, without fetching it where the host says enough.

        Raises:
            NotFound: No such tag or digest.
        """
        watch = self.watch(self.limits.document)
        url = self.url(f"manifests/{target}")
        try:
            answer = self.request("HEAD", url, ok=(200,), watch=watch, headers={"Accept": _ACCEPT})
        except (Unsupported, InvalidInput):
            return self.fetch_manifest(target)[0]
        answer.close()
        digest, size, media_type = _claims(answer)
        if not digest or size is None or media_type not in MANIFEST_TYPES | INDEX_TYPES:
            return self.fetch_manifest(target)[0]
        if ":" in target and digest != target:
            raise Corrupt(f"{answer.what}: says that its digest is {digest}")
        if size > MANIFEST_LIMIT:
            raise Corrupt(f"{answer.what}: says {size} bytes, more than the {MANIFEST_LIMIT} that are read")
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def fetch_manifest(self, target: str, expected: Descriptor | None = None) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest, checked against its digest.

        Raises:
            Corrupt: It is not what the digest, the size or the host's own headers say.
        """
        watch = self.watch(self.limits.document)
        headers = {"Accept": _ACCEPT}
        answer, data = self._document(self.url(f"manifests/{target}"), headers, watch, MANIFEST_LIMIT)
        said, _, media_type = _claims(answer)
        digest = target if ":" in target else said or digest_of(data)
        found = _digest_like(digest, data)
        if found != digest:
            raise Corrupt(f"{answer.what}: its content has digest {found}, not {digest}")
        if expected is not None:
            if expected.size not in (len(data), 0):
                raise Corrupt(f"{answer.what}: has {len(data)} bytes, not {expected.size}")
            media_type = expected.media_type or media_type
        known = media_type in MANIFEST_TYPES | INDEX_TYPES
        media_type = media_type if known else _media_type_inside(data) or media_type
        try:
            decode_manifest(data, media_type)
        except SampanError as error:
            raise type(error)(f"{answer.what}: {error.message}", hint=error.hint) from None
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), data

    def _document(
        self, url: str, headers: Mapping[str, str], watch: Watch, limit: int, scopes: Sequence[str] = ()
    ) -> tuple[Answer, bytes]:
        """A whole small body; a connection that breaks in it is tried again."""
        for attempt in range(1, self.limits.attempts + 1):
            answer = self.request("GET", url, ok=(200,), watch=watch, headers=headers, scopes=scopes)
            try:
                return answer, answer.read(limit, watch)
            except _PASSING as error:
                answer.close()
                if isinstance(error, Cancelled) or attempt == self.limits.attempts:
                    raise
                self.pause(attempt, error, watch)
        raise AssertionError("unreachable")

    def open_blob(self, digest: str, offset: int, watch: Watch) -> tuple[Answer, int]:
        """Start reading a blob.

        Args:
            digest: Which.
            offset: Byte to start at.
            watch: Bounds it.

        Returns:
            The answer, and the offset it really starts at: 0 from a host that ignores Range.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = self.url(f"blobs/{digest}")
        answer = self.request("GET", url, ok=(200, 206, 416) if offset else (200,), watch=watch, headers=headers)
        if answer.status == 206:
            match = re.match(r"bytes (\d{1,19})-", answer.header("Content-Range"))
            if not match or int(match[1]) != offset:
                answer.close()
                raise Corrupt(
                    f"{answer.what}: asked from byte {offset}, it sends {answer.header('Content-Range')[:60]!r}"
                )
            return answer, offset
        if answer.status == 416:
            answer.close()
            return self.open_blob(digest, 0, watch)
        return answer, 0

    def has_blob(self, digest: str) -> int | None:
        """Size of a blob the repository has (-1 where the host doesn't say), or None."""
        watch = self.watch(self.limits.document)
        try:
            answer = self.request("HEAD", self.url(f"blobs/{digest}"), ok=(200,), watch=watch)
        except NotFound:
            return None
        answer.close()
        return -1 if answer.length is None else answer.length

    def tags(self) -> list[str]:
        """All tags."""
        return [tag for page in self._pages(self.url("tags/list"), _Tags) for tag in page.tags or ()]

    def catalog(self) -> list[str]:
        """All repositories the registry tells of."""
        pages = self._pages(self.url("/_catalog"), _Catalog, None, ("registry:catalog:*",))
        return [name for page in pages for name in page.repositories or ()]

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """Manifests whose subject is ``digest``; by the tag ``sha256-…`` on a host without the referrers API."""
        check_digest(digest)
        query = {"artifactType": artifact_type} if artifact_type else {}
        try:
            pages = list(self._pages(self.url(f"referrers/{digest}", query), Index, {"Accept": MT_OCI_INDEX}))
        except (NotFound, InvalidInput, Unsupported):
            pages = self._tagged_referrers(digest)
        found = [descriptor for page in pages for descriptor in page.manifests]
        # The filter is the host's option (OCI-Filters-Applied), so it is done here in any case.
        return [one for one in found if not artifact_type or one.artifact_type == artifact_type]

    def _tagged_referrers(self, digest: str) -> list[Index]:
        try:
            _, data = self.fetch_manifest(digest.replace(":", "-", 1))
        except NotFound:
            return []
        return [decode_as(data, Index, "referrers")]

    def _pages(
        self, url: str, kind: type[_T], headers: Mapping[str, str] | None = None, scopes: Sequence[str] = ()
    ) -> Iterator[_T]:
        """Decoded pages of a list, along the Link headers (RFC 8288) that stay on this host."""
        watch = self.watch(self.limits.document * 10)
        seen: set[str] = set()
        while url:
            if url in seen or len(seen) >= _PAGES_LIMIT:
                raise Corrupt(f"{self.host.name}: its list has no end: {urlsplit(url).path}")
            seen.add(url)
            answer, data = self._document(url, headers or {}, watch, MANIFEST_LIMIT, scopes)
            yield decode_as(data, kind, answer.what)
            url = self._next_page(answer)

    def _next_page(self, answer: Answer) -> str:
        match = re.search(r'<([^<>]{1,4096})>\s*;[^,]*\brel="?next"?', answer.header("Link")[:8192])
        if not match:
            return ""
        target = str(urljoin(answer.url, match[1]))
        if origin(target) != origin(answer.url):
            raise Corrupt(f"{answer.what}: its next page is on another host")
        return target

    # ------------------------------------------------------------------ changing

    def push_manifest(self, target: str, data: bytes, media_type: str) -> str:
        """Put a manifest under a tag or its digest; the digest the host gives it.

        Raises:
            Corrupt: The host took it for something else.
        """
        watch = self.watch(self.limits.document)
        url, headers = self.url(f"manifests/{target}"), {"Content-Type": media_type}
        answer = self.request(
            "PUT", url, ok=(200, 201, 202), watch=watch, actions="pull,push", headers=headers, body=data
        )
        answer.close()
        said = answer.header("Docker-Content-Digest")
        if said and said != _digest_like(said, data):
            raise Corrupt(f"{answer.what}: stored it as {said[:140]!r}")
        return digest_of(data)

    def delete_manifest(self, target: str) -> None:
        """Delete a manifest by digest, or a tag."""
        self._delete(f"manifests/{target}")

    def delete_blob(self, digest: str) -> None:
        """Delete a blob."""
        self._delete(f"blobs/{digest}")

    def _delete(self, path: str) -> None:
        watch = self.watch(self.limits.document)
        scopes = (scope(self.name, "delete"),)
        self.request("DELETE", self.url(path), ok=(200, 202, 204), watch=watch, scopes=scopes).close()


def _claims(answer: Answer) -> tuple[str, int | None, str]:
    """Digest, size and media type as the host's headers say them; an odd digest counts as none."""
    digest = answer.header("Docker-Content-Digest").strip()
    try:
        check_digest(digest)
    except InvalidInput:
        digest = ""
    return digest, answer.length, answer.header("Content-Type").partition(";")[0].strip().lower()


def _digest_like(digest: str, data: bytes) -> str:
    """The digest of ``data`` by the algorithm of ``digest``."""
    algorithm, _ = check_digest(digest)
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class _Typed(msgspec.Struct, frozen=True):
    media_type: str = msgspec.field(default="", name="mediaType")
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


def _media_type_inside(data: bytes) -> str:
    """A manifest's media type by its own field, or by its shape, for hosts that send none."""
    try:
        shape = msgspec.json.decode(data, type=_Typed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if shape.media_type in MANIFEST_TYPES | INDEX_TYPES:
        return shape.media_type
    return MT_OCI_INDEX if bytes(shape.manifests) else MT_OCI_MANIFEST if bytes(shape.config) else ""

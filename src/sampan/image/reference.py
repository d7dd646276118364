"""Image references: what a person writes, and the full name it stands for.

The grammar and the short forms are those of the distribution project's ``reference`` package, which Docker,
containerd and the kubelet share::

    reference  := name [ ":" tag ] [ "@" digest ]
    name       := [ domain "/" ] component { "/" component }
    domain     := host [ ":" port ]      the first part, if it has a "." or ":" or upper case, or is "localhost"
    component  := [a-z0-9]+ { ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ }
    tag        := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
"""

import re
from dataclasses import dataclass, replace

from sampan.errors import InvalidInput
from sampan.spec.image import check_digest

DEFAULT_DOMAIN = "docker.io"
_OFFICIAL = "library/"
_NAME_LIMIT = 255

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_HOST_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image reference.

    Attributes:
        domain: Registry's host, with its port if any; ``docker.io`` where none was written.
        path: Repository's path on that host, ``library/…`` for Docker's official images.
        tag: Tag, or empty.
        digest: Digest, or empty.
    """

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str, *, default_tag: str = "latest") -> "Reference":
        """Parse what a person wrote.

        Args:
            text: Such as ``nginx``, ``localhost:5000/a/b:1`` or ``quay.io/x@sha256:…``.
            default_tag: Tag of a reference that has neither tag nor digest; empty for none.

        Raises:
            InvalidInput: Names the part that is wrong.
        """
        if not text:
            raise InvalidInput("is empty", field="image")
        if _IDENTIFIER.match(text):
            raise InvalidInput("is an image id, not a name", field="image")
        rest, at, digest = text.partition("@")
        if at:
            check_digest(digest, field=f'image "{_short(text)}": digest')
        # A colon after the last slash parts a tag; before it, a port.
        name, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            name, tag = rest, ""
        elif not _TAG.match(tag):
            raise InvalidInput(f'"{_short(tag)}" is not a tag', field=f'image "{_short(text)}": tag')
        domain, path = _split_domain(name)
        _check_name(domain, path, text)
        if not tag and not digest:
            tag = default_tag
        return cls(domain, path, tag, digest)

    @property
    def repository(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_repository(self) -> str:
        """The repository as people write it: ``nginx`` for ``docker.io/library/nginx``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        # "library/a/b" shortened would read as the repository a/b, and "a.b/c" as one on the host a.b.
        for short in (self.path.removeprefix(_OFFICIAL), self.path):
            if _split_domain(short) == (self.domain, self.path):
                return short
        return self.repository

    @property
    def familiar(self) -> str:
        """The reference as people write it."""
        return self.familiar_repository + self._suffix()

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, which wins, or the tag."""
        return self.digest or self.tag

    def with_tag(self, tag: str) -> "Reference":
        """The same repository by another tag, without a digest.

        Raises:
            InvalidInput: ``tag`` is not one.
        """
        if not _TAG.match(tag):
            raise InvalidInput(f'"{_short(tag)}" is not a tag', field="tag")
        return replace(self, tag=tag, digest="")

    def with_digest(self, digest: str) -> "Reference":
        """The same repository by digest, without a tag.

        Raises:
            InvalidInput: ``digest`` is not one.
        """
        check_digest(digest)
        return replace(self, tag="", digest=digest)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.repository + self._suffix()


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not (set(first) & set(".:") or first == "localhost" or first != first.lower()):
        domain, path = DEFAULT_DOMAIN, name
    elif first == "index.docker.io":
        domain, path = DEFAULT_DOMAIN, rest
    else:
        domain, path = first, rest
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def _check_name(domain: str, path: str, text: str) -> None:
    where = f'image "{_short(text)}"'
    if not _DOMAIN.match(domain):
        raise InvalidInput(f'"{_short(domain)}" is not a registry host', field=f"{where}: domain")
    for component in path.split("/"):
        if not _COMPONENT.match(component):
            hint = "repository names are lower case" if component != component.lower() else ""
            raise InvalidInput(f'"{_short(component)}" is not a name', field=f"{where}: repository", hint=hint)
    if len(path) > _NAME_LIMIT:
        raise InvalidInput(f"{len(path)} characters are more than {_NAME_LIMIT}", field=f"{where}: repository")


def _short(text: str) -> str:
    """What of a hostile text fits in a message."""
    shown = text if len(text) <= 120 else text[:117] + "..."
    return shown.encode("unicode_escape").decode("ascii")

"""One resolver for every command: from an image's name to the hosts, connections and credentials that serve it."""

import os
import threading
from collections.abc import Callable, Sequence

import msgspec

from sampan.errors import SampanError
from sampan.image.reference import Reference
from sampan.registry.auth import Authorizer
from sampan.registry.client import Client
from sampan.registry.credentials import Chain, Credentials, Found, explicit
from sampan.registry.hosts import DEFAULT_DIRECTORIES, Host, hosts_for
from sampan.registry.repository import Repository
from sampan.registry.transport import Limits, Transport

#: Told of a retry: host, seconds until it, why.
RetryNotice = Callable[[str, float, SampanError], None]


class HostExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One host, and what it would be asked with."""

    url: str
    capabilities: tuple[str, ...]
    reason: str
    credentials: str
    credentials_reason: str
    tls: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Which hosts, paths and credentials an image's name leads to."""

    reference: str
    manifest: str
    hosts: tuple[HostExplanation, ...]

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"{self.reference}"]
        for number, host in enumerate(self.hosts, 1):
            lines += [
                f"  {number}. {host.url}",
                f"     why:          {host.reason}",
                f"     for:          {', '.join(host.capabilities)}",
                f"     asks:         {host.url}/{self.manifest}",
                f"     credentials:  {host.credentials} ({host.credentials_reason})",
                f"     security:     {host.tls}",
            ]
        return lines


class Resolver:
    """Knows hosts and credentials, and keeps connections; one for a process, shared by its threads.

    Args:
        hosts_dirs: Roots of ``hosts.toml`` folders, the first wins.
        auth_files: Credential files in place of the default chain.
        limits: How long hosts are waited for.
    """

    def __init__(
        self,
        hosts_dirs: Sequence[str] = DEFAULT_DIRECTORIES,
        auth_files: Sequence[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._directories = tuple(hosts_dirs)
        self._chain = Chain(auth_files)
        self._lock = threading.Lock()
        self._transports: dict[Host, tuple[tuple[int, ...], Transport]] = {}

    def hosts(self, domain: str) -> list[Host]:
        """Hosts for a registry, in order; read anew at each call, so that a changed file is seen at once."""
        return hosts_for(domain, self._directories)

    def credentials(self, reference: Reference, host: Host, given: Credentials | None = None) -> Found:
        """What ``host`` would be opened with for an image."""
        if own := explicit(given, reference.domain, host.name, host.upstream):
            return Found(own, "given by the caller")
        # The registry itself is looked up by the name in the image's name, a mirror by its own.
        domain = reference.domain if host.upstream else host.name
        return self._chain.find(domain, reference.path)

    def transport(self, host: Host) -> Transport:
        """Connections to a host, shared."""
        # A certificate that was renewed makes new connections; requests on old ones end as they will.
        stamp = tuple(_changed(file) for file in (*host.ca, *(name for pair in host.client for name in pair if name)))
        with self._lock:
            known = self._transports.get(host)
            if known is None or known[0] != stamp:
                known = self._transports[host] = (stamp, Transport(host, self.limits))
            return known[1]

    def repository(
        self,
        reference: Reference | str,
        *,
        credentials: Credentials | None = None,
        notice: RetryNotice | None = None,
        stop: threading.Event | None = None,
    ) -> Repository:
        """The repository of an image's name, over all hosts that serve it.

        Args:
            reference: The image.
            credentials: The caller's own, for its registry.
            notice: Told of each retry.
            stop: Gives the operation up when set.
        """
        parsed = Reference.parse(reference) if isinstance(reference, str) else reference
        clients = [self._client(parsed, host, credentials, notice, stop) for host in self.hosts(parsed.domain)]
        return Repository(parsed, clients, stop)

    def registry(self, domain: str, *, credentials: Credentials | None = None) -> Client:
        """The registry itself, for verbs on the whole of it."""
        host = self.hosts(domain)[-1]
        reference = Reference(domain, "")
        found = self.credentials(reference, host, credentials)
        transport = self.transport(host)
        return Client(transport, Authorizer(transport, found), "")

    def _client(
        self,
        reference: Reference,
        host: Host,
        credentials: Credentials | None,
        notice: RetryNotice | None,
        stop: threading.Event | None,
    ) -> Client:
        transport = self.transport(host)
        authorizer = Authorizer(transport, self.credentials(reference, host, credentials))

        def told(delay: float, error: SampanError) -> None:
            if notice:
                notice(host.name, delay, error)

        namespace = "" if host.upstream else reference.domain
        return Client(transport, authorizer, reference.path, namespace=namespace, notice=told, stop=stop)

    def explain(self, reference: str, credentials: Credentials | None = None) -> Explanation:
        """Tell what :meth:`repository` would do, without asking any host."""
        parsed = Reference.parse(reference)
        explained = []
        for host in self.hosts(parsed.domain):
            found = self.credentials(parsed, host, credentials)
            explained.append(
                HostExplanation(
                    url=host.url,
                    capabilities=tuple(sorted(host.capabilities)),
                    reason=host.reason,
                    credentials=found.credentials.describe(),
                    credentials_reason=found.reason,
                    tls=_security(host),
                )
            )
        manifest = f"{parsed.path}/manifests/{parsed.target}"
        return Explanation(reference=str(parsed), manifest=manifest, hosts=tuple(explained))

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            for _, transport in self._transports.values():
                transport.close()
            self._transports.clear()


def _changed(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


def _security(host: Host) -> str:
    if host.scheme == "http":
        return "plain HTTP"
    parts = ["TLS, not verified (skip_verify)" if host.skip_verify else "TLS"]
    parts += [f"CA {file}" for file in host.ca]
    parts += [f"client certificate {certificate}" for certificate, _ in host.client]
    parts += [f"through proxy {host.proxy}"] if host.proxy else []
    return ", ".join(parts)

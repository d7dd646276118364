"""A repository over all hosts that may serve it: each verb goes to them in order until one does it.

A host is passed over for what its ``capabilities`` leave out: a mirror without ``resolve`` is never asked what a tag
means, only for content by digest. When all fail, the error tells what each of them said.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from sampan.errors import SampanError, Unavailable
from sampan.image.reference import Reference
from sampan.registry.client import Client
from sampan.registry.transport import Cancelled
from sampan.spec.image import Descriptor

_T = TypeVar("_T")


class Repository:
    """One repository.

    Args:
        reference: Image whose repository it is.
        clients: One for each host, in order.
        stop: Set when the operation is given up.
    """

    def __init__(self, reference: Reference, clients: Sequence[Client], stop: threading.Event | None = None) -> None:
        self.reference = reference
        self._clients = clients
        self.stop = stop or threading.Event()

    def clients(self, capability: str) -> list[Client]:
        """The hosts to be asked for ``pull``, ``resolve`` or ``push``, in order."""
        return [client for client in self._clients if client.host.can(capability)]

    def first(self, capability: str, what: str, act: Callable[[Client], _T]) -> _T:
        """Do something at the first host that can.

        Raises:
            SampanError: None could; of the last host's kind, with what each said.
        """
        failures: list[SampanError] = []
        for client in self.clients(capability):
            try:
                return act(client)
            except Cancelled:
                raise
            except SampanError as error:
                failures.append(error)
        raise combine(failures, f"{self.reference.repository}: {what}", capability)

    def resolve(self, target: str = "") -> Descriptor:
        """What a tag or digest leads to; by default the reference's own."""
        wanted = target or self.reference.target
        capability = "pull" if ":" in wanted else "resolve"
        return self.first(capability, f"resolve {wanted}", lambda client: client.resolve(wanted))

    def manifest(self, expected: Descriptor) -> bytes:
        """A manifest's bytes, checked."""
        what = f"manifest {expected.digest}"
        return self.first("pull", what, lambda client: client.fetch_manifest(expected.digest, expected)[1])

    def tags(self) -> list[str]:
        """All tags of the repository."""
        return self.first("resolve", "tags", lambda client: client.tags())

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """Manifests that refer to another one."""
        return self.first("resolve", "referrers", lambda client: client.referrers(digest, artifact_type))

    def pusher(self) -> Client:
        """The host that is pushed to: the first one that may be.

        Raises:
            Unavailable: No host takes pushes.
        """
        for client in self.clients("push"):
            return client
        raise Unavailable(f"{self.reference.repository}: no host is configured for push")

    def delete(self, digest: str) -> None:
        """Delete a manifest at the registry itself."""
        self.pusher().delete_manifest(digest)


def combine(failures: Sequence[SampanError], what: str, capability: str) -> SampanError:
    """One error out of what each host said."""
    if not failures:
        return Unavailable(f"{what}: no host is configured for {capability}")
    last = failures[-1]
    said = "; ".join(dict.fromkeys(failure.message for failure in failures))
    kind = type(last)
    try:
        error = kind(f"{what}: {said}", hint=last.hint)
    except TypeError:  # an error of another shape, such as one of a system call
        error = Unavailable(f"{what}: {said}", hint=last.hint)
    return error

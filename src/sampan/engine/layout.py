"""Where an engine keeps what lives only as long as the machine is up.

    <state>/pods/<pod>/                 control.sock of the monitor, its log, the pod's files
    <state>/pods/<pod>/files/           hosts, hostname, resolv.conf, shm: what containers of the pod bind
    <state>/pods/<pod>/<container>/     bundle: config.json, rootfs; exit.json, written by the monitor
    <state>/ns/<pod>/                   pinned namespaces
    <state>/runtime/<handler>/          state of OCI runtimes

Ids are our own hexadecimal ones; nothing from outside becomes part of a path.
"""

import os


class Layout:
    """Paths under the engine's state directory.

    Args:
        state: The directory, ``/run/sampan`` by default.
    """

    __slots__ = ("state",)

    def __init__(self, state: str) -> None:
        self.state = state

    def make(self) -> None:
        """Make the directories that everything else lies in; searchable by all, for pods in user namespaces."""
        os.makedirs(self.state, 0o711, exist_ok=True)
        for name in ("pods", "ns", "runtime"):
            os.makedirs(f"{self.state}/{name}", 0o711, exist_ok=True)

    def pod(self, pod_id: str) -> str:
        """Directory of a pod."""
        return f"{self.state}/pods/{pod_id}"

    def socket(self, pod_id: str) -> str:
        """Control socket of a pod's monitor."""
        return f"{self.state}/pods/{pod_id}/control.sock"

    def files(self, pod_id: str) -> str:
        """Directory of the files that a pod's containers share."""
        return f"{self.state}/pods/{pod_id}/files"

    def bundle(self, pod_id: str, container_id: str) -> str:
        """Bundle of a container."""
        return f"{self.state}/pods/{pod_id}/{container_id}"

    def namespaces(self, pod_id: str) -> str:
        """Directory of a pod's pinned namespaces."""
        return f"{self.state}/ns/{pod_id}"

    def runtime(self, handler: str) -> str:
        """State directory of one runtime handler."""
        return f"{self.state}/runtime/{handler}"

"""The namespaces that a pod's containers share, held by its monitor."""

from __future__ import annotations

import os

from sampan.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.shim.helper import ForkingHandler


class PodNamespaces:
    """Namespaces that are pinned as files and, where PIDs are shared, the pause process that holds theirs.

    Args:
        directory: Where they are pinned.
        kinds: OCI types of those to make.
        options: The other arguments of :func:`sampan.runtime.sandbox.create_sandbox`. A pause process wants a cgroup
            of its own: by that it is found if who makes it is killed.
        handler: What will make the pod's containers.
    """

    __slots__ = ("_options", "directory", "paths", "pause_ended", "pause_pid")

    def __init__(self, directory: str, kinds: list[str], options: dict[str, Any], handler: ForkingHandler) -> None:
        self.directory = directory
        self._options = options
        self.pause_ended = False

        from sampan.runtime.sandbox import create_sandbox, leave  # a stand-alone container has no need of it

        def make() -> tuple[dict[str, Any], list[int]]:
            made = create_sandbox(directory, kinds, enter=True, **options)
            return {"pause_pid": made.pause_pid, "paths": made.paths}, []

        try:
            body = handler.run_and_stay(make, leave)
        except Unavailable:
            # The fork was killed half-way, and could take nothing back.
            self._destroy(0)
            raise
        self.pause_pid: int = body["pause_pid"]
        self.paths: dict[str, str] = body["paths"]

    def describe(self) -> dict[str, Any]:
        """For replies."""
        return {"pause_pid": 0 if self.pause_ended else self.pause_pid, "paths": self.paths}

    def kill_pause(self) -> bool:
        """Kill the pause process, if there is one; whether it is still to be reaped."""
        if not self.pause_pid or self.pause_ended:
            return False
        try:
            os.kill(self.pause_pid, 9)  # our unreaped child: the pid is its
        except ProcessLookupError:
            return False
        return True

    def destroy(self) -> None:
        """End the pause process and let go of the namespaces; they go with the last container in them."""
        self._destroy(0 if self.pause_ended else self.pause_pid)

    def _destroy(self, pause_pid: int) -> None:
        from sampan.runtime.sandbox import destroy_sandbox

        destroy_sandbox(
            self.directory,
            pause_pid=pause_pid,
            pause_cgroup=str(self._options.get("pause_cgroup", "")),
            systemd=self._options.get("systemd") is True,
        )

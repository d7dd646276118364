"""All services of the interface over one engine."""

from typing import Literal

from sampan.cri.commands import Commands, Streams
from sampan.cri.containers import Containers
from sampan.cri.events import Events
from sampan.cri.images import Images
from sampan.cri.metrics import Metrics
from sampan.cri.runtime import Runtime
from sampan.cri.sandboxes import Sandboxes
from sampan.cri.usage import Usage
from sampan.engine.engine import Engine


def services(engine: Engine, streams: Streams, *, unset_seccomp: Literal["default", "unconfined"]) -> list[object]:
    """One object for each group of calls; together they serve every call.

    Args:
        engine: What does the work.
        streams: Gives URLs for exec, attach and port-forward.
        unset_seccomp: What a container that names no seccomp profile gets.
    """
    return [
        Runtime(engine),
        Sandboxes(engine),
        Containers(engine, unset_seccomp=unset_seccomp),
        Commands(engine, streams),
        Images(engine),
        Usage(engine),
        Metrics(engine),
        Events(engine),
    ]

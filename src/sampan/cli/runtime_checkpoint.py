"""`checkpoint` and `restore`."""

from __future__ import annotations

import os

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_options import FLAG, VALUE, Option, Parsed
from sampan.errors import Unsupported

_COMMON = (
    Option("image-path", VALUE, "directory of criu's image files"),
    Option("work-path", VALUE, "directory of criu's work files and logs"),
    Option("tcp-established", FLAG, "allow open TCP connections"),
    Option("ext-unix-sk", FLAG, "allow external unix sockets"),
    Option("shell-job", FLAG, "allow shell jobs"),
    Option("lazy-pages", FLAG, "copy memory when it is touched"),
    Option("file-locks", FLAG, "handle file locks"),
    Option("manage-cgroups-mode", VALUE, "soft, full, strict or ignore"),
    Option("empty-ns", VALUE, "make a namespace, but don't restore what is in it"),
    Option("auto-dedup", FLAG, "drop pages of parent images"),
)
OPTIONS = {
    "checkpoint": (
        *_COMMON,
        Option("parent-path", VALUE, "directory of an earlier pre-dump"),
        Option("leave-running", FLAG, "let the container run on"),
        Option("status-fd", VALUE, "descriptor that criu tells when lazy pages are ready"),
        Option("page-server", VALUE, "ADDRESS:PORT of a page server"),
        Option("pre-dump", FLAG, "dump memory only"),
    ),
    "restore": (
        *_COMMON,
        Option("console-socket", VALUE, "unix socket that gets the master side of the terminal"),
        Option("bundle,b", VALUE, "directory of config.json"),
        Option("detach,d", FLAG, "do not wait for the container's end"),
        Option("pid-file", VALUE, "file to write the process id to"),
        Option("no-subreaper", FLAG, "leave orphans of the container to init"),
        Option("no-pivot", FLAG, "move the root instead of pivoting"),
        Option("lsm-profile", VALUE, "TYPE:NAME of a security profile"),
        Option("lsm-mount-context", VALUE, "security context of mounts"),
    ),
}


def command_checkpoint(context: Context, parsed: Parsed) -> int:
    """Refuse, with the reason."""
    context.handler().state(container_id(parsed))
    raise _refusal("checkpoint")


def command_restore(_: Context, parsed: Parsed) -> int:
    """Refuse, with the reason."""
    container_id(parsed)
    raise _refusal("restore")


def _refusal(what: str) -> Unsupported:
    if not any(os.access(f"{path}/criu", os.X_OK) for path in os.environ.get("PATH", "").split(":") if path):
        return Unsupported(f"{what} needs criu, which is not installed", hint="install criu")
    return Unsupported(f"{what} is not implemented in this version")

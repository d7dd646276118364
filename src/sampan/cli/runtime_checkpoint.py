"""`checkpoint` and `restore`."""

from __future__ import annotations

import os

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_options import FLAG, LIST, VALUE, Option, Parsed
from sampan.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.runtime.checkpoint import Options as CheckpointOptions

_COMMON = (
    Option("image-path", VALUE, "directory of criu's image files"),
    Option("work-path", VALUE, "directory of criu's work files and logs"),
    Option("tcp-established", FLAG, "allow open TCP connections"),
    Option("ext-unix-sk", FLAG, "allow external unix sockets"),
    Option("shell-job", FLAG, "allow shell jobs"),
    Option("lazy-pages", FLAG, "copy memory when it is touched"),
    Option("file-locks", FLAG, "handle file locks"),
    Option("manage-cgroups-mode", VALUE, "soft, full, strict or ignore"),
    Option("empty-ns", LIST, "make a namespace, but don't restore what is in it"),
    Option("auto-dedup", FLAG, "drop pages of parent images"),
)
OPTIONS = {
    "checkpoint": (
        *_COMMON,
        Option("parent-path", VALUE, "directory of an earlier pre-dump"),
        Option("tcp-skip-in-flight", FLAG, "leave out TCP connections that are being made"),
        Option("link-remap", FLAG, "link files back that were unlinked, where possible"),
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


#: What only criu's RPC, or a server beside it, could serve.
_REFUSED = ("lazy-pages", "status-fd", "page-server", "console-socket")


def command_checkpoint(context: Context, parsed: Parsed) -> int:
    """Write a container's state into files; without --leave-running or --pre-dump the container is gone then."""
    name = container_id(parsed)
    handler = context.handler()
    handler.state(name)
    options = _options(context, parsed)
    options.parent_path = parsed.value("parent-path")
    options.tcp_skip_in_flight = parsed.flag("tcp-skip-in-flight")
    options.link_remap = parsed.flag("link-remap")
    options.leave_running = parsed.flag("leave-running")
    options.pre_dump = parsed.flag("pre-dump")
    handler.checkpoint(name, options)
    if not (options.leave_running or options.pre_dump):
        handler.delete(name, force=True)
    return 0


def command_restore(context: Context, parsed: Parsed) -> int:
    """Make a container from files; in the foreground the exit code is its program's."""
    from sampan.cli.runtime_create import write_pid_file
    from sampan.runtime.handler import Stdio
    from sampan.runtime.options import Options

    name = container_id(parsed)
    handler = context.handler()
    restored = _options(context, parsed)
    restored.lsm_profile = parsed.value("lsm-profile")
    restored.lsm_mount_context = parsed.value("lsm-mount-context")
    detach = parsed.flag("detach")
    if not detach and not parsed.flag("no-subreaper"):
        from sampan.linux.process import become_subreaper

        become_subreaper()
    bundle = parsed.value("bundle") or os.getcwd()
    options = Options(systemd_cgroup=context.systemd, no_pivot=parsed.flag("no-pivot"))
    created = handler.restore(name, bundle, Stdio.inherit(), restored, options=options)
    try:
        write_pid_file(parsed.value("pid-file"), created.pid)
        if detach:
            return 0
        from sampan.cli.runtime_foreground import Foreground

        code = Foreground(created).wait()
    except BaseException:
        handler.delete(name, force=True)
        raise
    handler.delete(name, force=True)
    return code


def _options(context: Context, parsed: Parsed) -> CheckpointOptions:
    for name in _REFUSED:
        if parsed.given(name):
            raise Unsupported(f"--{name} is not supported", hint="checkpoint without it")
    from sampan.runtime import checkpoint

    return checkpoint.Options(
        parsed.value("image-path") or "checkpoint",
        work_path=parsed.value("work-path"),
        tcp_established=parsed.flag("tcp-established"),
        ext_unix_sk=parsed.flag("ext-unix-sk"),
        shell_job=parsed.flag("shell-job"),
        file_locks=parsed.flag("file-locks"),
        auto_dedup=parsed.flag("auto-dedup"),
        manage_cgroups=parsed.value("manage-cgroups-mode"),
        empty_ns=tuple(parsed.list("empty-ns")),
        criu=context.criu,
    )

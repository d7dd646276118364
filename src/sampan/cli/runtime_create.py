"""`create`, `start` and `run`."""

from __future__ import annotations

import os

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_answer import keep
from sampan.cli.runtime_options import FLAG, NUMBER, VALUE, Option, Parsed
from sampan.cli.runtime_seal import seal_to_create
from sampan.errors import InvalidInput, SampanError, StageFailed
from sampan.runtime.handler import Stdio
from sampan.runtime.native import read_config
from sampan.runtime.options import Options
from sampan.runtime.state import StateDir
from sampan.spec.runtime_config import validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.runtime.handler import Created
    from sampan.runtime.native import NativeHandler

_CREATE = (
    Option("bundle,b", VALUE, "directory of config.json (default: the current one)"),
    Option("console-socket", VALUE, "unix socket that gets the master side of the terminal"),
    Option("pidfd-socket", VALUE, "unix socket that gets a descriptor of the process (pidfd)"),
    Option("pid-file", VALUE, "file to write the process id to"),
    Option("no-pivot", FLAG, "move the root instead of pivoting: for a root on a ramdisk"),
    Option("no-new-keyring", FLAG, "let the container have the caller's session keyring"),
    Option("preserve-fds", NUMBER, "pass so many further descriptors, from 3 on"),
)
OPTIONS = {
    "create": _CREATE,
    "run": (
        *_CREATE,
        Option("detach,d", FLAG, "do not wait for the container's end"),
        Option("keep", FLAG, "do not delete the container after it ended"),
        Option("no-subreaper", FLAG, "leave orphans of the container to init"),
    ),
    "start": (),
}


def command_create(context: Context, parsed: Parsed) -> int:
    """Create a container, which then waits for `start`."""
    name = container_id(parsed)
    bundle = parsed.value("bundle") or os.getcwd()
    config = _config(bundle)
    _check(config, parsed, detach=True)
    seal_to_create(config)
    _create(context, parsed, name, bundle, config)
    keep(context.handler(), name)
    return 0


def command_start(context: Context, parsed: Parsed) -> int:
    """Let a created container's program run."""
    _start(context, context.handler(), container_id(parsed))
    return 0


def command_run(context: Context, parsed: Parsed) -> int:
    """Create a container, start it, wait for it, delete it; the exit code is its program's."""
    name = container_id(parsed)
    bundle = parsed.value("bundle") or os.getcwd()
    detach = parsed.flag("detach")
    config = _config(bundle)
    _check(config, parsed, detach=detach)
    if not config.get("process"):
        validate(config)
        raise InvalidInput("is required: there is nothing to run", field="process")
    seal_to_create(config)
    handler = context.handler()
    if not detach and not parsed.flag("no-subreaper"):
        from sampan.linux.process import become_subreaper

        become_subreaper()
    created = _create(context, parsed, name, bundle, config)
    try:
        if detach:
            keep(handler, name)
            _start(context, handler, name)
            return 0
        from sampan.cli.runtime_foreground import Foreground

        # Before the start, so that no signal is lost and the terminal has its size from the beginning.
        front = Foreground(created)
        finish = _start(context, handler, name, foreground=True)
        code = front.wait()
        if finish is not None:
            finish()
    except BaseException:
        handler.delete(name, force=True)
        raise
    if not parsed.flag("keep"):
        handler.delete(name, force=True)
    return code


def _start(
    context: Context, handler: NativeHandler, name: str, *, foreground: bool = False
) -> Callable[[], None] | None:
    """Start it; what is returned, if anything, is to be called when it has ended, by who waits for that."""
    if os.environ.get("NOTIFY_SOCKET"):
        from sampan.cli import runtime_notify

        return runtime_notify.start(context, handler, name, foreground=foreground)
    handler.start(name)
    return None


def _config(bundle: str) -> dict[str, Any]:
    config = read_config(f"{bundle}/config.json")
    if not isinstance(config, dict):
        raise InvalidInput("is not a JSON object", field=f"{bundle}/config.json")
    return config


def _check(config: dict[str, Any], parsed: Parsed, *, detach: bool) -> None:
    try:
        check_console(config.get("process"), parsed.value("console-socket"), detach=detach)
    except InvalidInput:
        validate(config)  # whose faults come first, all of them
        raise


def _create(context: Context, parsed: Parsed, name: str, bundle: str, config: dict[str, Any]) -> Created:
    options = process_options(context, parsed)
    listen_fds(config.get("process"), options)
    if os.environ.get("NOTIFY_SOCKET"):
        from sampan.cli import runtime_notify

        runtime_notify.offer(config, options, StateDir(os.path.abspath(context.root), name))
    created = context.handler().create(name, bundle, Stdio.inherit(), config=config, options=options)
    for warning in created.warnings:
        context.report("warning", warning)
    try:
        send_pidfd(parsed.value("pidfd-socket"), created.pid, "standard")
        write_pid_file(parsed.value("pid-file"), created.pid)
    except SampanError:
        context.handler().delete(name, force=True)
        raise
    return created


def process_options(context: Context, parsed: Parsed) -> Options:
    """The options that `create`, `run` and `exec` share."""
    from sampan.cli.runtime import seccomp_cache

    return Options(
        systemd_cgroup=context.systemd,
        console_socket=parsed.value("console-socket"),
        preserve_fds=parsed.number("preserve-fds"),
        no_pivot=parsed.flag("no-pivot"),
        new_keyring=not parsed.flag("no-new-keyring"),
        seccomp_cache=seccomp_cache(context.root),
        ignore_paused=parsed.flag("ignore-paused"),
        expendable=True,
    )


def check_console(process: object, console_socket: str, *, detach: bool) -> None:
    """Refuse a terminal that nobody would hold, and a console socket that nobody would use.

    A terminal that is to be joined with ours gets its size.

    Raises:
        InvalidInput: So it is.
    """
    terminal = isinstance(process, dict) and bool(process.get("terminal"))
    if detach and terminal and not console_socket:
        raise InvalidInput("a detached process with a terminal needs a console socket", field="--console-socket")
    if terminal and not detach and isinstance(process, dict) and not process.get("consoleSize"):
        from sampan.cli.runtime_foreground import console_size

        if found := console_size():
            process["consoleSize"] = found
    if console_socket and not (detach and terminal):
        raise InvalidInput("is for a detached process with a terminal", field="--console-socket")


def listen_fds(process: object, options: Options) -> None:
    """Pass systemd's sockets on (sd_listen_fds(3)), if they are ours: they come first, the program learns how many."""
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) == 0 or os.environ.get("LISTEN_PID") != str(os.getpid()):
        return
    if not isinstance(process, dict):
        return
    options.preserve_fds += int(count)
    env = process.get("env")
    process["env"] = [*(env if isinstance(env, list) else []), f"LISTEN_FDS={count}", "LISTEN_PID=1"]


def send_pidfd(path: str, pid: int, name: str) -> None:
    """Send a pidfd of our child to the unix socket at ``path``, if there is one; ``name`` is runc's for its kind."""
    if not path:
        return
    from sampan.runtime import console

    try:
        console.send_pidfd(path, pid, name)
    except OSError as error:
        raise StageFailed("send pidfd", error, path=path) from error


def write_pid_file(path: str, pid: int) -> None:
    """Write a process id so that a reader sees all of it or no file."""
    if not path:
        return
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise StageFailed("write pid file", error, path=path) from error

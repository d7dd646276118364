"""`sampan-runtime`: an OCI runtime with runc's command line.

Its start is on the path of every container that another engine makes, so this module imports little, each command is
imported when it is asked for, and the process ends by _exit.
"""

from __future__ import annotations

import os
import sys

from sampan.cli.runtime_options import FLAG, VALUE, Option, Parsed, parse
from sampan.cli.runtime_output import write_all, write_text
from sampan.errors import InvalidInput, SampanError, StageFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.runtime.native import NativeHandler

NAME = "sampan-runtime"

#: Command -> (module, function, operands, what it does).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "checkpoint": ("checkpoint", "<container-id>", "checkpoint a running container (needs criu)"),
    "create": ("create", "<container-id>", "create a container"),
    "delete": ("state", "<container-id>", "delete any resources held by a container"),
    "events": ("resources", "<container-id>", "display out-of-memory notifications and statistics"),
    "exec": ("exec", "<container-id> <command> [arguments...]", "execute a process inside a container"),
    "features": ("spec", "", "show what this runtime can do, as JSON"),
    "kill": ("state", "<container-id> [signal]", "send a signal (default: SIGTERM) to a container's init"),
    "list": ("state", "", "list the containers under the root"),
    "pause": ("state", "<container-id>", "suspend all processes of a container"),
    "ps": ("state", "<container-id> [ps options]", "display the processes of a container"),
    "restore": ("checkpoint", "<container-id>", "restore a container from a checkpoint (needs criu)"),
    "resume": ("state", "<container-id>", "resume all processes of a paused container"),
    "run": ("create", "<container-id>", "create and run a container"),
    "spec": ("spec", "", "write a new config.json"),
    "start": ("create", "<container-id>", "start the program of a created container"),
    "state": ("state", "<container-id>", "output the state of a container"),
    "update": ("resources", "<container-id>", "change the limits of a container"),
}
#: Exit code, as runc has it.
_NO_SUCH_COMMAND = 3

_GLOBAL = (
    Option("debug", FLAG, "tell each step in the log"),
    Option("log", VALUE, "file to append the log to (default: standard error)"),
    Option("log-format", VALUE, "text (default) or json"),
    Option("root", VALUE, "directory of the containers' state, best on a tmpfs"),
    Option("criu", VALUE, "path of criu (default: found in PATH)"),
    Option("systemd-cgroup", FLAG, "let systemd make cgroups; cgroupsPath is then slice:prefix:name"),
    Option("rootless", VALUE, "true, false or auto; accepted for runc's sake, it is found out"),
    Option("trace", FLAG, "print each step and its time to standard error"),
    Option("trace-file", VALUE, "write the steps to this file, in the form of chrome://tracing"),
    Option("version,v", FLAG, "print the version"),
)


class Context:
    """What the global options say.

    Args:
        parsed: The global options.
    """

    __slots__ = ("criu", "debug", "log", "log_json", "root", "systemd", "trace", "trace_file")

    def __init__(self, parsed: Parsed) -> None:
        self.debug = parsed.flag("debug")
        self.log = parsed.value("log")
        if self.log:
            os.close(_open_log(self.log))  # an engine that looks for errors there would find none
        form = parsed.value("log-format") or "text"
        if form not in ("text", "json"):
            raise InvalidInput(f"{form!r} is neither text nor json", field="--log-format")
        self.log_json = form == "json"
        self.root = parsed.value("root") or default_root()
        self.systemd = parsed.flag("systemd-cgroup")
        self.criu = parsed.value("criu")
        self.trace = parsed.flag("trace")
        self.trace_file = parsed.value("trace-file")
        if parsed.value("rootless") not in ("", "true", "false", "auto"):
            raise InvalidInput("is none of true, false, auto", field="--rootless")

    @property
    def traces(self) -> bool:
        """Whether the steps are recorded."""
        return bool(self.debug or self.trace or self.trace_file)

    def handler(self) -> NativeHandler:
        """The runtime on this root."""
        from sampan.runtime.native import NativeHandler

        cache = seccomp_cache(self.root)
        return NativeHandler(self.root, systemd_cgroup=self.systemd, seccomp_cache=cache, warn=self._warn)

    def _warn(self, message: str) -> None:
        self.report("warning", message)

    def report(self, level: str, message: str) -> None:
        """Write a line to the log file; an error is shown on standard error as well."""
        if level == "debug" and not self.debug:
            return
        line = _log_line(level, message, as_json=self.log_json)
        if self.log:
            try:
                fd = _open_log(self.log)
                try:
                    os.write(fd, line)
                finally:
                    os.close(fd)
            except (OSError, StageFailed) as error:
                line += f"{NAME}: {error}\n".encode("utf-8", "surrogateescape")
                os.write(2, line)
                return
            if level == "error":
                os.write(2, f"{message}\n".encode("utf-8", "surrogateescape"))
        else:
            os.write(2, line)


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StageFailed("open log", error, path=path) from error


def default_root() -> str:
    """Where state lies without ``--root``."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{runtime}/{NAME}" if os.geteuid() != 0 and runtime else f"/run/{NAME}"


def seccomp_cache(root: str) -> str:
    """Where compiled filters are kept: beside the state, and like it gone with the next boot."""
    return f"{root.rstrip('/')}.seccomp"


def _log_line(level: str, message: str, *, as_json: bool) -> bytes:
    import time

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if as_json:
        from sampan.wire import jsontext

        return (jsontext.dumps({"level": level, "msg": message, "time": now}) + "\n").encode()
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'time="{now}" level={level} msg="{quoted}"\n'.encode("utf-8", "surrogateescape")


def main(last: Callable[[], None] | None = None) -> None:
    """Run the command line and end the process.

    Args:
        last: Called when all is done.
    """
    try:
        code = run(sys.argv[1:])
    except BrokenPipeError:
        code = 1
    except KeyboardInterrupt:
        code = 130
    if last is not None:
        last()
    # Nothing is left to be flushed or freed: taking the interpreter down would cost milliseconds.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code."""
    context = None
    try:
        parsed = parse(_GLOBAL, arguments, interspersed=False)
        if parsed.flag("version"):
            return _version()
        if parsed.flag("help") or not parsed.operands or parsed.operands[0] in ("help", "h"):
            return _help(parsed.operands[1:])
        context = Context(parsed)
        name, *rest = parsed.operands
        if name not in COMMANDS:
            return _failed(context, f"no command {name!r} ({NAME} --help lists them)", _NO_SUCH_COMMAND)
        return _dispatch(context, name, rest)
    except SampanError as error:
        return _failed(context, str(error), 1)


def _dispatch(context: Context, name: str, rest: list[str]) -> int:
    command, options = _load(name)
    parsed = parse(options, rest, interspersed=name != "exec" and name != "ps")
    if parsed.flag("help"):
        return _help([name])
    _check_operands(name, parsed)
    if context.traces:
        from sampan.runtime import trace

        trace.start()
    try:
        return command(context, parsed)
    except SampanError as error:
        return _failed(context, _worded(name, error), 255 if name == "exec" else 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        from sampan.runtime import trace

        failed = StageFailed(trace.stage or name, error)
        return _failed(context, _worded(name, failed), 255 if name == "exec" else 1)
    finally:
        if context.traces:
            _write_trace(context)


def _check_operands(name: str, parsed: Parsed) -> None:
    if COMMANDS[name][1]:
        container_id(parsed, exactly=False)
    elif parsed.operands:
        raise InvalidInput(f"{name} takes no arguments, not {parsed.operands[0]!r}", hint="see --help")


def _worded(name: str, error: SampanError) -> str:
    """The message; where callers of runc look for its words, with them."""
    from sampan.errors import WrongState

    if name == "kill" and isinstance(error, WrongState):
        return f"container not running: {error}"
    if name == "exec":
        return f"exec failed: {error}"
    return str(error)


def _failed(context: Context | None, message: str, code: int) -> int:
    if context is None:
        os.write(2, f"{NAME}: {message}\n".encode("utf-8", "surrogateescape"))
    else:
        context.report("error", message)
    return code


def _load(name: str) -> tuple[Callable[[Context, Parsed], int], tuple[Option, ...]]:
    # __import__ and not importlib, which is a package of its own to load.
    module = __import__(f"sampan.cli.runtime_{COMMANDS[name][0]}", fromlist=["OPTIONS"])
    return getattr(module, f"command_{name}"), module.OPTIONS[name]


def _write_trace(context: Context) -> None:
    from sampan.runtime import trace

    if not (context.trace or context.trace_file):
        for who, step, path, _, length in trace.spans():
            context.report("debug", f"{who}: {step}{f' at {path}' if path else ''}: {length / 1e6:.3f} ms")
    elif context.trace_file:
        fd = os.open(context.trace_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, trace.chrome().encode())
        finally:
            os.close(fd)
    else:
        write_all(2, trace.text().encode("utf-8", "surrogateescape"))


def container_id(parsed: Parsed, *, exactly: bool = True) -> str:
    """The command's first operand.

    Raises:
        InvalidInput: It is missing, or there are more with ``exactly``.
    """
    if not parsed.operands or (exactly and len(parsed.operands) > 1):
        raise InvalidInput(f"needs {'exactly one' if exactly else 'a'} container id", hint="see --help")
    return parsed.operands[0]


def _version() -> int:
    from sampan import __version__
    from sampan.cli.runtime_spec import OCI_VERSION, libseccomp_version

    lines = [f"{NAME} version {__version__}", f"spec: {OCI_VERSION}", f"python: {sys.version.split()[0]}"]
    if found := libseccomp_version():
        lines.append(f"libseccomp: {found}")
    write_text("\n".join(lines) + "\n")
    return 0


def _help(operands: list[str]) -> int:
    if operands and operands[0] in COMMANDS:
        name = operands[0]
        _, usage, text = COMMANDS[name]
        options: tuple[Option, ...] = _load(name)[1]
        lines = [f"{NAME} {name}: {text}", "", f"usage: {NAME} [global options] {name} [options] {usage}".rstrip()]
    else:
        options = _GLOBAL
        lines = [
            f"{NAME}: an OCI runtime with runc's command line",
            "",
            f"usage: {NAME} [global options] command [options] [arguments...]",
            "",
            "commands:",
            *(f"  {name:<12}{text}" for name, (_, _, text) in COMMANDS.items()),
        ]
    if options:
        lines += ["", "options:"]
    for option in options:
        shown = ", ".join(f"{'--' if len(name) > 1 else '-'}{name}" for name in option.names)
        lines.append(f"  {shown + ('' if option.kind == FLAG else ' VALUE'):<28}{option.text}")
    write_text("\n".join(lines) + "\n")
    return 0

"""`state`, `list`, `ps`, `kill`, `delete`, `pause`, `resume`."""

from __future__ import annotations

import os

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_options import FLAG, VALUE, Option, Parsed
from sampan.cli.runtime_output import indented, table, write_text
from sampan.errors import InvalidInput, NotFound, SampanError, StageFailed, WrongState
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPTIONS: dict[str, tuple[Option, ...]] = {
    "state": (),
    "list": (
        Option("format,f", VALUE, "table (default) or json"),
        Option("quiet,q", FLAG, "print ids only"),
    ),
    "ps": (Option("format,f", VALUE, "table (default) or json"),),
    "kill": (Option("all,a", FLAG, "signal all processes of the container"),),
    "delete": (Option("force,f", FLAG, "kill the container if it runs; no error if it is not there"),),
    "pause": (),
    "resume": (),
}


def command_state(context: Context, parsed: Parsed) -> int:
    """Print the state document."""
    write_text(indented(context.handler().state(container_id(parsed))) + "\n")
    return 0


def command_list(context: Context, parsed: Parsed) -> int:
    """Print all containers of the root."""
    states = context.handler().list()
    for state in states:
        state["owner"] = _owner(f"{context.root}/{state['id']}")
    if parsed.flag("quiet"):
        write_text("".join(f"{state['id']}\n" for state in states))
    elif _format(parsed) == "json":
        write_text(jsontext.dumps(states or None) + "\n")
    else:
        rows = [["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]]
        rows += [[str(s[k]) for k in ("id", "pid", "status", "bundle", "created", "owner")] for s in states]
        write_text(table(rows))
    return 0


def _format(parsed: Parsed) -> str:
    form = parsed.value("format", "table")
    if form not in ("table", "json"):
        raise InvalidInput(f"{form!r} is neither table nor json", field="--format")
    return form


def _owner(path: str) -> str:
    import pwd

    try:
        uid = os.stat(path).st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
    except OSError:
        return ""


def command_kill(context: Context, parsed: Parsed) -> int:
    """Signal a container's init, or all of it."""
    container_id(parsed, exactly=False)
    name, *rest = parsed.operands
    if len(rest) > 1:
        raise InvalidInput("takes a container id and a signal", hint="see --help")
    context.handler().kill(name, signal_number("".join(rest) or "TERM"), all=parsed.flag("all"))
    return 0


def signal_number(text: str) -> int:
    """A signal by number or by name, with or without SIG, in any case; RTMIN+1 as well."""
    import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations

    if text.isdigit():
        number = int(text)
        if not 0 <= number <= 64:
            raise InvalidInput(f"{text} is no signal")
        return number
    name, sign, offset = text.upper().removeprefix("SIG").replace("-", "+-").partition("+")
    found = getattr(_signal, f"SIG{name}", None) if name.isalnum() else None
    if not isinstance(found, int) or (sign and not offset.lstrip("-").isdigit()):
        raise InvalidInput(f"{text!r} is no signal")
    return found + (int(offset) if sign else 0)


def command_delete(context: Context, parsed: Parsed) -> int:
    """Remove a container."""
    context.handler().delete(container_id(parsed), force=parsed.flag("force"))
    return 0


def command_pause(context: Context, parsed: Parsed) -> int:
    """Freeze a container."""
    handler, name = context.handler(), container_id(parsed)
    status = handler.state(name)["status"]
    if status not in ("created", "running"):
        raise WrongState(f"container not running or created: {status}")
    handler.pause(name)
    return 0


def command_resume(context: Context, parsed: Parsed) -> int:
    """Let a container go on."""
    context.handler().resume(container_id(parsed))
    return 0


def command_ps(context: Context, parsed: Parsed) -> int:
    """Print a container's processes."""
    handler, name = context.handler(), container_id(parsed, exactly=False)
    pids = handler.pids(name)
    if _format(parsed) == "json":
        write_text(jsontext.dumps(pids) + "\n")
        return 0
    lines = _run_ps(parsed.operands[1:] or ["-ef"]).splitlines()
    header = lines[0].split() if lines else []
    if "PID" not in header:
        raise InvalidInput("the output of ps has no PID column", hint="choose other ps options")
    column = header.index("PID")
    wanted = {str(pid) for pid in pids}
    chosen = [line for line in lines[1:] if len(words := line.split()) > column and words[column] in wanted]
    write_text("\n".join([lines[0], *chosen]) + "\n")
    return 0


def _run_ps(arguments: list[str]) -> str:
    readable, writable = os.pipe()
    try:
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, writable, 1)]
        pid = os.posix_spawnp("ps", ["ps", *arguments], os.environ, file_actions=actions)
    except FileNotFoundError:
        raise NotFound("ps is not installed", hint="use --format json") from None
    except OSError as error:
        raise StageFailed("run ps", error) from error
    finally:
        os.close(writable)
    with open(readable, encoding="utf-8", errors="surrogateescape") as file:
        output = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise SampanError(f"ps {' '.join(arguments)}: exit status {code}")
    return output

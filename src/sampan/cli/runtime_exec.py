"""`exec`: one more process in a container."""

from __future__ import annotations

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_create import check_console, listen_fds, process_options, send_pidfd, write_pid_file
from sampan.cli.runtime_options import FLAG, LIST, NUMBER, NUMBERS, VALUE, Option, Parsed
from sampan.cli.runtime_seal import seal_to_exec
from sampan.errors import InvalidInput, NotFound, SampanError
from sampan.runtime.execute import confined
from sampan.runtime.handler import Stdio
from sampan.runtime.native import read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPTIONS = {
    "exec": (
        Option("console-socket", VALUE, "unix socket that gets the master side of the terminal"),
        Option("cwd", VALUE, "working directory in the container"),
        Option("env,e", LIST, "set an environment variable"),
        Option("tty,t", FLAG, "allocate a terminal"),
        Option("user,u", VALUE, "user: <uid>[:<gid>]"),
        Option("additional-gids,g", NUMBERS, "further group ids"),
        Option("process,p", VALUE, "file of the process, an OCI process object"),
        Option("detach,d", FLAG, "do not wait for the process"),
        Option("pidfd-socket", VALUE, "unix socket that gets a descriptor of the process (pidfd)"),
        Option("pid-file", VALUE, "file to write the process id to"),
        Option("process-label", VALUE, "SELinux label of the process"),
        Option("apparmor", VALUE, "AppArmor profile of the process"),
        Option("no-new-privs", FLAG, "the process can gain no privileges"),
        Option("cap,c", LIST, "add a capability"),
        Option("preserve-fds", NUMBER, "pass so many further descriptors, from 3 on"),
        Option("cgroup", LIST, "existing cgroup below the container's to run in: [<controller>:]<path>"),
        Option("ignore-paused", FLAG, "allow exec in a paused container"),
    )
}


def command_exec(context: Context, parsed: Parsed) -> int:
    """Run a process; the exit code is its own."""
    name = container_id(parsed, exactly=False)
    handler = context.handler()
    config = handler.config(name)
    # Here too, since labels decide on the seal.
    process = confined(_process(config, parsed), config)
    seal_to_exec(config, process)
    detach = parsed.flag("detach")
    check_console(process, parsed.value("console-socket"), detach=detach)
    options = process_options(context, parsed)
    listen_fds(process, options)
    options.cgroups = cgroups(parsed.list("cgroup"))
    if not detach:
        from sampan.linux.process import become_subreaper

        become_subreaper()
    created = handler.exec(name, process, Stdio.inherit(), options=options)
    for warning in created.warnings:
        context.report("warning", warning)
    try:
        send_pidfd(parsed.value("pidfd-socket"), created.pid, "setns")
        write_pid_file(parsed.value("pid-file"), created.pid)
    except SampanError:
        import os

        os.kill(created.pid, 9)
        raise
    if detach:
        return 0
    from sampan.cli.runtime_foreground import Foreground

    return Foreground(created).wait()


def _process(config: dict[str, Any], parsed: Parsed) -> dict[str, Any]:
    """The process object: from a file, or the container's own with changes."""
    if parsed.value("process"):
        try:
            document = read_config(parsed.value("process"))
        except NotFound:
            raise NotFound(f"--process: {parsed.value('process')} does not exist") from None
        if not isinstance(document, dict):
            raise InvalidInput("is not a JSON object", field=parsed.value("process"))
        return document
    arguments = parsed.operands[1:]
    if not arguments:
        raise InvalidInput("no command is given", hint="see --help")
    process: dict[str, Any] = dict(config.get("process") or {})
    process["args"] = arguments
    process["terminal"] = parsed.flag("tty")
    process["env"] = [*(process.get("env") or []), *parsed.list("env")]
    for option, key in (("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if parsed.given(option):
            process[key] = parsed.value(option)
    if parsed.flag("no-new-privs"):
        process["noNewPrivileges"] = True
    if parsed.list("cap"):
        process["capabilities"] = _capabilities(process.get("capabilities") or {}, parsed.list("cap"))
    process["user"] = _user(process.get("user") or {}, parsed)
    return process


def _capabilities(sets: dict[str, list[str]], added: list[str]) -> dict[str, list[str]]:
    """Add to the sets that make a capability usable; to the ambient one only what is inheritable as well."""
    names = [name if name.startswith("CAP_") else f"CAP_{name}" for name in map(str.upper, added)]
    result = {key: list(value) for key, value in sets.items()}
    for key in ("bounding", "effective", "permitted"):
        result[key] = list(dict.fromkeys([*result.get(key, []), *names]))
    inheritable = set(result.get("inheritable", []))
    if ambient := [name for name in names if name in inheritable]:
        result["ambient"] = list(dict.fromkeys([*result.get("ambient", []), *ambient]))
    return result


def _user(user: dict[str, Any], parsed: Parsed) -> dict[str, Any]:
    result = dict(user)
    if parsed.given("user"):
        uid, colon, gid = parsed.value("user").partition(":")
        result["uid"] = _id(uid, "user")
        if colon:
            result["gid"] = _id(gid, "user")
    if parsed.list("additional-gids"):
        added = [_id(text, "additional-gids") for text in parsed.list("additional-gids")]
        result["additionalGids"] = [*(result.get("additionalGids") or []), *added]
    return result


def _id(text: str, option: str) -> int:
    if not text.isdecimal():
        raise InvalidInput(f"{text!r} is not a number", field=f"--{option}")
    number = int(text)  # in decimal: 010 is ten, as runc has it
    # 2^32-1 means "no change" to the system calls: what is asked for would silently not happen (CVE-2024-40635).
    if not 0 <= number < 0xFFFFFFFF:
        raise InvalidInput(f"{text} is no user or group id", field=f"--{option}")
    return number


def cgroups(chosen: list[str]) -> dict[str, str]:
    """What ``--cgroup`` means, which may be given for several controllers: controller -> path below the container's."""
    found: dict[str, str] = {}
    for text in chosen:
        names, colon, path = text.rpartition(":")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidInput(f"{path!r} leads out of the container's group", field="--cgroup")
        if ":" in names or (not colon and len(chosen) > 1):
            raise InvalidInput(f"{text!r} must be <controller>:<path>", field="--cgroup")
        for name in names.split(","):
            if name in found or (colon and not name):
                raise InvalidInput(f"{text!r}: each controller once", field="--cgroup")
            found[name] = "/".join(parts)
    return found

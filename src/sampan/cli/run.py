"""`sampan run`: a container from an image, or over any directory, with no daemon."""

import errno
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
from typing import Any

import click
import msgspec

from sampan.cli import flags, terminal
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.engine.engine import Engine
from sampan.engine.model import (
    ContainerRecord,
    ContainerSpec,
    Device,
    Metadata,
    Mount,
    Namespaces,
    PodRecord,
    PodSpec,
    Resources,
    Security,
    SecurityProfile,
)
from sampan.errors import InvalidInput, NotFound, ProgramFailed, SampanError

#: Exit codes of docker run: ours, "found but not executable", "not found".
FAILED, NOT_EXECUTABLE, NO_PROGRAM = 125, 126, 127

#: As docker has it; a folder of the logs has this name.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")

#: Label of containers that a person made with `run`, holding the ports as typed.
RUN_LABEL = "sampan/run"


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--rootfs", is_flag=True, help="IMAGE is a directory: run over a throw-away overlay of it.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Print its id and leave it running.")
@click.option("--rm", "remove", is_flag=True, help="Remove it when it ends.")
@click.option("--name", default="", help="A name of its own.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable.")
@click.option("--env-file", multiple=True, metavar="FILE", help="Set those of a file.")
@click.option("-v", "--volume", multiple=True, metavar="SRC:DST[:OPTS]", help="Bind a path of the machine.")
@click.option("--tmpfs", multiple=True, metavar="DST[:OPTS]", help="Mount a tmpfs.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or number.")
@click.option("--entrypoint", default=None, help="In place of the image's.")
@click.option("--hostname", default="", help="Host name.")
@click.option("-m", "--memory", default="", metavar="SIZE", help="Memory limit, such as 64m.")
@click.option("--memory-swap", default="", metavar="SIZE", help="Limit of memory and swap together; -1: none.")
@click.option("--cpus", type=float, default=None, help="Processors, such as 0.5.")
@click.option("--cpu-shares", type=int, default=None, help="Relative weight.")
@click.option("--cpuset-cpus", default="", metavar="LIST", help="Processors to run on, such as 0-1.")
@click.option("--pids-limit", type=int, default=None, help="Most processes and threads.")
@click.option(
    "--network", "--net", "network", multiple=True, help="bridge, none, host, or a network's name; again for more."
)
@click.option("--pid", default="", metavar="host", help="Use the machine's processes.")
@click.option("--ipc", default="", metavar="host", help="Use the machine's IPC.")
@click.option("-p", "--publish", multiple=True, metavar="[IP:][HOST:]PORT", help="Lead a port of the machine to it.")
@click.option("--privileged", is_flag=True, help="Withhold nothing.")
@click.option("--cap-add", multiple=True, metavar="CAP", help="Grant a capability.")
@click.option("--cap-drop", multiple=True, metavar="CAP", help="Withhold a capability.")
@click.option(
    "--security-opt",
    multiple=True,
    metavar="OPT",
    help="no-new-privileges, seccomp=FILE|unconfined, apparmor=NAME|unconfined.",
)
@click.option("--device", multiple=True, metavar="SRC[:DST[:rwm]]", help="Give it a device.")
@click.option("--read-only", is_flag=True, help="Make its root file system read-only.")
@click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Label it.")
@click.option("--stop-signal", default="", help="What `stop` sends.")
@click.option("--runtime", default="", metavar="HANDLER", help="Runtime handler of the configuration.")
@click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing", help="When to pull.")
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(options: Globals, /, image: str, command: tuple[str, ...], **given: Any) -> int:
    """Run a command in a new container.

    With --rootfs, IMAGE is a directory, the machine's own / included; nothing is written to it.
    """
    if given["tty"] and given["interactive"] and not given["detach"] and not os.isatty(0):
        raise click.UsageError("standard input is no terminal: leave -t out")
    try:
        with open_engine(options) as engine:
            return _run(options, engine, image, command, given)
    except ProgramFailed as error:
        click.echo(f"sampan: {error}", err=True)
        return NO_PROGRAM if error.errno == errno.ENOENT else NOT_EXECUTABLE
    except SampanError as error:
        click.echo(f"sampan: {error}", err=True)
        return FAILED


def _run(options: Globals, engine: Engine, image: str, command: tuple[str, ...], given: dict[str, Any]) -> int:
    given["name"] = given["name"] or fresh_name()
    if not _NAME.fullmatch(given["name"]):
        raise InvalidInput(
            f'"{given["name"]}" is no name', field="--name", hint="letters, digits, and _ . - after the first"
        )
    given["log_directory"] = f"{engine.config.log_root}/{engine.namespace}/{given['name']}"
    command = command[1:] if command[:1] == ("--",) else command
    spec = container_spec(image, command, given)
    if not given["rootfs"]:
        _ensure_image(engine, image, given["pull"])
    pod = engine.pods.run(pod_spec(spec.metadata.name, engine.namespace, given), exclusive=True)
    container = None
    alone = False
    try:
        container = engine.containers.create(pod.id, spec)
        if given["detach"]:
            engine.containers.start(container.id)
            click.echo(container.id)
        else:
            status = foreground(engine, container, interactive=given["interactive"], start=True)
            if status is not None:
                return status
        alone = True
        if given["remove"]:
            _remove_later(options, container.id)
        return 0
    finally:
        # A container that never ran is of no use to anyone; one that did stays for `logs`, unless --rm.
        if not alone and (given["remove"] or not _ran(engine, container)):
            remove_pod(engine, pod)


def _ran(engine: Engine, container: ContainerRecord | None) -> bool:
    return container is not None and engine.containers.get(container.id).started_at > 0


def _ensure_image(engine: Engine, image: str, when: str) -> None:
    if when != "always":
        try:
            engine.images.get(image)
            return
        except NotFound:
            if when == "never":
                raise
    from sampan.cli.progress import pull_with_progress

    pull_with_progress(engine, image)


def remove_pod(engine: Engine, pod: PodRecord) -> None:
    """Remove a pod that `run` made, its log with it."""
    engine.pods.remove(pod.id)
    engine.tidy()
    if RUN_LABEL in pod.spec.labels:
        shutil.rmtree(pod.spec.log_directory, ignore_errors=True)


def pod_spec(name: str, namespace: str, given: dict[str, Any]) -> PodSpec:
    """The pod of one container that `run` makes."""
    asked = given["network"] or ("bridge",)
    if len(asked) > 1 and ("host" in asked or "none" in asked):
        raise InvalidInput("host and none stand alone", field="network")
    mode = "node" if asked == ("host",) else "pod"
    return PodSpec(
        metadata=Metadata(name=name, namespace=namespace),
        hostname=given["hostname"],
        log_directory=given["log_directory"],
        ports=tuple(port for text in given["publish"] for port in flags.ports(text)),
        labels={RUN_LABEL: ",".join(given["publish"])},
        namespaces=Namespaces(
            network=mode,  # type: ignore[arg-type]
            ipc="node" if given["ipc"] == "host" else "pod",
        ),
        network=",".join("" if name in ("bridge", "host") else name for name in asked),
        handler=given["runtime"],
    )


def container_spec(image: str, command: tuple[str, ...], given: dict[str, Any]) -> ContainerSpec:
    """What `run`'s flags ask for.

    Raises:
        InvalidInput: A flag's value is wrong.
    """
    entrypoint = shlex.split(given["entrypoint"] or "")
    words = (*entrypoint, *command)
    replaced = given["entrypoint"] is not None or given["rootfs"]  # by an empty one too, as docker has it
    if given["entrypoint"] is not None and not words:
        raise InvalidInput("there is none", field="command", hint="name a command, since the image's is not used")
    return ContainerSpec(
        metadata=Metadata(name=given["name"]),
        image="" if given["rootfs"] else image,
        rootfs=os.path.abspath(image) if given["rootfs"] else "",
        command=words if replaced else (),
        args=() if replaced else words,
        working_dir=given["workdir"],
        envs=flags.environment(given["env"], given["env_file"]),
        mounts=(*(flags.volume(text) for text in given["volume"]), *(_tmpfs(text) for text in given["tmpfs"])),
        devices=tuple(_device(text) for text in given["device"]),
        labels=dict(_label(text) for text in given["label"]),
        log_path="0.log",
        stdin=given["interactive"],
        stdin_once=given["interactive"] and not given["detach"],
        tty=given["tty"],
        resources=_resources(given),
        security=_security(given),
        namespaces=Namespaces(pid="node" if given["pid"] == "host" else "container"),
        stop_signal=given["stop_signal"],
    )


def _resources(given: dict[str, Any]) -> Resources:
    period = 100_000 if given["cpus"] else None
    swap = given["memory_swap"]
    return Resources(
        cpu_period=period,
        cpu_quota=int(given["cpus"] * 100_000) if given["cpus"] else None,
        cpu_shares=given["cpu_shares"],
        cpuset_cpus=given["cpuset_cpus"],
        memory_limit=flags.size(given["memory"], "--memory") if given["memory"] else None,
        memory_swap_limit=(-1 if swap == "-1" else flags.size(swap, "--memory-swap")) if swap else None,
        pids_limit=given["pids_limit"],
    )


def _security(given: dict[str, Any]) -> Security:
    security = Security(
        privileged=given["privileged"],
        username=given["user"],
        readonly_rootfs=given["read_only"],
        add_capabilities=given["cap_add"],
        drop_capabilities=given["cap_drop"],
    )
    for text in given["security_opt"]:
        name, _, value = text.partition("=")
        if name == "no-new-privileges" and value in ("", "true"):
            security = msgspec.structs.replace(security, no_new_privileges=True)
        elif name == "seccomp" and value == "unconfined":
            security = msgspec.structs.replace(security, seccomp=SecurityProfile("unconfined"))
        elif name == "seccomp" and value:
            profile = SecurityProfile("localhost", os.path.abspath(value))
            security = msgspec.structs.replace(security, seccomp=profile)
        elif name == "apparmor" and value:
            profile = SecurityProfile("unconfined" if value == "unconfined" else "localhost", value)
            security = msgspec.structs.replace(security, apparmor=profile)
        else:
            raise InvalidInput(f'"{text}" is unknown', field="--security-opt")
    return security


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    chosen = tuple(options.split(",")) if options else ("nosuid", "nodev", "noexec", "mode=1777")
    return Mount(container_path=target, type="tmpfs", options=chosen)


def _device(text: str) -> Device:
    source, _, rest = text.partition(":")
    target, _, permissions = rest.partition(":")
    return Device(source, target or source, permissions or "rwm")


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def fresh_name() -> str:
    """A name for a container that was given none."""
    return f"sampan-{secrets.token_hex(4)}"


def foreground(engine: Engine, container: ContainerRecord, *, interactive: bool, start: bool) -> int | None:
    """Join our own streams to the container until it ends; its exit code, or None if the person detached.

    The container waits for whoever reads our output, however long that takes.

    Args:
        engine: Whose.
        container: Created, or running.
        interactive: Whether our standard input goes to it.
        start: Start it once joined, so that nothing it prints is missed.
    """
    if container.spec.tty and os.isatty(0) and interactive:
        return _with_terminal(engine, container, start=start)
    stdin = 0 if interactive else -1
    attachment = engine.containers.attach(container.id, stdin=stdin, stdout=1, stderr=2, patient=True)
    _forward_signals(engine, container.id)
    try:
        if start:
            engine.containers.start(container.id)
        status = engine.containers.wait(container.id)
        attachment.wait_closed()
    finally:
        attachment.close()
    return status


def _with_terminal(engine: Engine, container: ContainerRecord, *, start: bool) -> int | None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            end = theirs.fileno()
            attachment = engine.containers.attach(container.id, stdin=end, stdout=end, patient=True)
        try:
            if start:
                engine.containers.start(container.id)
            if not terminal.relay(ours.fileno(), attachment.resize):
                return None
        finally:
            attachment.close()
    return engine.containers.wait(container.id)


def _forward_signals(engine: Engine, container_id: str) -> None:
    """Pass on what a person or a supervisor sends us."""

    def forward(number: int, _: object) -> None:
        try:
            engine.containers.kill(container_id, number)
        except SampanError:
            return  # it has ended, or not begun

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)


def _remove_later(options: Globals, container_id: str) -> None:
    """Leave a process behind that removes a detached container when it ends.

    A fresh one, not a fork: a database connection must not be carried over a fork (sqlite.org, "How To Corrupt").
    """
    flags = [
        word
        for flag, value in (("--config", options.config), ("--root", options.root), ("--state", options.state))
        if value
        for word in (flag, os.path.abspath(value))
    ]
    words = [sys.executable, "-m", "sampan.cli.main", *flags, "-n", options.namespace, "wait", "--rm", container_id]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_spawn(
            words[0],
            words,
            os.environ,
            setsid=True,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
        )
    finally:
        os.close(null)

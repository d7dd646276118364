"""Commands on containers that exist: ps, start, stop, kill, rm, exec, attach, wait, inspect, stats, events."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import click
import msgspec

from sampan.cli import find, render
from sampan.cli.main import Globals, report
from sampan.cli.run import RUN_LABEL, foreground, remove_pod
from sampan.cli.session import open_engine
from sampan.engine import oci
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord
from sampan.errors import InvalidInput, NotFound, SampanError, WrongState


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that don't run.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def ps(options: Globals, everything: bool, quiet: bool, no_trunc: bool, form: str) -> None:
    """List containers."""
    with open_engine(options) as engine:
        records = [record for record in engine.containers.list() if everything or record.state == "running"]
        ports = {pod.id: pod.spec.ports for pod in engine.pods.list()}
        if quiet:
            for record in records:
                click.echo(record.id if no_trunc else record.id[:12])
        elif form == "json":
            render.document(records)
        else:
            render.table(
                ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"),
                [_row(engine, record, ports.get(record.pod_id, ()), whole=no_trunc) for record in records],
            )


def _row(engine: Engine, record: ContainerRecord, ports: Any, *, whole: bool) -> tuple[str, ...]:
    config = engine.images.config_of(record)
    try:
        words = oci.arguments(record.spec, config)
    except InvalidInput:
        words = []
    command = " ".join(words)
    return (
        record.id if whole else record.id[:12],
        record.spec.image or record.spec.rootfs,
        f'"{command if whole or len(command) <= 20 else command[:19] + "…"}"',
        render.ago(record.created_at),
        status_of(record),
        ", ".join(f"{p.host_ip or '0.0.0.0'}:{p.host_port}->{p.container_port}/{p.protocol}" for p in ports),
        record.spec.metadata.name,
    )


def status_of(record: ContainerRecord) -> str:
    """As docker ps puts it."""
    if record.state == "running":
        return f"Up {render.ago(record.started_at).removesuffix(' ago').lower()}"
    if record.state == "exited":
        return f"Exited ({record.exit_code}) {render.ago(record.finished_at)}"
    return record.state.capitalize()


def _remove(engine: Engine, record: ContainerRecord) -> None:
    """Remove a container, and the pod of its own that `run` made for it."""
    pod = engine.pods.get(record.pod_id)
    if RUN_LABEL in pod.spec.labels:
        remove_pod(engine, pod)
    else:
        engine.containers.remove(record.id)


def _each(engine: Engine, names: tuple[str, ...], act: Any) -> int:
    """Do it to each container named, in spite of errors with others; the exit code."""
    status = 0
    for name in names:
        try:
            act(find.container(engine, name))
            click.echo(name)
        except SampanError as error:
            status = report(error)
    return status


@click.command()
@click.option("-a", "--attach", "join", is_flag=True, help="Join its streams.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_obj
def start(options: Globals, join: bool, containers: tuple[str, ...]) -> int:
    """Start created containers."""
    with open_engine(options) as engine:
        if join and len(containers) == 1:
            return foreground(engine, find.container(engine, containers[0]), interactive=False, start=True) or 0
        return _each(engine, containers, lambda record: engine.containers.start(record.id))


@click.command()
@click.option("-t", "--time", "seconds", type=float, default=10, help="Seconds before it is killed. [10]")
@click.argument("containers", nargs=-1, required=True)
@click.pass_obj
def stop(options: Globals, seconds: float, containers: tuple[str, ...]) -> int:
    """Ask containers to end, then kill them."""
    with open_engine(options) as engine:
        return _each(engine, containers, lambda record: engine.containers.stop(record.id, seconds))


@click.command()
@click.option("-s", "--signal", "name", default="KILL", help="Name or number. [KILL]")
@click.argument("containers", nargs=-1, required=True)
@click.pass_obj
def kill(options: Globals, name: str, containers: tuple[str, ...]) -> int:
    """Signal running containers."""
    number = oci.stop_signal(name)
    with open_engine(options) as engine:
        return _each(engine, containers, lambda record: engine.containers.kill(record.id, number))


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill it when it runs.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_obj
def rm(options: Globals, force: bool, containers: tuple[str, ...]) -> int:
    """Remove containers."""

    def remove(record: ContainerRecord) -> None:
        if record.state == "running" and not force:
            raise WrongState(f"container {record.id[:12]} is running", hint="stop it, or use --force")
        _remove(engine, record)

    with open_engine(options) as engine:
        return _each(engine, containers, remove)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or number.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory.")
@click.option("--privileged", is_flag=True, help="Every capability.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(options: Globals, /, container: str, command: tuple[str, ...], **given: Any) -> int:
    """Run a command in a running container."""
    if given["tty"] and given["detach"]:
        raise click.UsageError("nobody would be at the terminal: leave -t or -d out")
    if given["tty"] and given["interactive"] and not os.isatty(0):
        raise click.UsageError("standard input is no terminal: leave -t out")
    with open_engine(options) as engine:
        record = find.container(engine, container)
        more = {"env": given["env"], "user": given["user"], "cwd": given["workdir"], "privileged": given["privileged"]}
        if given["tty"]:
            return _exec_on_terminal(engine, record, command, more)
        stdin = 0 if given["interactive"] else -1
        out, err = (-1, -1) if given["detach"] else (1, 2)
        session = engine.containers.exec(record.id, command, stdin=stdin, stdout=out, stderr=err, **more)
        if given["detach"]:
            return 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda got, _: session.signal(got))
        return session.wait()


def _exec_on_terminal(engine: Engine, record: ContainerRecord, command: tuple[str, ...], more: Any) -> int:
    from sampan.cli import terminal

    session = engine.containers.exec(record.id, command, tty=True, **more)
    try:
        if os.isatty(0):
            terminal.relay(session.console, session.resize, detaches=False)  # who lets go of it ends the command
        else:
            while data := _read(session.console):
                os.write(1, data)
        return session.wait()
    finally:
        session.close()


def _read(console: int) -> bytes:
    try:
        return os.read(console, 1 << 16)
    except OSError:
        return b""  # EIO: the command has closed its side


@click.command()
@click.option("--no-stdin", is_flag=True, help="Leave its standard input alone.")
@click.argument("container")
@click.pass_obj
def attach(options: Globals, no_stdin: bool, container: str) -> int:
    """Join the streams of a running container."""
    with open_engine(options) as engine:
        record = engine.containers.running(find.container(engine, container).id)
        return foreground(engine, record, interactive=record.spec.stdin and not no_stdin, start=False) or 0


@click.command()
@click.option("--rm", "remove", is_flag=True, help="Then remove them.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_obj
def wait(options: Globals, remove: bool, containers: tuple[str, ...]) -> None:
    """Wait until containers have ended; print their exit codes."""
    with open_engine(options) as engine:
        for name in containers:
            record = find.container(engine, name)
            click.echo(str(engine.containers.wait(record.id)))
            if remove:
                _remove(engine, record)


@click.command()
@click.option("--type", "kind", type=click.Choice(["", "container", "image", "pod"]), default="")
@click.option("--spec", "with_spec", is_flag=True, help="The container's config.json.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def inspect(options: Globals, kind: str, with_spec: bool, names: tuple[str, ...]) -> None:
    """Show all that is known of containers, images or pods, as JSON."""
    with open_engine(options) as engine:
        if with_spec:
            for name in names:
                record = find.container(engine, name)
                with open(f"{engine.layout.bundle(record.pod_id, record.id)}/config.json", encoding="utf-8") as file:
                    render.document(json.load(file))
        else:
            render.document([_inspect(engine, name, kind) for name in names])


def _inspect(engine: Engine, name: str, kind: str) -> Any:
    looks: dict[str, Callable[[], Any]] = {
        "container": lambda: find.container(engine, name),
        "image": lambda: _image_document(engine, name),
        "pod": lambda: engine.pods.get(name),
    }
    for look in [looks[kind]] if kind else looks.values():
        try:
            return look()
        except NotFound:
            continue
    raise NotFound(f'no {kind or "container, image or pod"} is called "{name}"')


def _image_document(engine: Engine, name: str) -> dict[str, Any]:
    found = engine.images.resolve(name)
    return {**msgspec.to_builtins(found.record), "manifest": found.manifest, "config": found.config}


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.argument("containers", nargs=-1)
@click.pass_obj
def stats(options: Globals, form: str, containers: tuple[str, ...]) -> None:
    """Show what running containers use."""
    with open_engine(options) as engine:
        chosen = [find.container(engine, name) for name in containers] or engine.containers.list(state="running")
        figures = [(record, engine.containers.stats(record.id)) for record in chosen]
        if form == "json":
            render.document([stat for _, stat in figures])
            return
        render.table(
            ("CONTAINER ID", "NAME", "CPU TIME", "MEM USAGE", "DISK", "PIDS"),
            [
                (
                    record.id[:12],
                    record.spec.metadata.name,
                    f"{stat.cpu_usage_ns / 1e9:.2f} s",
                    render.size(stat.memory_working_set),
                    render.size(stat.fs_used_bytes),
                    str(stat.pids),
                )
                for record, stat in figures
            ],
        )


@click.command()
@click.option("--since", type=int, default=None, metavar="SEQUENCE", help="Begin after this event, not now.")
@click.pass_obj
def events(options: Globals, since: int | None) -> None:
    """Print events as they happen, a JSON object a line."""
    with open_engine(options) as engine:
        subscription = engine.events.subscribe(since)
        while event := subscription.get():
            click.echo(msgspec.json.encode(event).decode())

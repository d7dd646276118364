"""`sampan pods`: list, stop and remove pods."""

import click

from sampan.cli import render
from sampan.cli.main import Globals
from sampan.cli.session import open_engine


@click.group(invoke_without_command=True)
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.pass_context
def pods(ctx: click.Context, quiet: bool) -> None:
    """List pods."""
    if ctx.invoked_subcommand is not None:
        return
    options: Globals = ctx.obj
    with open_engine(options) as engine:
        found = engine.pods.list()
        if quiet:
            for pod in found:
                click.echo(pod.id)
            return
        render.table(
            ("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME", "IP"),
            [
                (
                    pod.id[:12],
                    render.ago(pod.created_at),
                    pod.state,
                    pod.spec.metadata.name,
                    pod.spec.metadata.namespace,
                    str(pod.spec.metadata.attempt),
                    pod.handler,
                    ",".join(pod.ips),
                )
                for pod in found
            ],
        )


@pods.command("stop")
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def pods_stop(options: Globals, ids: tuple[str, ...]) -> None:
    """Stop pods."""
    with open_engine(options) as engine:
        for pod_id in ids:
            engine.pods.stop(pod_id)
            click.echo(pod_id)


@pods.command("rm")
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def pods_remove(options: Globals, ids: tuple[str, ...]) -> None:
    """Stop pods and remove them with their containers."""
    with open_engine(options) as engine:
        for pod_id in ids:
            engine.pods.remove(pod_id)
            click.echo(pod_id)
        engine.tidy()

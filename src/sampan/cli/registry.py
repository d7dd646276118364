"""`sampan login`, `sampan logout`, `sampan registry`: credentials, and where an image's name leads."""

import sys

import click

from sampan.cli import render
from sampan.cli.main import Globals
from sampan.cli.session import open_engine


@click.command()
@click.option("-u", "--username", default="", help="Asked for when left out.")
@click.option("-p", "--password", default="", help="Better: --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("registry", default="docker.io")
@click.pass_obj
def login(options: Globals, username: str, password: str, password_stdin: bool, registry: str) -> None:
    """Check credentials at a registry and keep them."""
    from sampan.registry.login import login as check_and_keep

    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    username = username or click.prompt("Username", err=True)
    password = password or click.prompt("Password", hide_input=True, err=True)
    with open_engine(options) as engine:
        where = check_and_keep(engine.resolver, registry, username, password)
    click.echo(f"Login Succeeded: kept in {where}")


@click.command()
@click.argument("registry", default="docker.io")
def logout(registry: str) -> None:
    """Forget credentials of a registry."""
    from sampan.registry.login import logout as forget

    click.echo(f"Removed credentials of {registry}" if forget(registry) else f"No credentials of {registry} are kept")


@click.group()
def registry() -> None:
    """See how registries are reached."""


@registry.command("explain")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.argument("image")
@click.pass_obj
def explain(options: Globals, form: str, image: str) -> None:
    """Show which hosts, paths and credentials an image's name leads to, in order, and why."""
    with open_engine(options) as engine:
        explanation = engine.resolver.explain(image)
    if form == "json":
        render.document(explanation)
    else:
        click.echo("\n".join(explanation.lines()))

"""`sampan login`, `sampan logout`, `sampan registry`: credentials, and where an image's name leads."""

import sys

import click

from sampan.cli import render
from sampan.cli.flags import credentials
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.image.reference import Reference

_creds = click.option("--creds", default="", metavar="USER[:PASSWORD]", help="For this registry, this time.")


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
    """See how registries are reached, and what they have."""


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


@registry.command("resolve")
@_creds
@click.argument("image")
@click.pass_obj
def resolve(options: Globals, creds: str, image: str) -> None:
    """Ask which digest an image's name has."""
    with open_engine(options) as engine:
        target = engine.resolver.repository(image, credentials=credentials(creds)).resolve()
    render.document(target)


@registry.command("tags")
@_creds
@click.argument("repository")
@click.pass_obj
def tags(options: Globals, creds: str, repository: str) -> None:
    """List the tags of a repository."""
    with open_engine(options) as engine:
        reference = Reference.parse(repository, default_tag="")
        for tag in engine.resolver.repository(reference, credentials=credentials(creds)).tags():
            click.echo(tag)


@registry.command("repositories")
@_creds
@click.argument("registry")
@click.pass_obj
def repositories(options: Globals, creds: str, registry: str) -> None:
    """List the repositories that a registry tells of."""
    with open_engine(options) as engine:
        for name in engine.resolver.registry(registry, credentials=credentials(creds)).catalog():
            click.echo(name)


@registry.command("referrers")
@_creds
@click.option("--artifact-type", default="", help="Only of this type.")
@click.argument("image")
@click.pass_obj
def referrers(options: Globals, creds: str, artifact_type: str, image: str) -> None:
    """List what refers to an image: signatures, attestations and other artifacts."""
    with open_engine(options) as engine:
        repository = engine.resolver.repository(image, credentials=credentials(creds))
        render.document(repository.referrers(repository.resolve().digest, artifact_type))


@registry.command("delete")
@_creds
@click.argument("image")
@click.pass_obj
def delete(options: Globals, creds: str, image: str) -> None:
    """Delete a manifest from its registry, with every tag that leads to it."""
    with open_engine(options) as engine:
        repository = engine.resolver.repository(image, credentials=credentials(creds))
        digest = repository.pusher().resolve(repository.reference.target).digest
        repository.delete(digest)
    click.echo(digest)

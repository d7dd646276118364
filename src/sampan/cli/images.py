"""Commands on images: images, pull, push, tag, rmi, save, load; see image.py for the group `sampan image`."""

import sys

import click

from sampan.cli import progress as showing
from sampan.cli import render
from sampan.cli.flags import credentials
from sampan.cli.main import Globals, report
from sampan.cli.session import open_engine
from sampan.errors import InvalidInput, SampanError
from sampan.image.reference import Reference


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.argument("reference", default="")
@click.pass_obj
def images(options: Globals, quiet: bool, digests: bool, no_trunc: bool, form: str, reference: str) -> None:
    """List images."""
    with open_engine(options) as engine:
        records = engine.images.list(reference)
        if form == "json":
            render.document(records)
            return
        if quiet:
            for record in records:
                click.echo(record.id if no_trunc else record.id.removeprefix("sha256:")[:12])
            return
        rows = []
        for record in records:
            names = record.repo_tags or tuple(f"{name.partition('@')[0]}:<none>" for name in record.repo_digests)
            for name in names:
                repository, _, tag = (
                    Reference.parse(name).familiar.rpartition(":")
                    if "<" not in name
                    else (name.removesuffix(":<none>"), "", "<none>")
                )
                digest = record.repo_digests[0].partition("@")[2] if record.repo_digests else ""
                short = record.id if no_trunc else record.id.removeprefix("sha256:")[:12]
                row = [repository, tag, short, render.ago(record.created_at), render.size(record.size)]
                rows.append([*row[:2], digest, *row[2:]] if digests else row)
        header = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
        render.table([*header[:2], "DIGEST", *header[2:]] if digests else header, rows)


@click.command()
@click.option("--platform", default="", metavar="OS/ARCH", help="Another platform than this machine's.")
@click.option("--creds", default="", metavar="USER[:PASSWORD]", help="For this registry, this time.")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's name.")
@showing.option
@click.argument("reference")
@click.pass_obj
def pull(options: Globals, platform: str, creds: str, quiet: bool, form: str, reference: str) -> None:
    """Fetch an image from its registry."""
    given = credentials(creds)
    with open_engine(options) as engine:
        record = showing.pull_with_progress(
            engine, reference, platform=platform, form="none" if quiet else form, credentials=given
        )
        click.echo(Reference.parse(reference) if quiet else record.repo_digests[0])


@click.command()
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an index, only this one.")
@click.option("--creds", default="", metavar="USER[:PASSWORD]", help="For this registry, this time.")
@click.option("-q", "--quiet", is_flag=True, help="Only the digest.")
@showing.option
@click.argument("name")
@click.argument("reference", default="")
@click.pass_obj
def push(options: Globals, platform: str, creds: str, quiet: bool, form: str, name: str, reference: str) -> None:
    """Send an image to its registry, or to that of REFERENCE."""
    given = credentials(creds)
    with open_engine(options) as engine, showing.shown("none" if quiet else form) as progress:
        sent = engine.images.push(name, reference or name, credentials=given, progress=progress, platform=platform)
    click.echo(sent)


@click.command()
@click.argument("source")
@click.argument("name")
@click.pass_obj
def tag(options: Globals, source: str, name: str) -> None:
    """Give an image a further name."""
    with open_engine(options) as engine:
        engine.images.tag(source, name)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rmi(options: Globals, names: tuple[str, ...]) -> int:
    """Remove names of images; an id removes all of the image's."""
    status = 0
    with open_engine(options) as engine:
        for name in names:
            try:
                record = engine.images.get(name)
                if name.removeprefix("sha256:") and record.id.removeprefix("sha256:").startswith(
                    name.removeprefix("sha256:")
                ):
                    engine.images.remove(name)
                else:
                    engine.images.untag(name)
                click.echo(f"Removed: {name}")
            except SampanError as error:
                status = report(error)
    return status


@click.command()
@click.option("-o", "--output", default="", type=click.Path(dir_okay=False), help="File to write. [standard output]")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def save(options: Globals, output: str, names: tuple[str, ...]) -> None:
    """Write images into an archive that OCI's and Docker's tools read."""
    if not output and sys.stdout.isatty():
        raise InvalidInput("is a terminal: name a file with --output", field="standard output")
    with open_engine(options) as engine:
        engine.images.save(names, output or sys.stdout.buffer)
        sys.stdout.flush()


@click.command()
@click.option("-i", "--input", "source", default="", type=click.Path(dir_okay=False), help="[standard input]")
@click.pass_obj
def load(options: Globals, source: str) -> None:
    """Read images from an archive, OCI's or Docker's, compressed or not."""
    if not source and sys.stdin.isatty():
        raise InvalidInput("is a terminal: name a file with --input", field="standard input")
    with open_engine(options) as engine:
        for name in engine.images.load(source or sys.stdin.buffer):
            click.echo(f"Loaded: {name}")

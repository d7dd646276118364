"""Commands on images: images, pull, push, tag, rmi, save, load, image inspect."""

import sys
from typing import Any

import click

from sampan.cli import render
from sampan.cli.main import Globals, report
from sampan.cli.progress import pull_with_progress, push_with_progress
from sampan.cli.session import open_engine
from sampan.errors import SampanError
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
@click.option("-q", "--quiet", is_flag=True, help="Only the image's name.")
@click.option("--progress", "form", type=click.Choice(["auto", "plain", "json"]), default="auto")
@click.argument("reference")
@click.pass_obj
def pull(options: Globals, platform: str, quiet: bool, form: str, reference: str) -> None:
    """Fetch an image from its registry."""
    with open_engine(options) as engine:
        record = pull_with_progress(engine, reference, platform=platform, quiet=quiet, form=form)
        click.echo(Reference.parse(reference) if quiet else record.repo_digests[0])


@click.command()
@click.argument("name")
@click.argument("reference", default="")
@click.pass_obj
def push(options: Globals, name: str, reference: str) -> None:
    """Send an image to its registry, or to that of REFERENCE."""
    with open_engine(options) as engine:
        click.echo(push_with_progress(engine, name, reference or name))


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
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="File to write.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def save(options: Globals, output: str, names: tuple[str, ...]) -> None:
    """Write images into an archive that OCI's and Docker's tools read."""
    with open_engine(options) as engine:
        engine.images.save(names, output)


@click.command()
@click.option("-i", "--input", "source", required=True, type=click.Path(exists=True), help="Archive.")
@click.pass_obj
def load(options: Globals, source: str) -> None:
    """Read images from an archive, OCI's or Docker's."""
    with open_engine(options) as engine:
        for name in engine.images.load(source):
            click.echo(f"Loaded: {name}")


@click.group()
def image() -> None:
    """Look into images and copy them between places."""


@image.command("inspect")
@click.option("--raw", is_flag=True, help="The manifest or index, byte for byte.")
@click.option("--config", "configuration", is_flag=True, help="The configuration.")
@click.argument("name")
@click.pass_obj
def image_inspect(options: Globals, raw: bool, configuration: bool, name: str) -> None:
    """Show an image's parts."""
    with open_engine(options) as engine:
        found = engine.images.resolve(name)
        if raw:
            sys.stdout.buffer.write(engine.store.content.read(found.target_digest))
        elif configuration:
            render.document(found.config)
        else:
            document: dict[str, Any] = {"image": found.record, "manifest": found.manifest, "config": found.config}
            render.document(document)


@image.command("copy")
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an index, only this one.")
@click.argument("source")
@click.argument("destination")
@click.pass_obj
def image_copy(options: Globals, platform: str, source: str, destination: str) -> None:
    """Copy an image between docker://, oci:, oci-archive:, docker-archive:, dir: and store: places."""
    from sampan.registry.copying import copy

    with open_engine(options) as engine:
        copied = copy(
            source,
            destination,
            resolver=engine.resolver,
            store=engine.store,
            namespace=engine.namespace,
            platform=platform or None,
        )
        click.echo(copied.digest)

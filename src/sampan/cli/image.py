"""`sampan image`: looking into images and copying them between places."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from sampan.cli import progress as showing
from sampan.cli import render
from sampan.cli.flags import credentials
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.errors import InvalidInput
from sampan.image.model import Image, ImageIndex
from sampan.image.reference import Reference
from sampan.registry import inspecting
from sampan.spec.image import Platform

if TYPE_CHECKING:
    from sampan.engine.engine import Engine


@click.group()
def image() -> None:
    """Look into images and copy them between places."""


@image.command("inspect")
@click.option("--raw", is_flag=True, help="The manifest or index, byte for byte.")
@click.option("--config", "configuration", is_flag=True, help="The configuration; with --raw, byte for byte.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an index, this one. [this machine's]")
@click.option("--creds", default="", metavar="USER[:PASSWORD]", help="For docker://, this time.")
@click.argument("name", metavar="NAME|PLACE")
@click.pass_obj
def inspect(options: Globals, raw: bool, configuration: bool, platform: str, creds: str, name: str) -> None:
    """Show an image's parts; of an index every platform, and what its image runs.

    PLACE is docker://, oci:, oci-archive:, docker-archive:, dir: or store:, as for `image copy`; anything else is the
    name or id of an image in the store.
    """
    wanted = Platform.parse(platform) if platform else None
    with open_engine(options) as engine, _opened(engine, name, creds) as found:
        if raw and not configuration and wanted is None:
            sys.stdout.buffer.write(found.raw_manifest)
        elif raw or configuration or wanted is not None:
            _show_one(found.select(wanted) if isinstance(found, ImageIndex) else found, raw, configuration)
        else:
            names = [entry.name for entry in engine.store.images(engine.namespace).find(found.digest)]
            described = _whole_index(found) if isinstance(found, ImageIndex) else _whole(found)
            render.document({"names": names, **described} if names else described)


def _show_one(found: Image, raw: bool, configuration: bool) -> None:
    if raw:
        sys.stdout.buffer.write(found.raw_config if configuration else found.raw_manifest)
    elif configuration:
        render.document(inspecting.configuration(found) or found.raw_config.decode(errors="replace"))
    else:
        render.document(_whole(found))


def _whole(found: Image) -> dict[str, Any]:
    return {**_head(found), "manifest": found.manifest, "config": inspecting.configuration(found)}


def _whole_index(found: ImageIndex) -> dict[str, Any]:
    return {**_head(found), "platforms": inspecting.platforms(found)}


def _head(found: Image | ImageIndex) -> dict[str, Any]:
    descriptor = found.descriptor
    return {"digest": descriptor.digest, "media_type": descriptor.media_type, "size": descriptor.size}


def _opened(engine: "Engine", name: str, creds: str) -> "AbstractContextManager[Image | ImageIndex]":
    """What a name or a place leads to."""
    from sampan.registry.copying import TRANSPORTS
    from sampan.registry.opening import open_image
    from sampan.registry.places.stored import StoreSource

    if not name.startswith(TRANSPORTS):
        return nullcontext(StoreSource(engine.store, engine.namespace, name, engine.images.target(name)).image())
    return open_image(
        name,
        resolver=engine.resolver,
        store=engine.store,
        namespace=engine.namespace,
        credentials=credentials(creds),
    )


@image.command("copy")
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Every platform of an index: so it is without --platform."
)
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an index, only this one.")
@click.option("--format", "form", type=click.Choice(["oci", "docker", "v2s2"]), help="Rewrite manifests; new digests.")
@click.option("--preserve-digests", is_flag=True, help="Fail rather than change a digest: so it is without --format.")
@click.option("--src-creds", default="", metavar="USER[:PASSWORD]", help="For the source.")
@click.option("--dest-creds", default="", metavar="USER[:PASSWORD]", help="For the destination.")
@click.option("-q", "--quiet", is_flag=True, help="Only the digest.")
@click.option("--progress", "show", type=click.Choice(showing.FORMS), default="auto", help="How to show it.")
@click.argument("source")
@click.argument("destination")
@click.pass_obj
def copy(options: Globals, /, source: str, destination: str, **flags: Any) -> None:
    """Copy an image between docker://, oci:, oci-archive:, docker-archive:, dir: and store: places."""
    from sampan.registry.copying import copy as copy_image

    if flags["everything"] and flags["platform"]:
        raise InvalidInput("can't be given together with --platform", field="--all")
    if flags["preserve_digests"] and flags["form"]:
        raise InvalidInput("can't be given together with --format", field="--preserve-digests")
    show = "none" if flags["quiet"] else flags["show"]
    with open_engine(options) as engine, showing.shown(show) as progress:
        copied = copy_image(
            source,
            destination,
            resolver=engine.resolver,
            store=engine.store,
            namespace=engine.namespace,
            platform=flags["platform"] or None,
            form="docker" if flags["form"] == "v2s2" else flags["form"],
            source_credentials=credentials(flags["src_creds"]),
            destination_credentials=credentials(flags["dest_creds"]),
            progress=progress,
        )
    click.echo(copied.digest)


@image.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="KEY=VALUE...")
@click.pass_obj
def label(options: Globals, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of an image's name, an empty VALUE removing one, and show them all."""
    changes = dict(map(render.label, labels))
    with open_engine(options) as engine:
        names = engine.store.images(engine.namespace)
        with engine.store.transaction(durable=True):
            entry = names.get(str(Reference.parse(name)))
            merged = {key: value for key, value in {**entry.labels, **changes}.items() if value}
            if changes:
                names.put(entry.name, entry.target, merged)
    for key, value in sorted(merged.items()):
        click.echo(f"{key}={value}")

"""`sampan image`: looking into images and copying them between places."""

import sys
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import click

from sampan.cli import progress as showing
from sampan.cli import render
from sampan.cli.flags import credentials
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.errors import InvalidInput
from sampan.image.reference import Reference
from sampan.spec.image import Platform

if TYPE_CHECKING:
    from sampan.engine.engine import Engine
    from sampan.registry.places.interface import Source


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
    from sampan.registry import inspecting

    wanted = Platform.parse(platform) if platform else None
    with open_engine(options) as engine, _source(engine, name, creds) as source:
        target = source.target()
        if raw and not configuration and wanted is None:
            sys.stdout.buffer.write(inspecting.raw_document(source, target))
            return
        if raw or configuration or wanted is not None:
            found = inspecting.find(source, target, wanted)
            if raw:
                sys.stdout.buffer.write(found.raw_config if configuration else found.raw)
            elif configuration:
                render.document(found.config or found.raw_config.decode(errors="replace"))
            else:
                render.document(_one(found))
            return
        platforms = inspecting.platforms(source, target)
        described: dict[str, Any] = {"digest": target.digest, "media_type": target.media_type, "size": target.size}
        if platforms is None:
            described = _one(inspecting.find(source, target))
        else:
            described["platforms"] = platforms
        names = _names(engine, target.digest)
        render.document({"names": names, **described} if names else described)


def _one(found: Any) -> dict[str, Any]:
    return {
        "digest": found.descriptor.digest,
        "media_type": found.descriptor.media_type,
        "size": found.descriptor.size,
        "manifest": found.manifest,
        "config": found.config,
    }


def _names(engine: "Engine", digest: str) -> list[str]:
    return [entry.name for entry in engine.store.images(engine.namespace).find(digest)]


def _source(engine: "Engine", name: str, creds: str) -> "AbstractContextManager[Source]":
    """What a name or a place leads to."""
    from sampan.registry.copying import TRANSPORTS, open_source
    from sampan.registry.places.stored import StoreSource

    if not name.startswith(TRANSPORTS):
        return closing(StoreSource(engine.store, engine.namespace, name, engine.images.target(name)))
    return closing(
        open_source(
            name,
            resolver=engine.resolver,
            store=engine.store,
            namespace=engine.namespace,
            credentials=credentials(creds),
        )
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

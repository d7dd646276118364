"""`sampan gc`, `sampan fsck`, `sampan content`: what is stored, why it is kept, and whether it is whole."""

import sys

import click

from sampan.cli import render
from sampan.cli.main import Globals
from sampan.cli.session import open_engine


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--explain", "name", default="", metavar="DIGEST|SNAPSHOT", help="Say why this is kept.")
@click.pass_obj
def gc(options: Globals, dry_run: bool, name: str) -> None:
    """Remove content and snapshots that nothing refers to."""
    with open_engine(options) as engine:
        if name:
            for line in engine.store.explain(name):
                click.echo(line)
            return
        done = engine.store.gc(dry_run=dry_run)
        for digest in done.content:
            click.echo(digest)
        for key in done.snapshots:
            click.echo(f"snapshot {key}")
        click.echo(f"{'would free' if dry_run else 'freed'} {render.size(done.bytes)} of blobs", err=True)


@click.command()
@click.option("--repair", is_flag=True, help="Take damaged things away, so that the next pull brings them anew.")
@click.pass_obj
def fsck(options: Globals, repair: bool) -> int:
    """Check every blob and every unpacked layer against its digest."""
    with open_engine(options) as engine:
        problems = engine.store.fsck(repair=repair)
    for problem in problems:
        state = "repaired" if problem.repaired else "damaged"
        click.echo(f"{problem.kind} {problem.name}: {problem.what} ({state}; needed by {', '.join(problem.images)})")
    return 1 if any(not problem.repaired for problem in problems) else 0


@click.group()
def content() -> None:
    """Look at stored blobs."""


@content.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only digests.")
@click.pass_obj
def content_list(options: Globals, quiet: bool) -> None:
    """List blobs."""
    with open_engine(options) as engine:
        blobs = list(engine.store.content.walk())
        if quiet:
            for blob in blobs:
                click.echo(blob.digest)
            return
        rows = [(blob.digest, render.size(blob.size), render.ago(blob.created_at), blob.media_type) for blob in blobs]
        render.table(("DIGEST", "SIZE", "AGE", "TYPE"), rows)


@content.command("get")
@click.argument("digest")
@click.pass_obj
def content_get(options: Globals, digest: str) -> None:
    """Write a blob to standard output."""
    with open_engine(options) as engine:
        for piece in iter(engine.store.content.open(digest)):
            sys.stdout.buffer.write(piece)


@content.command("info")
@click.argument("digest")
@click.pass_obj
def content_info(options: Globals, digest: str) -> None:
    """Show what is known of a blob."""
    with open_engine(options) as engine:
        blob = engine.store.content.info(digest)
        render.document(
            {
                "digest": blob.digest,
                "size": blob.size,
                "media_type": blob.media_type,
                "labels": blob.labels,
                "created_at": blob.created_at,
            }
        )


@content.command("rm")
@click.argument("digests", nargs=-1, required=True)
@click.pass_obj
def content_remove(options: Globals, digests: tuple[str, ...]) -> None:
    """Remove blobs, needed or not."""
    with open_engine(options) as engine:
        for digest in digests:
            engine.store.content.delete(digest)
            click.echo(digest)

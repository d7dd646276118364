"""`sampan gc`, `sampan fsck`, `sampan content`: what is stored, why it is kept, and whether it is whole."""

import errno
import shlex
import subprocess
import sys
import tempfile

import click

from sampan.cli import render
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.errors import InvalidInput, StageFailed
from sampan.image.reference import Reference
from sampan.spec import image as spec

#: Most bytes that an editor is given.
_EDIT_LIMIT = 16 << 20
#: How long an edited blob that no image leads to yet is kept.
_EDIT_SECONDS = 24 * 3600.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--images", is_flag=True, help="Remove images too that no container has, less those that are pinned.")
@click.option("--explain", "name", default="", metavar="DIGEST|SNAPSHOT", help="Say why this is kept.")
@click.pass_obj
def gc(options: Globals, dry_run: bool, images: bool, name: str) -> None:
    """Remove content and snapshots that nothing refers to."""
    with open_engine(options) as engine:
        if name:
            for line in engine.store.explain(name):
                click.echo(line)
            return
        for image in engine.images.unused() if images else ():
            click.echo(f"image {', '.join(image.repo_tags or image.repo_digests)}")
            if not dry_run:
                engine.images.remove(image.id)
        done = engine.store.gc(dry_run=dry_run)
        for digest in done.content:
            click.echo(digest)
        for key in done.snapshots:
            click.echo(f"snapshot {key}")
        click.echo(f"{'would free' if dry_run else 'freed'} {render.size(done.bytes)} of blobs", err=True)


@click.command()
@click.option("--repair", is_flag=True, help="Fetch damaged blobs again, just those; apply damaged layers again.")
@click.option("--offline", is_flag=True, help="Ask no registry: a damaged blob is only taken away.")
@click.pass_obj
def fsck(options: Globals, repair: bool, offline: bool) -> int:
    """Check every blob and every unpacked layer against its digest."""
    from sampan.registry.mending import fetcher

    with open_engine(options) as engine:
        fetch = fetcher(engine.store, engine.resolver) if repair and not offline else None
        problems = engine.store.fsck(repair=repair, fetch=fetch)
    for problem in problems:
        state = "repaired" if problem.repaired else "damaged"
        needed = f"; needed by {', '.join(problem.images)}" if problem.images else ""
        click.echo(f"{problem.kind} {problem.name}: {problem.what} ({state}{needed})")
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


@content.command("label")
@click.argument("digest")
@click.argument("labels", nargs=-1, metavar="KEY=VALUE...")
@click.pass_obj
def content_label(options: Globals, digest: str, labels: tuple[str, ...]) -> None:
    """Set a blob's labels, an empty VALUE removing one, and show them all."""
    changes = {key: value or None for key, value in map(render.label, labels)}
    with open_engine(options) as engine:
        for key, value in sorted(engine.store.content.label(digest, changes).items()):
            click.echo(f"{key}={value}")


@content.command("edit")
@click.option("--editor", envvar=["VISUAL", "EDITOR"], default="vi", metavar="COMMAND", help="[$VISUAL, $EDITOR, vi]")
@click.option("--name", default="", metavar="IMAGE", help="Let this image's name lead to the edited manifest.")
@click.argument("digest")
@click.pass_obj
def content_edit(options: Globals, editor: str, name: str, digest: str) -> None:
    """Edit a small blob; what comes of it is a new blob, whose digest is printed.

    A manifest, index or configuration is kept only if it still is one. A new blob that no image leads to is
    collected after a day.
    """
    wanted = str(Reference.parse(name)) if name else ""
    with open_engine(options) as engine:
        content = engine.store.content
        before = content.info(digest)
        data = _edited(content.read(digest, _EDIT_LIMIT), editor)
        _check_document(data, before.media_type)
        if wanted and before.media_type not in spec.MANIFEST_TYPES | spec.INDEX_TYPES:
            raise InvalidInput(f"{digest} is neither a manifest nor an index", field="--name")
        # Not released: it expires.
        lease = engine.store.leases(engine.namespace).create(expires_in=_EDIT_SECONDS)
        made = content.put(data, before.media_type, lease=lease)
        if wanted:
            engine.store.images(engine.namespace).put(wanted, made)
        click.echo(made.digest)


def _edited(data: bytes, editor: str) -> bytes:
    """What a person makes of ``data`` in an editor."""
    with tempfile.NamedTemporaryFile(prefix="sampan-edit-", suffix=".json" if data[:1] in b"{[" else "") as file:
        file.write(data)
        file.flush()
        try:
            status = subprocess.run([*shlex.split(editor), file.name], check=False).returncode
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
            raise StageFailed(f'run the editor "{editor}"', cause) from error
        if status:
            raise InvalidInput(f'"{editor}" ended with status {status}; nothing was stored', field="--editor")
        # Editors write a new file and rename it.
        with open(file.name, "rb") as written:
            result = written.read(_EDIT_LIMIT + 1)
    if len(result) > _EDIT_LIMIT:
        raise InvalidInput(f"has more than {_EDIT_LIMIT} bytes now", field="blob")
    return result


def _check_document(data: bytes, media_type: str) -> None:
    if media_type in spec.MANIFEST_TYPES | spec.INDEX_TYPES:
        spec.decode_manifest(data, media_type)
    elif media_type in spec.CONFIG_TYPES:
        spec.decode_config(data)

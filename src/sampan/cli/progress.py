"""What a pull, a push or a copy is doing: bars on a terminal, plain lines elsewhere, JSON on request; on stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import click
import msgspec

from sampan.cli import render
from sampan.engine.engine import Engine
from sampan.engine.model import ImageRecord

if TYPE_CHECKING:
    from sampan.registry.credentials import Credentials
    from sampan.registry.progress import Callback, Event

FORMS = ("auto", "plain", "json", "none")
#: Events of bytes, which come many times for one blob.
_MOVING = frozenset({"downloading", "uploading"})
_BAR = 24
_SHORT = 12


def option(function: click.decorators.FC) -> click.decorators.FC:
    """The option ``--progress`` of a command."""
    text = "How to show it. auto: bars on a terminal, lines elsewhere."
    return click.option("--progress", "form", type=click.Choice(FORMS), default="auto", help=text)(function)


@contextmanager
def shown(form: str = "auto") -> "Iterator[Callback | None]":
    """Something to give events to; it has written its last at the end."""
    if form == "none":
        yield None
    elif form == "json":
        yield _json
    elif form == "auto" and sys.stderr.isatty():
        bars = Bars(sys.stderr)
        try:
            yield bars
        finally:
            bars.end()
    else:
        yield Lines(sys.stderr, everything=form == "plain")


def _json(event: "Event") -> None:
    click.echo(msgspec.json.encode(event).decode(), err=True)


class Lines:
    """A line for each thing that happened, bytes on their way excepted.

    Args:
        stream: Where to.
        everything: Also what comes before the first blob: a command that fails there says so in its error's line.
    """

    def __init__(self, stream: IO[str], *, everything: bool = False) -> None:
        self._stream = stream
        self._started = everything
        self._told: set[tuple[str, str]] = set()

    def __call__(self, event: "Event") -> None:
        """Write the event's line, if it has one."""
        if event.digest and event.kind not in ("resolved", "done"):
            self._started = True
        key = (event.digest, event.kind)
        if not self._started or (key in self._told and event.kind != "retrying"):
            return
        self._told.add(key)
        self._stream.write(line(event) + "\n")
        self._stream.flush()


def line(event: "Event") -> str:
    """An event in words: ``9f86d081884c: downloaded 4.3 MB from r.example``."""
    what = _short(event.digest) if event.digest else event.reference
    text = f"{what}: {event.kind}"
    if event.total:
        text += f" {render.size(event.total)}"
    if event.host:
        text += f" {'to' if event.kind.startswith('upload') else 'from'} {event.host}"
    return f"{text}: {event.message}" if event.message else text


class Bars:
    """A line for each blob, drawn again in place; a terminal too low for all of them shows the last ones."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._rows: dict[str, tuple[str, int, int]] = {}
        self._note = ""
        self._drawn = 0

    def __call__(self, event: "Event") -> None:
        """Take an event in, and draw."""
        if event.kind == "retrying":
            self._note = f"{event.host}: {event.message}"
        elif event.digest and event.kind not in ("resolved", "done", "unpacking", "unpacked"):
            self._rows[event.digest] = (event.kind, event.offset, event.total)
            self._note = ""
        elif event.kind in ("resolving", "unpacking"):
            self._note = event.kind
        else:
            self._note = ""
        self._draw()

    def _draw(self) -> None:
        width, height = _terminal(self._stream)
        rows = [bar(digest, *row) for digest, row in self._rows.items()] + ([self._note] if self._note else [])
        rows = rows[-max(1, height - 1) :]
        # Up to the first line drawn last time; each line cleared to its end, and what is below the last one too.
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        body = "".join(f"{_printable(row)[: width - 1]}\x1b[K\n" for row in rows)
        self._stream.write(f"\r{up}{body}\x1b[J")
        self._stream.flush()
        self._drawn = len(rows)

    def end(self) -> None:
        """Draw for the last time, without what is only of the moment."""
        if self._drawn:
            self._note = ""
            self._draw()


def bar(digest: str, kind: str, offset: int, total: int) -> str:
    """One blob's line: ``9f86d081884c [=====>      ] 12.3 MB / 40 MB downloading``."""
    share = min(1.0, offset / total) if total else float(kind not in _MOVING)
    full = int(share * _BAR)
    drawn = ("=" * full + (">" if full < _BAR and kind in _MOVING else "")).ljust(_BAR)
    amount = f"{render.size(offset)} / {render.size(total)}"
    return f"{_short(digest)} [{drawn}] {amount:>19}  {kind}"


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_SHORT]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _terminal(stream: IO[str]) -> tuple[int, int]:
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def pull_with_progress(
    engine: Engine,
    reference: str,
    *,
    platform: str = "",
    form: str = "auto",
    credentials: "Credentials | None" = None,
) -> ImageRecord:
    """Pull an image and show how it goes."""
    with shown(form) as progress:
        return engine.images.pull(reference, platform=platform, progress=progress, credentials=credentials)

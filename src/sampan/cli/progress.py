"""What a pull or a push is doing: lines on a terminal, plain lines or JSON elsewhere."""

import sys
from typing import Any

import click
import msgspec

from sampan.cli import render
from sampan.engine.engine import Engine
from sampan.engine.model import ImageRecord


class _Lines:
    """A line a layer when it is done, on standard error; on a terminal one line of running totals besides."""

    def __init__(self, form: str) -> None:
        self._json = form == "json"
        self._live = form == "auto" and sys.stderr.isatty()
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def __call__(self, event: Any) -> None:
        if self._json:
            click.echo(msgspec.json.encode(event).decode(), err=True)
            return
        digest = str(getattr(event, "digest", "") or "")
        total = int(getattr(event, "total", 0) or 0)
        current = int(getattr(event, "offset", 0) or 0)
        if digest:
            self._done[digest], self._totals[digest] = current, total
            if self._live:
                click.echo(
                    f"\r{render.size(sum(self._done.values()))} of {render.size(sum(self._totals.values()))}   ",
                    nl=False,
                    err=True,
                )

    def end(self) -> None:
        """Finish the live line."""
        if self._live and self._done:
            click.echo("", err=True)


def pull_with_progress(
    engine: Engine, reference: str, *, platform: str = "", quiet: bool = False, form: str = "auto"
) -> ImageRecord:
    """Pull an image and show how it goes."""
    lines = None if quiet else _Lines(form)
    try:
        return engine.images.pull(reference, platform=platform, progress=lines)
    finally:
        if lines is not None:
            lines.end()


def push_with_progress(engine: Engine, name: str, reference: str) -> str:
    """Push an image and show how it goes; the digest that the registry has now."""
    lines = _Lines("auto")
    try:
        return engine.images.push(name, reference, progress=lines)
    finally:
        lines.end()

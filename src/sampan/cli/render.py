"""Tables, sizes and times as people know them from docker, crictl and ctr."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_SPANS = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400), ("hour", 3_600))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as their widest cell."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("   ".join(cells).rstrip())


def size(count: int) -> str:
    """A number of bytes with three significant digits: ``4.3 MB``."""
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def ago(nanoseconds: int) -> str:
    """How long ago a moment was: ``3 minutes ago``."""
    seconds = max(0, int(time.time() - nanoseconds / 1e9))
    for name, span in _SPANS:
        if seconds >= span:
            return _plural(seconds // span, name)
    if seconds >= 60:
        return _plural(seconds // 60, "minute")
    return _plural(seconds, "second") if seconds else "Less than a second ago"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''} ago"


def document(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=4, ensure_ascii=False))


def label(text: str) -> tuple[str, str]:
    """The key and the value of ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f'"{text}" is not KEY=VALUE')
    return key, value

"""Documents and tables for standard output."""

from __future__ import annotations

import os

from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_text(text: str) -> None:
    """Write text to standard output."""
    write_all(1, text.encode("utf-8", "surrogateescape"))


def indented(value: Any, indent: str = "  ", level: int = 0) -> str:
    """JSON for people: one member a line."""
    if isinstance(value, dict) and value:
        pad = indent * (level + 1)
        members = (f"{pad}{jsontext.dumps(k)}: {indented(v, indent, level + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(members) + "\n" + indent * level + "}"
    if isinstance(value, (list, tuple)) and value:
        pad = indent * (level + 1)
        return "[\n" + ",\n".join(pad + indented(v, indent, level + 1) for v in value) + "\n" + indent * level + "]"
    return jsontext.dumps(value)


def table(rows: list[list[str]]) -> str:
    """Columns at least twelve characters wide and three apart, as runc lists."""
    widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines) + "\n"

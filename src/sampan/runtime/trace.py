"""Where a container's start is, how long each step took, and a place to make one fail.

Every act of the runtime is announced by :func:`step`. That one call serves three ends: the stage that an error
names, the rows of ``--trace``, and the points at which a test injects a failure. Costs two assignments when
nobody looks. A forked child inherits the recorder; it sends its rows to the parent before it turns into the
container's program (:func:`take` and :func:`give`).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: The step being done and the path it is on: what an error is named for.
stage = ""
path = ""
#: Called with the name of each step before it is done; a test raises OSError from here.
hook: Callable[[str], None] | None = None

_rows: list[tuple[str, str, str, int]] | None = None
_who = "runtime"


def step(name: str, where: str = "") -> None:
    """Say what is done next; ``where`` is the path it is done on."""
    global stage, path
    stage = name
    path = where
    if _rows is not None:
        _rows.append((_who, name, where, time.monotonic_ns()))
    if hook is not None:
        hook(name)


def start() -> None:
    """Begin to record."""
    global _rows
    _rows = []


def enabled() -> bool:
    """Whether steps are being recorded."""
    return _rows is not None


def become(who: str) -> None:
    """Name the process whose steps follow; called in a new child, which starts with no rows of its own."""
    global _who
    _who = who
    if _rows is not None:
        _rows.clear()


def lend(who: str) -> str:
    """Name a child that borrows this interpreter, and its rows with it; the present name, to be given back."""
    global _who
    before, _who = _who, who
    return before


def take() -> list[tuple[str, str, str, int]]:
    """The rows so far, ended by a row without a name; they are forgotten."""
    if _rows is None:
        return []
    rows = [*_rows, (_who, "", "", time.monotonic_ns())]
    _rows.clear()
    return rows


def give(rows: list[tuple[str, str, str, int]]) -> None:
    """Add the rows that a child took."""
    if _rows is not None:
        _rows.extend(rows)


def spans() -> list[tuple[str, str, str, int, int]]:
    """The record as (process, step, path, begin, length) in nanoseconds; a step lasts until its process's next."""
    rows = take()
    result = []
    last: dict[str, tuple[str, str, int]] = {}
    for who, name, where, at in sorted(rows, key=lambda row: row[3]):
        if who in last:
            begun = last.pop(who)
            result.append((who, begun[0], begun[1], begun[2], at - begun[2]))
        if name:
            last[who] = (name, where, at)
    return sorted(result, key=lambda span: span[3])


def text() -> str:
    """The record as a table, one step a line."""
    rows = spans()
    if not rows:
        return ""
    origin = rows[0][3]
    lines = [
        f"{(begin - origin) / 1e6:9.3f} ms {length / 1e6:8.3f} ms  {who:<8} {name}{f'  {where}' if where else ''}"
        for who, name, where, begin, length in rows
    ]
    return "\n".join(lines) + "\n"


def chrome() -> str:
    """The record in the JSON form that chrome://tracing and Perfetto read."""
    import json

    threads = {"runtime": 1, "init": 2}
    events = [
        {
            "name": name,
            "ph": "X",
            "ts": begin / 1000,
            "dur": length / 1000,
            "pid": 1,
            "tid": threads.setdefault(who, len(threads) + 1),
            "args": {"path": where} if where else {},
        }
        for who, name, where, begin, length in spans()
    ]
    names: list[dict[str, object]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": who}}
        for who, number in threads.items()
    ]
    return json.dumps({"traceEvents": [*names, *events]})

"""Checks of a parsed JSON document's shape: small functions, put together into tables.

A check takes a value, its JSON path, and the list that faults go to. It never raises, and goes on after a fault, so
that one reading finds them all. ``null`` stands for an absent field, as the Go programs that write these documents
have it. Fields that no table names are let through: the specification wants it so.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Faults = list[tuple[str, str]]
    Check = Callable[[object, str, Faults], None]

_LONGEST_TEXT = 1 << 20
_LONGEST_LIST = 1 << 16


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def text(value: object, path: str, faults: Faults) -> None:
    """A string that the kernel can be handed: without NUL, encodable, of a reasonable length."""
    if not isinstance(value, str):
        faults.append((path, f"must be a string, is {kind_of(value)}"))
    elif "\0" in value:
        faults.append((path, "must not contain a NUL character"))
    elif len(value) > _LONGEST_TEXT:
        faults.append((path, f"is longer than {_LONGEST_TEXT} characters"))
    elif not value.isascii() and not _encodable(value):
        faults.append((path, "is not valid Unicode"))


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def filled(value: object, path: str, faults: Faults) -> None:
    """A string that is not empty."""
    text(value, path, faults)
    if value == "":
        faults.append((path, "must not be empty"))


def absolute(value: object, path: str, faults: Faults) -> None:
    """A path from the root."""
    text(value, path, faults)
    if isinstance(value, str) and not value.startswith("/"):
        faults.append((path, f"must be an absolute path, is {value!r}"))


def flag(value: object, path: str, faults: Faults) -> None:
    """A boolean."""
    if not isinstance(value, bool):
        faults.append((path, f"must be a boolean, is {kind_of(value)}"))


def whole(least: int, most: int) -> Check:
    """A whole number within bounds."""

    def check(value: object, path: str, faults: Faults) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            faults.append((path, f"must be a whole number, is {kind_of(value)}"))
        elif not least <= value <= most:
            faults.append((path, f"must be from {least} to {most}, is {value}"))

    return check


def one_of(names: Iterable[str]) -> Check:
    """One of these strings."""
    known = frozenset(names)
    listed = ", ".join(sorted(known))

    def check(value: object, path: str, faults: Faults) -> None:
        if not isinstance(value, str):
            faults.append((path, f"must be a string, is {kind_of(value)}"))
        elif value not in known:
            faults.append((path, f"must be one of {listed}, is {value[:64]!r}"))

    return check


def letters(known: str) -> Check:
    """A string of these letters."""

    def check(value: object, path: str, faults: Faults) -> None:
        text(value, path, faults)
        if isinstance(value, str) and set(value) - set(known):
            faults.append((path, f"must be made of the letters {known}, is {value[:64]!r}"))

    return check


def listing(item: Check, *, most: int = _LONGEST_LIST, least: int = 0) -> Check:
    """An array of items alike."""

    def check(value: object, path: str, faults: Faults) -> None:
        if not isinstance(value, list):
            faults.append((path, f"must be an array, is {kind_of(value)}"))
            return
        if len(value) > most:
            faults.append((path, f"has more than {most} entries"))
            return
        if len(value) < least:
            faults.append((path, f"must have at least {least} entr{'y' if least == 1 else 'ies'}"))
        for number, one in enumerate(value):
            item(one, f"{path}[{number}]", faults)

    return check


def mapping(item: Check) -> Check:
    """An object whose keys are free and whose values are alike."""

    def check(value: object, path: str, faults: Faults) -> None:
        if not isinstance(value, dict):
            faults.append((path, f"must be an object, is {kind_of(value)}"))
            return
        if len(value) > _LONGEST_LIST:
            faults.append((path, f"has more than {_LONGEST_LIST} entries"))
            return
        for key, one in value.items():
            text(key, f"{path} key", faults)
            item(one, f"{path}[{key[:64]!r}]", faults)

    return check


def fields(optional: dict[str, Check], required: dict[str, Check] | None = None) -> Check:
    """An object with known fields."""
    needed = required or {}

    def check(value: object, path: str, faults: Faults) -> None:
        if not isinstance(value, dict):
            faults.append((path or "config", f"must be an object, is {kind_of(value)}"))
            return
        dot = f"{path}." if path else ""
        for key, one in needed.items():
            if value.get(key) is None:
                faults.append((f"{dot}{key}", "is required"))
            else:
                one(value[key], f"{dot}{key}", faults)
        for key, entry in value.items():
            known = optional.get(key)
            if known is not None and entry is not None:
                known(entry, f"{dot}{key}", faults)

    return check


def both(*checks: Check) -> Check:
    """Several checks on one value."""

    def check(value: object, path: str, faults: Faults) -> None:
        for one in checks:
            one(value, path, faults)

    return check

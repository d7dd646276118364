"""JSON without the standard library's ``json`` package, whose import (through ``re`` and ``enum``) takes 9 ms.

CPython's own scanner and encoder are C functions in ``_json``; ``json`` is a shell around them. Where an interpreter
lacks them, or gives them another form, ``json`` itself is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


class _Settings:
    """What json.JSONDecoder tells its scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _functions() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any], str]]:
    import _json

    scan = _json.make_scanner(_Settings)  # type: ignore[arg-type]  # typeshed has the name only
    chunks = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
    encode: Callable[[Any], str] = lambda value: "".join(chunks(value, 0))  # noqa: E731
    if scan('[1,"a"]', 0) != ([1, "a"], 7) or encode({"a": [1, None]}) != '{"a":[1,null]}':
        raise ImportError("the scanner or the encoder is of another form")
    return scan, encode


def _fall_back() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any], str]]:
    import json

    decoder = json.JSONDecoder(parse_constant=_Settings.parse_constant)
    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
    return scan, encoder.encode


try:
    _scan, _encode = _functions()
except (ImportError, TypeError, AttributeError):
    _scan, _encode = _fall_back()


def _scan_or_explain(text: str, start: int) -> tuple[Any, int]:
    try:
        return _scan(text, start)
    except SystemError:
        # The scanner of 3.11 has no exception to raise until json.decoder, which defines it, is imported.
        import json.decoder  # noqa: F401

        return _scan(text, start)


def loads(text: str | bytes) -> Any:
    """The value that ``text`` (UTF-8, if bytes) describes.

    Raises:
        ValueError: It is not JSON; ``NaN`` and ``Infinity`` are not.
    """
    if isinstance(text, (bytes, bytearray)):
        text = text.decode("utf-8-sig" if text.startswith(b"\xef\xbb\xbf") else "utf-8")
    start = 0
    length = len(text)
    while start < length and text[start] in _SPACE:
        start += 1
    try:
        value, end = _scan_or_explain(text, start)
    except StopIteration as stop:
        raise ValueError(f"not JSON: a value is expected at character {stop.value}") from None
    except RecursionError:
        raise ValueError("not JSON that is reasonable: nested too deeply") from None
    if text[end:].strip(_SPACE):
        raise ValueError(f"not JSON: more text follows the value at character {end}")
    return value


def dumps(value: Any) -> str:
    """``value`` in the shortest form, ASCII only.

    Raises:
        TypeError: It holds what JSON cannot.
    """
    return _encode(value)

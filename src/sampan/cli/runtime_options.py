"""The options of `sampan-runtime`: runc's, read as Go's flag package reads them.

argparse would cost more than starting the interpreter. One dash or two mean the same; ``--name value`` and
``--name=value`` too. An option may follow the operands, except where what follows is another program's command line.
"""

from __future__ import annotations

from sampan.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Kinds of options.
FLAG, VALUE, LIST, NUMBER, NUMBERS = "flag", "value", "list", "number", "numbers"

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


class Option:
    """One option.

    Args:
        names: Long name and, after a comma, a short one: ``bundle,b``.
        kind: ``FLAG``, ``VALUE`` (the last one counts), ``LIST`` (all count), ``NUMBER``, and
            ``NUMBERS``, a list of decimal ones.
        text: What it is for, in a line of the help.
    """

    __slots__ = ("kind", "names", "text")

    def __init__(self, names: str, kind: str, text: str) -> None:
        self.names = names.split(",")
        self.kind = kind
        self.text = text


class Parsed:
    """What was given: operands, and options by long name."""

    __slots__ = ("_flags", "_lists", "_values", "operands")

    def __init__(self) -> None:
        self.operands: list[str] = []
        self._flags: dict[str, bool] = {}
        self._values: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}

    def add(self, option: Option, value: str) -> None:
        """Take an option's value."""
        name = option.names[0]
        if option.kind == FLAG:
            if value not in _TRUE | _FALSE:
                raise InvalidInput(f"{value!r} is neither true nor false", field=f"--{name}")
            self._flags[name] = value in _TRUE
        elif option.kind in (LIST, NUMBERS):
            if option.kind == NUMBERS and not value.removeprefix("-").isdecimal():
                raise InvalidInput(f"{value!r} is not a decimal number", field=f"--{name}")
            self._lists.setdefault(name, []).append(value)
        else:
            if option.kind == NUMBER:
                to_number(value, name)
            self._values[name] = value

    def given(self, name: str) -> bool:
        """Whether the option is there and, as runc sees it, says something: an empty value is none."""
        return name in self._flags or name in self._lists or bool(self.value(name))

    def flag(self, name: str) -> bool:
        """A flag; absent is false."""
        return self._flags.get(name, False)

    def value(self, name: str, default: str = "") -> str:
        """A value."""
        return self._values.get(name, default)

    def number(self, name: str, default: int = 0) -> int:
        """A number."""
        return to_number(self._values[name], name) if self.given(name) else default

    def list(self, name: str) -> list[str]:
        """Every value of an option that may be repeated."""
        return self._lists.get(name, [])


def to_number(text: str, name: str) -> int:
    """A decimal, octal or hexadecimal number, as Go reads it."""
    try:
        return int(text, 0) if not text.lstrip("+-").startswith("0") or "x" in text.lower() else int(text, 8)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a number", field=f"--{name}") from None


def parse(options: Iterable[Option], arguments: list[str], *, interspersed: bool = True) -> Parsed:
    """Read arguments.

    Args:
        options: The known ones; ``help,h`` is always known.
        arguments: Without the command's name.
        interspersed: Options may follow operands; ``--`` ends them.

    Raises:
        InvalidInput: An option is unknown, lacks its value, or has a bad one.
    """
    known = {name: option for option in (*options, Option("help,h", FLAG, "")) for name in option.names}
    parsed = Parsed()
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if argument == "--":
            parsed.operands.extend(reversed(rest))
            break
        if not argument.startswith("-") or argument == "-":
            parsed.operands.append(argument)
            if interspersed:
                continue
            parsed.operands.extend(reversed(rest))
            break
        _option(known, argument, rest, parsed)
    return parsed


def _option(known: dict[str, Option], argument: str, rest: list[str], parsed: Parsed) -> None:
    name, equals, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
    option = known.get(name)
    if option is None:
        # runc does not group short flags, other runtimes do: -td.
        if argument.startswith("--") or equals or not all(x in known and known[x].kind == FLAG for x in name):
            raise InvalidInput(f"unknown option {argument!r}", hint="see --help")
        for letter in name:
            parsed.add(known[letter], "true")
        return
    if option.kind == FLAG:
        parsed.add(option, value if equals else "true")
        return
    if not equals:
        if not rest:
            raise InvalidInput("needs a value", field=f"--{option.names[0]}")
        value = rest.pop()
    parsed.add(option, value)

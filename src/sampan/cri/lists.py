"""Filters of lists, and lists in pieces."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

from google.protobuf.message import Message

from sampan.cri import fields
from sampan.errors import InvalidInput

T = TypeVar("T")
S = TypeVar("S", bound=int)

#: Entries of one message of a Stream… call: far below the 16 MiB that a message may have.
PIECE = 128


def pieces(entries: Iterable[T]) -> Iterator[list[T]]:
    """The entries in order, :data:`PIECE` at a time; nothing for no entries."""
    left = iter(entries)
    while piece := list(islice(left, PIECE)):
        yield piece


def everything(wanted: Message) -> bool:
    """Whether a filter lets all pass."""
    return not wanted.ByteSize()


def state_of(states: Mapping[S, str], wanted: S, field: str) -> str:
    """The engine's name of the state that a filter asks for."""
    if wanted not in states:
        raise InvalidInput(f"{wanted} is no state", field=field)
    return states[wanted]


def selector(given: Mapping[str, str], field: str = "filter.label_selector") -> dict[str, str]:
    """Labels that must be there with these very values."""
    return fields.strings(given, field)

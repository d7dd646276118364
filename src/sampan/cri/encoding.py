"""Answers of long lists, as the bytes that go over the wire.

An entry of a list is encoded when its record has changed, not whenever somebody lists: a kubelet lists every second. A
repeated field is its entries one after the other, each behind the field's tag and its length, and two encodings of one
message, one after the other, are the encoding of both merged:
https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message


class _Source(Protocol):
    @property
    def id(self) -> str: ...


S = TypeVar("S", bound=_Source)
E = TypeVar("E")

#: Wire type of a message in a message.
_LEN = 2


class Field:
    """A field that holds a message, or a list of them.

    Args:
        message: The message that has the field.
        name: The field's name.
    """

    def __init__(self, message: type[Message], name: str) -> None:
        self._tag = _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | _LEN)

    def of(self, values: Iterable[bytes]) -> bytes:
        """The field with these values, which are encoded already."""
        tag = self._tag
        return b"".join([part for value in values for part in (tag, _varint(len(value)), value)])


class Encoded(Generic[S, E]):
    """What records, or readings, look like in an answer: made once for each, as long as it stays equal.

    Kept is what the last list of all told, so that nothing outlives its record for longer. Threads may share one.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[S, E]] = {}

    def of(self, sources: Iterable[S], encode: Callable[[S], E], *, all: bool) -> dict[str, E]:
        """Encodings by the ids, in order.

        Args:
            sources: Of which.
            encode: Makes an encoding.
            all: Whether these are all that there are.
        """
        kept = self._kept
        found: dict[str, tuple[S, E]] = {}
        for source in sources:
            name = source.id
            known = kept.get(name)
            same = known is not None and (known[0] is source or known[0] == source)
            found[name] = known if known is not None and same else (source, encode(source))
        if all:
            self._kept = found
        return {name: encoding for name, (_, encoding) in found.items()}


class Stamped:
    """An encoding in which one time stands in many places, to be told again with another time.

    Args:
        encoded: With :data:`ANY_TIME` in those places.
    """

    __slots__ = ("_pieces",)

    def __init__(self, encoded: bytes) -> None:
        self._pieces = encoded.split(_ANY_TIME)

    def at(self, timestamp: int) -> bytes:
        """The encoding with a time.

        Args:
            timestamp: Nanoseconds since the epoch, after 1972 and before 2262: it takes as many bytes as any other.
        """
        return _varint_of(timestamp).join(self._pieces)


def _varint_of(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


#: For lengths and tags, which are few.
_varint = lru_cache(4096)(_varint_of)

#: A time that stands for any. The first eight bytes of its encoding are in no text, since characters have at most
#: three bytes that go on (RFC 3629, section 3), and no figure is ever as large.
ANY_TIME: Final = 0x3D786C4BA4215511
_ANY_TIME: Final = _varint_of(ANY_TIME)

"""Answers of long lists, as the bytes that go over the wire.

An entry of a list is encoded when its record has changed, not whenever somebody lists: a kubelet lists every second. A
repeated field is its entries one after the other, each behind the field's tag and its length, and two encodings of one
message, one after the other, are the encoding of both merged:
https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message


class _Record(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Record)

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


class Encoded(Generic[R]):
    """What records look like in an answer: made once for each, as long as it is the same object.

    Kept is what the last list of all told, so that nothing outlives its record for longer.

    Args:
        encode: Makes a record's encoding.
    """

    def __init__(self, encode: Callable[[R], bytes]) -> None:
        self._encode = encode
        self._kept: dict[str, tuple[R, bytes]] = {}

    def of(self, records: Iterable[R], *, all: bool) -> dict[str, bytes]:
        """Encodings by the records' ids, in their order.

        Args:
            records: Which.
            all: Whether these are all that there are.
        """
        kept = self._kept
        found: dict[str, tuple[R, bytes]] = {}
        for record in records:
            known = kept.get(record.id)
            found[record.id] = known if known and known[0] is record else (record, self._encode(record))
        if all:
            self._kept = found
        return {record_id: encoding for record_id, (_, encoding) in found.items()}


@lru_cache(4096)
def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

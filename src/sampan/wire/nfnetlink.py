"""nftables and conntrack over nfnetlink, without I/O: elements of sets and maps, and connection entries.

A change to nftables is a batch: BATCH_BEGIN, messages, BATCH_END in one send; all of it happens or none. Numbers are in
network byte order. linux/netfilter/nf_tables.h, nfnetlink_conntrack.h; libnftables does the rest (the table, its chains
and rules), which happens once for a boot. Import diet as in :mod:`sampan.wire.netlink`.
"""

from __future__ import annotations

import struct

from sampan.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    Message,
    attribute,
    attributes,
    be32,
    each_attribute,
    nested,
    string,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Message type, flags, body: what :meth:`sampan.wire.netlink.Exchange.request` takes.
Request = tuple[int, int, bytes]

NFPROTO_INET = 1
NFPROTO_BRIDGE = 7
NF_INET_FORWARD = 2

NFNL_MSG_BATCH_BEGIN = 16
NFNL_MSG_BATCH_END = 17
NFNL_SUBSYS_CTNETLINK = 1
NFNL_SUBSYS_NFTABLES = 10

_NEWSETELEM = NFNL_SUBSYS_NFTABLES << 8 | 12
_GETSETELEM = NFNL_SUBSYS_NFTABLES << 8 | 13
_DELSETELEM = NFNL_SUBSYS_NFTABLES << 8 | 14
_DELTABLE = NFNL_SUBSYS_NFTABLES << 8 | 2
_GETCHAIN = NFNL_SUBSYS_NFTABLES << 8 | 4
_CT_GET = NFNL_SUBSYS_CTNETLINK << 8 | 1
_CT_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | 2

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_JUMP = 0xFFFFFFFD

_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_PROTO = 2
_CTA_PROTO_NUM, _CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT = 1, 2, 3
_CTA_STATUS = 3
IPS_DST_NAT = 1 << 5

_PREAMBLE = struct.Struct(">BBH")


class Element:
    """An element of a set, or of a map when it has data or a chain to jump to."""

    __slots__ = ("chain", "data", "family", "key", "set_name")

    def __init__(
        self, set_name: str, key: bytes, data: bytes = b"", chain: str = "", family: int = NFPROTO_INET
    ) -> None:
        self.set_name = set_name
        self.key = key
        self.data = data
        self.chain = chain
        self.family = family

    def __repr__(self) -> str:
        return f"Element({self.set_name!r}, {self.key.hex()}, {self.data.hex()}, {self.chain!r})"


def concatenation(*parts: bytes) -> bytes:
    """A concatenated key: each part fills whole 32-bit registers."""
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def preamble(family: int, resource: int = 0) -> bytes:
    """``struct nfgenmsg``."""
    return _PREAMBLE.pack(family, 0, resource)


def batch_begin() -> Request:
    """Open a transaction of nftables."""
    return NFNL_MSG_BATCH_BEGIN, 0, preamble(0, NFNL_SUBSYS_NFTABLES)


def batch_end() -> Request:
    """Commit it."""
    return NFNL_MSG_BATCH_END, 0, preamble(0, NFNL_SUBSYS_NFTABLES)


def add_elements(table: str, elements: Sequence[Element]) -> Iterator[Request]:
    """Add elements; one that is there with the same data is no error, with other data EEXIST."""
    for element in elements:
        yield _NEWSETELEM, NLM_F_CREATE, _element_list(table, element, whole=True)


def delete_elements(table: str, elements: Sequence[Element]) -> Iterator[Request]:
    """Delete elements by key; one that is not there fails the batch with ENOENT."""
    for element in elements:
        yield _DELSETELEM, 0, _element_list(table, element, whole=False)


def _element_list(table: str, element: Element, *, whole: bool) -> bytes:
    parts = nested(_ELEM_KEY, attribute(_DATA_VALUE, element.key))
    if whole and element.chain:
        verdict = be32(_VERDICT_CODE, _JUMP) + text(_VERDICT_CHAIN, element.chain)
        parts += nested(_ELEM_DATA, nested(_DATA_VERDICT, verdict))
    elif whole and element.data:
        parts += nested(_ELEM_DATA, attribute(_DATA_VALUE, element.data))
    names = text(_LIST_TABLE, table) + text(_LIST_SET, element.set_name)
    return preamble(element.family) + names + nested(_LIST_ELEMENTS, nested(_LIST_ELEM, parts))


def get_elements(table: str, set_name: str, family: int = NFPROTO_INET) -> Request:
    """Ask for all elements of a set."""
    return _GETSETELEM, NLM_F_DUMP, preamble(family) + text(_LIST_TABLE, table) + text(_LIST_SET, set_name)


def parse_elements(answer: Message, family: int = NFPROTO_INET) -> Iterator[Element]:
    """Read an answer to :func:`get_elements`."""
    fields = attributes(answer.body, _PREAMBLE.size)
    set_name = string(fields.get(_LIST_SET))
    for _kind, body in each_attribute(fields.get(_LIST_ELEMENTS, b"")):
        parts = attributes(body)
        key = attributes(parts.get(_ELEM_KEY, b"")).get(_DATA_VALUE, b"")
        data = attributes(parts.get(_ELEM_DATA, b""))
        verdict = attributes(data.get(_DATA_VERDICT, b""))
        yield Element(set_name, key, data.get(_DATA_VALUE, b""), string(verdict.get(_VERDICT_CHAIN)), family)


def delete_table(table: str, family: int) -> Request:
    """Delete a table with all that is in it."""
    return _DELTABLE, 0, preamble(family) + text(1, table)


def get_chain(table: str, chain: str, family: int = NFPROTO_INET) -> Request:
    """Ask for one chain; ENOENT when it or the table is not there."""
    return _GETCHAIN, 0, preamble(family) + text(1, table) + text(3, chain)


def get_chains() -> Request:
    """Ask for the chains of every table."""
    return _GETCHAIN, NLM_F_DUMP, preamble(0)


class Chain:
    """A chain; one that hangs on a hook has a policy."""

    __slots__ = ("family", "hook", "name", "policy", "table")

    def __init__(self, family: int, table: str, name: str, hook: int, policy: int) -> None:
        self.family = family
        self.table = table
        self.name = name
        #: -1: no hook; 2: forward.
        self.hook = hook
        #: -1: none; 0: drop; 1: accept.
        self.policy = policy

    @property
    def drops(self) -> bool:
        """Whether it drops what is forwarded and no rule of it takes."""
        return self.hook == NF_INET_FORWARD and self.policy == 0


def parse_chain(answer: Message) -> Chain:
    """Read an answer to :func:`get_chain` or :func:`get_chains`."""
    family = answer.body[0] if answer.body else 0
    fields = attributes(answer.body, _PREAMBLE.size)
    hook = attributes(fields[4]).get(1, b"") if 4 in fields else b""
    policy = fields.get(5, b"")
    return Chain(
        family,
        string(fields.get(1)),
        string(fields.get(3)),
        int.from_bytes(hook, "big") if hook else -1,
        int.from_bytes(policy, "big") if policy else -1,
    )


def get_connections(family: int) -> Request:
    """Ask for the connections that conntrack knows of an address family."""
    return _CT_GET, NLM_F_DUMP, preamble(family)


class Connection:
    """A conntrack entry, by its original direction."""

    __slots__ = ("destination_port", "protocol", "status", "tuple")

    def __init__(self, protocol: int, destination_port: int, status: int, original: bytes) -> None:
        self.protocol = protocol
        self.destination_port = destination_port
        self.status = status
        #: The original tuple, undecoded: what a deletion names it by.
        self.tuple = original


def parse_connection(answer: Message) -> Connection:
    """Read an answer to :func:`get_connections`."""
    fields = attributes(answer.body, _PREAMBLE.size)
    original = fields.get(_CTA_TUPLE_ORIG, b"")
    protocol = attributes(attributes(original).get(_CTA_TUPLE_PROTO, b""))
    return Connection(
        int.from_bytes(protocol.get(_CTA_PROTO_NUM, b""), "big"),
        int.from_bytes(protocol.get(_CTA_PROTO_DST_PORT, b""), "big"),
        int.from_bytes(fields.get(_CTA_STATUS, b""), "big"),
        original,
    )


def delete_connection(family: int, connection: Connection) -> Request:
    """Forget a connection, so that its next packet is routed and translated anew."""
    return _CT_DELETE, 0, preamble(family) + nested(_CTA_TUPLE_ORIG, connection.tuple)

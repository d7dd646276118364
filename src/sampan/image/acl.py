"""POSIX access lists: the text that star and GNU tar write, as the kernel's attribute (acl(5), posix_acl_xattr.h)."""

from __future__ import annotations

import struct

from sampan.errors import Corrupt

_VERSION = 2
_NO_ID = 0xFFFFFFFF
#: Type in the text -> (tag without a qualifier, tag with one).
_TAGS = {b"user": (0x01, 0x02), b"group": (0x04, 0x08), b"mask": (0x10, 0x10), b"other": (0x20, 0x20)}
_SHORT = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}


def acl_from_text(text: bytes) -> bytes:
    """Encode an access list such as ``user::rwx,user:lisa:r-x:1000,group::r-x,mask::r-x,other::---``.

    A qualifier is taken as a number: the fourth field that star writes, or the third if it is one. Names mean nothing
    without the machine that the archive was made on.

    Raises:
        Corrupt: It is no access list.
    """
    entries = []
    for line in text.replace(b"\n", b",").split(b","):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(b":")]
        tags = _TAGS.get(_SHORT.get(fields[0], fields[0]))
        if tags is None or len(fields) < 3:
            raise Corrupt("layer: an access list is malformed")
        qualifier = fields[3] if len(fields) > 3 and fields[3] else fields[1]
        if qualifier and not (qualifier.isdigit() and int(qualifier) < _NO_ID):
            raise Corrupt("layer: an access list names a user by name only")
        permissions = fields[2]
        if permissions.translate(None, b"rwx-"):
            raise Corrupt("layer: an access list is malformed")
        bits = sum(bit for letter, bit in ((b"r", 4), (b"w", 2), (b"x", 1)) if letter in permissions)
        entries.append((tags[bool(qualifier)], int(qualifier) if qualifier else _NO_ID, bits))
    # The kernel wants them ordered by tag, then id.
    return struct.pack("<I", _VERSION) + b"".join(
        struct.pack("<HHI", tag, bits, number) for tag, number, bits in sorted(entries)
    )

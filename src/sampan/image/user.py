"""Users and groups by name, from a root file system's own /etc/passwd and /etc/group.

Both files are the image's, so both are read through openat2(2) inside the root, bounded in size, and a number that
doesn't fit a uid is refused rather than wrapped around to root (CVE-2024-40635).
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from sampan.errors import InvalidInput
from sampan.linux.resolve import openat2

#: Largest id: the kernel keeps the one above for "no change" (chown(2)).
MAX_ID = (1 << 31) - 1
_MAX_FILE = 4 << 20
_FIELD = "user"


class User(NamedTuple):
    """Who a process runs as."""

    uid: int
    gid: int
    #: Supplementary groups that /etc/group puts the user in.
    groups: tuple[int, ...] = ()
    home: str = ""
    name: str = ""


def lookup_user(root: int, text: str) -> User:
    """The user that ``USER[:GROUP]`` means, either part a name or a number.

    A number needs no entry; without one its group is 0, as with runc and Docker.

    Args:
        root: Descriptor of the root file system's top directory.
        text: As in an image's ``User`` or a request.

    Raises:
        InvalidInput: A name has no entry, or a number is out of range.
    """
    who, colon, group = text.partition(":")
    if not who:
        raise InvalidInput(f'"{text}" names no user', field=_FIELD)
    number = _number(who)
    entry = next((fields for fields in _passwd(root) if _is(fields, who, number)), None)
    if entry is None and number is None:
        raise InvalidInput(f'"{who}" is not in the image\'s /etc/passwd', field=_FIELD, hint="use a number")
    if entry is not None:
        uid, gid, home, name = int(entry[2]), int(entry[3]), entry[5], entry[0]
    else:
        uid, gid, home, name = number or 0, 0, "", ""
    if colon:
        return User(uid, _group(root, group), (), home, name)
    return User(uid, gid, tuple(_memberships(root, name)), home, name)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number > MAX_ID:
        raise InvalidInput(f"{text} is more than {MAX_ID}", field=_FIELD)
    return number


def _is(fields: list[str], who: str, number: int | None) -> bool:
    return fields[0] == who if number is None else int(fields[2]) == number


def _group(root: int, text: str) -> int:
    number = _number(text)
    if number is not None:
        return number
    for fields in _entries(root, "etc/group", 3):
        if fields[0] == text and _valid(fields[2]):
            return int(fields[2])
    raise InvalidInput(f'"{text}" is not in the image\'s /etc/group', field=_FIELD, hint="use a number")


def _memberships(root: int, name: str) -> Iterator[int]:
    for fields in _entries(root, "etc/group", 4) if name else ():
        if name in fields[3].split(",") and _valid(fields[2]):
            yield int(fields[2])


def _passwd(root: int) -> Iterator[list[str]]:
    for fields in _entries(root, "etc/passwd", 6):
        if _valid(fields[2]) and _valid(fields[3]):
            yield fields


def _valid(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= MAX_ID


def _entries(root: int, path: str, least: int) -> Iterator[list[str]]:
    """Lines of a colon-separated file that have enough fields; none when there is no such file."""
    try:
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    with open(fd, "rb") as file:
        text = file.read(_MAX_FILE).decode("utf-8", "surrogateescape")
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= least and not line.startswith("#"):
            yield fields

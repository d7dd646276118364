"""Who ``USER`` in an image is: names looked up in the root file system's own /etc/passwd and /etc/group.

Docker's rules (moby's user package): ``user``, ``uid``, ``user:group``, ``uid:gid``, ``user:gid``, ``uid:group``;
a number is one, whatever names the files know: a user or group by the name "1000" could be anybody; it need not be in
any file; without a group part the user's own group counts, and the supplementary groups that list him; with one, no
supplementary groups do.

The files are the image's, so hostile: opened by openat2 inside the root, regular files only, bounded in size and in
lines. A number that does not fit in 32 bits is refused, not wrapped round to root's (CVE-2024-40635).
"""

import os
import stat
from dataclasses import dataclass, replace

from sampan.errors import Exhausted, InvalidInput
from sampan.linux.resolve import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_FILE_LIMIT = 8 << 20
#: The kernel keeps the largest number for "no change".
_ID_LIMIT = 0xFFFFFFFE
_DEFAULT_HOME = "/"


@dataclass(frozen=True, slots=True)
class User:
    """A process's user. ``groups`` are the supplementary ones; ``name`` is empty if no file knows the number."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = _DEFAULT_HOME
    name: str = ""


def lookup_user(root: int, text: str) -> User:
    """The user that an image's ``USER``, or a person's ``--user``, means.

    Args:
        root: Descriptor of the root file system's directory.
        text: Empty for the superuser.

    Raises:
        InvalidInput: A part is no name or number, or there is no such name; says which part.
        Exhausted: A file is absurdly large.
    """
    who, colon, group = text.partition(":")
    if ":" in group or (colon and not group and not who):
        raise InvalidInput(f'"{_short(text)}" is not user[:group]', field="user")
    user = _user(root, who or "0")
    if group:
        return replace(user, gid=_group(root, group), groups=())
    return replace(user, groups=_supplementary(root, user))


def _user(root: int, who: str) -> User:
    number = _number(who, "user")
    for fields in _lines(root, "etc/passwd", 7):
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is None or gid is None:
            continue
        if fields[0] == who if number is None else uid == number:
            return User(uid, gid, (), fields[5] or _DEFAULT_HOME, fields[0])
    if number is None:
        raise InvalidInput(f'no user "{_short(who)}" in the image\'s /etc/passwd', field="user")
    return User(uid=number)


def _group(root: int, group: str) -> int:
    number = _number(group, "group")
    if number is not None:
        return number
    for fields in _lines(root, "etc/group", 3):
        gid = _id(fields[2])
        if fields[0] == group and gid is not None:
            return gid
    raise InvalidInput(f'no group "{_short(group)}" in the image\'s /etc/group', field="group")


def _supplementary(root: int, user: User) -> tuple[int, ...]:
    if not user.name:
        return ()
    groups: list[int] = []
    for fields in _lines(root, "etc/group", 4):
        gid = _id(fields[2])
        if gid is not None and gid not in groups and user.name in fields[3].split(","):
            groups.append(gid)
    return tuple(groups)


def _number(text: str, field: str) -> int | None:
    """The id that ``text`` is, or None if it is a name."""
    if not text.isascii() or not text.lstrip("-+").isdecimal():
        return None
    number = _id(text)
    if number is None:
        raise InvalidInput(f'"{_short(text)}" is not a number from 0 to {_ID_LIMIT}', field=field)
    return number


def _id(text: str) -> int | None:
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > _ID_LIMIT:
        return None
    return int(text)


def _lines(root: int, path: str, fields: int) -> list[list[str]]:
    """The lines of a file of colon-separated fields, padded to ``fields``; no file is an empty one."""
    lines = []
    for line in _read(root, path).split("\n"):
        parts = line.strip().split(":")
        if len(parts) >= 3 and not line.startswith("#"):
            lines.append(parts + [""] * (fields - len(parts)))
    return lines


def _read(root: int, path: str) -> str:
    # O_NONBLOCK: a FIFO in this place must not hold anybody up.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = openat2(root, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise InvalidInput(f"the image's /{path} can't be opened: {error.strerror}", field="user") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"the image's /{path} is not a regular file", field="user")
        data = b""
        while piece := os.read(fd, 1 << 20):
            data += piece
            if len(data) > _FILE_LIMIT:
                raise Exhausted(f"the image's /{path} is larger than {_FILE_LIMIT} bytes")
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace")


def _short(text: str) -> str:
    return text[:80].encode("unicode_escape").decode("ascii")

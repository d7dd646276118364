"""Checks of the values in a request. Each returns the value that it was given, or raises InvalidInput with the field.

The limits are far above what Kubernetes allows to be written, and far below what could hurt: they keep one request from
filling a disk or a terminal, not a user from choosing a long name.
"""

import ipaddress
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from sampan.engine.mounts import normalized
from sampan.errors import InvalidInput

T = TypeVar("T")

NAME_LIMIT = 512
#: PATH_MAX of the kernel, its closing NUL included (limits.h).
PATH_LIMIT = 4095
#: MAX_ARG_STRLEN of the kernel, its closing NUL included (execve(2)).
ARGUMENT_LIMIT = (128 << 10) - 1
#: Arguments and environment together (execve(2): a quarter of the default stack limit).
ARGUMENTS_LIMIT = 2 << 20
#: Labels, or annotations, of one object together: Kubernetes allows annotations 256 KiB, and a kubelet adds its own.
MAP_LIMIT = 1 << 20
LIST_LIMIT = 4096
#: HOST_NAME_MAX of the kernel (sethostname(2)).
HOSTNAME_LIMIT = 64

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def text(value: str, field: str, *, limit: int = PATH_LIMIT, required: bool = False) -> str:
    """Any text without NUL, of at most ``limit`` bytes."""
    if required and not value:
        raise InvalidInput("is missing", field=field)
    if "\0" in value:
        raise InvalidInput("holds a NUL", field=field)
    if len(value) > limit or len(value.encode()) > limit:
        raise InvalidInput(f"is longer than {limit} bytes", field=field)
    return value


def line(value: str, field: str, *, limit: int = NAME_LIMIT, required: bool = False) -> str:
    """Text without control characters: what is written to logs, tables and line-based files."""
    text(value, field, limit=limit, required=required)
    if _CONTROL.search(value):
        raise InvalidInput(f"{_shown(value)} holds a control character", field=field)
    return value


def word(value: str, field: str, *, limit: int = NAME_LIMIT, required: bool = False) -> str:
    """A line without blanks."""
    line(value, field, limit=limit, required=required)
    if any(character.isspace() for character in value):
        raise InvalidInput(f"{_shown(value)} holds a blank", field=field)
    return value


def identifier(value: str, field: str) -> str:
    """The id of a pod, a container or an image, or a beginning of one."""
    return word(value, field, limit=NAME_LIMIT, required=True)


def absolute(value: str, field: str, *, required: bool = False) -> str:
    """An absolute path without ``..``."""
    return _no_climbing(_absolute(value, field, required=required), field)


def inside(value: str, field: str, *, required: bool = False) -> str:
    """An absolute path in a container; ``..`` is taken out by the letter, and leads no higher than the root."""
    _absolute(value, field, required=required)
    return normalized(value) if ".." in value.split("/") else value


def _absolute(value: str, field: str, *, required: bool) -> str:
    line(value, field, limit=PATH_LIMIT, required=required)
    if value and not value.startswith("/"):
        raise InvalidInput(f"{_shown(value)} is not an absolute path", field=field)
    return value


def relative(value: str, field: str) -> str:
    """A path that stays under the folder that it is relative to."""
    line(value, field, limit=PATH_LIMIT)
    if value.startswith("/"):
        raise InvalidInput(f"{_shown(value)} is not a relative path", field=field)
    return _no_climbing(value, field)


def _no_climbing(value: str, field: str) -> str:
    if ".." in value.split("/"):
        raise InvalidInput(f"{_shown(value)} climbs with ..", field=field)
    return value


def cgroup_parent(value: str, field: str) -> str:
    """A cgroup path (``/kubepods/burstable``) or the name of a slice (``kubepods-burstable.slice``)."""
    word(value, field, limit=PATH_LIMIT)
    if ":" in value:
        raise InvalidInput(f"{_shown(value)} holds a colon", field=field)
    return posixpath.normpath(_no_climbing(value, field)) if value else ""


def hostname(value: str, field: str) -> str:
    """What sethostname(2) takes and a hosts file can hold."""
    if value and (len(value) > HOSTNAME_LIMIT or not _HOSTNAME.match(value)):
        raise InvalidInput(
            f"{_shown(value)} is not a host name of at most {HOSTNAME_LIMIT} letters, digits, dots and dashes",
            field=field,
        )
    return value


def address(value: str, field: str, *, required: bool = False) -> str:
    """An IPv4 or IPv6 address."""
    text(value, field, limit=NAME_LIMIT, required=required)
    if value:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise InvalidInput(f"{_shown(value)} is not an IP address", field=field) from None
    return value


def between(value: int, low: int, high: int, field: str) -> int:
    """A number in a closed range."""
    if not low <= value <= high:
        raise InvalidInput(f"{value} is not between {low} and {high}", field=field)
    return value


def choice(known: Mapping[int, T], value: int, field: str) -> T:
    """What an enum's number stands for. proto3 lets unknown numbers through."""
    try:
        return known[value]
    except KeyError:
        raise InvalidInput(f"{value} is none of {', '.join(str(number) for number in known)}", field=field) from None


def listed(values: Iterable[T], field: str, *, limit: int = LIST_LIMIT) -> list[T]:
    """A list of bounded length."""
    found = list(values)
    if len(found) > limit:
        raise InvalidInput(f"has {len(found)} entries, more than {limit}", field=field)
    return found


def arguments(values: Iterable[str], field: str) -> tuple[str, ...]:
    """A command line that execve(2) takes."""
    found = listed(values, field, limit=1 << 16)
    for number, value in enumerate(found):
        text(value, f"{field}[{number}]", limit=ARGUMENT_LIMIT)
    if sum(len(value) for value in found) > ARGUMENTS_LIMIT:
        raise InvalidInput(f"is longer than {ARGUMENTS_LIMIT} bytes in all", field=field)
    return tuple(found)


def lines(values: Iterable[str], field: str, *, limit: int = NAME_LIMIT) -> tuple[str, ...]:
    """A list of lines, none empty."""
    found = listed(values, field)
    return tuple(line(value, f"{field}[{number}]", limit=limit, required=True) for number, value in enumerate(found))


def paths(values: Iterable[str], field: str) -> tuple[str, ...]:
    """A list of absolute paths."""
    found = listed(values, field)
    return tuple(absolute(value, f"{field}[{number}]", required=True) for number, value in enumerate(found))


def strings(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels or annotations: keys are lines, values any text."""
    found = dict(values)
    for key, value in found.items():
        line(key, f"{field} key", limit=NAME_LIMIT, required=True)
        text(value, f"{field}[{key!r}]", limit=MAP_LIMIT)
    if sum(len(key) + len(value) for key, value in found.items()) > MAP_LIMIT:
        raise InvalidInput(f"is larger than {MAP_LIMIT} bytes in all", field=field)
    return found

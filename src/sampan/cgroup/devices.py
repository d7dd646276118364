"""Device rules: the default list, and what a list of rules in order amounts to.

A list starts from "everything is denied". Rules apply in order; a later one wins. The v1 controller knows only a
default and exceptions to it, so the list is first boiled down to that form; cgroup v2 takes it as it is, as a program.
"""

from __future__ import annotations

from sampan.errors import InvalidInput, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ANY = -1


def _rule(kind: str, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


#: What every container may use beyond its own list, as with runc: making any node, the devices of the runtime
#: specification's default list, the ttys of its own devpts, and tun (gone in runc 1.2.0, back since 1.2.4 because
#: virtual private networks in containers are common; without a node and CAP_NET_ADMIN it serves for nothing).
DEFAULT_DEVICES: tuple[dict[str, Any], ...] = (
    _rule("c", _ANY, _ANY, "m"),
    _rule("b", _ANY, _ANY, "m"),
    _rule("c", 1, 3),  # null
    _rule("c", 1, 5),  # zero
    _rule("c", 1, 7),  # full
    _rule("c", 1, 8),  # random
    _rule("c", 1, 9),  # urandom
    _rule("c", 5, 0),  # tty
    _rule("c", 5, 2),  # ptmx
    _rule("c", 136, _ANY),  # pts/*
    _rule("c", 10, 200),  # net/tun
)


class Rule:
    """A device rule in checked form. ``kind`` is ``a``, ``b`` or ``c``; -1 as a number stands for any."""

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, allow: bool, kind: str, major: int, minor: int, access: str) -> None:
        self.allow = allow
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    def key(self) -> tuple[str, int, int]:
        """What the rule is about."""
        return (self.kind, self.major, self.minor)

    def text(self) -> str:
        """The form that ``devices.allow`` and ``devices.deny`` take (Documentation/admin-guide/cgroup-v1/devices)."""
        major = "*" if self.major == _ANY else str(self.major)
        minor = "*" if self.minor == _ANY else str(self.minor)
        return f"{self.kind} {major}:{minor} {self.access}"


def parse(rules: list[dict[str, Any]], *, defaults: bool = True) -> list[Rule]:
    """Check OCI ``resources.devices`` and append the default list.

    Raises:
        InvalidInput: A rule has an unknown type or access letter.
    """
    found = []
    for index, rule in enumerate([*rules, *DEFAULT_DEVICES] if defaults else rules):
        field = f"linux.resources.devices[{index}]"
        kind = rule.get("type") or "a"
        if kind not in ("a", "b", "c", "u"):
            raise InvalidInput(f"{kind!r} is not one of a, b, c, u", field=f"{field}.type")
        access = rule.get("access") or "rwm"
        if set(access) - set("rwm"):
            raise InvalidInput(f"{access!r} has other letters than r, w, m", field=f"{field}.access")
        major, minor = (_number(rule, name, field) for name in ("major", "minor"))
        kind = "c" if kind == "u" else kind
        if kind == "a":
            major = minor = _ANY
            access = "rwm"  # the kernel and runc read a wildcard as everything
        found.append(Rule(bool(rule.get("allow")), kind, major, minor, "".join(x for x in "rwm" if x in access)))
    return found


def _number(rule: dict[str, Any], name: str, field: str) -> int:
    value = rule.get(name)
    if value is None:
        return _ANY
    if not isinstance(value, int) or not -1 <= value <= 0xFFFFFFFF:
        raise InvalidInput(f"{value!r} is no device number", field=f"{field}.{name}")
    return value


class Policy:
    """What a list of rules amounts to: a default and exceptions to it, each ``(kind, major, minor)`` -> letters."""

    __slots__ = ("allow_all", "exceptions")

    def __init__(self) -> None:
        self.allow_all = False
        self.exceptions: dict[tuple[str, int, int], set[str]] = {}

    def writes(self) -> list[tuple[str, str]]:
        """``(file, text)`` to be written to a v1 group, whatever its rules were before; in the order of the list."""
        lines = [("devices.allow" if self.allow_all else "devices.deny", "a")]
        name = "devices.deny" if self.allow_all else "devices.allow"
        for (kind, major, minor), letters in self.exceptions.items():
            access = "".join(letter for letter in "rwm" if letter in letters)
            lines.append((name, Rule(not self.allow_all, kind, major, minor, access).text()))
        return lines


def reduce(rules: list[Rule]) -> Policy:
    """Boil rules in order down to a policy that a v1 group can hold.

    Raises:
        Unsupported: A rule takes back part of a wider one, which a default with exceptions cannot say.
    """
    policy = Policy()
    for rule in rules:
        if rule.kind == "a":
            policy.allow_all = rule.allow
            policy.exceptions.clear()
        elif rule.allow != policy.allow_all:
            policy.exceptions.setdefault(rule.key(), set()).update(rule.access)
        else:
            _take_back(policy, rule)
    return policy


def _take_back(policy: Policy, rule: Rule) -> None:
    """Apply a rule that says what the default says: it undoes earlier exceptions that it covers."""
    for key in list(policy.exceptions):
        letters = policy.exceptions[key]
        if not letters & set(rule.access) or not _overlaps(rule, key):
            continue
        if not _covers(rule, key):
            raise Unsupported(
                f"device rule {rule.text()!r} takes back a part of an earlier, wider rule",
                hint="list the devices one by one, or use cgroup v2",
            )
        letters -= set(rule.access)
        if not letters:
            del policy.exceptions[key]


def _covers(rule: Rule, key: tuple[str, int, int]) -> bool:
    return rule.kind == key[0] and rule.major in (_ANY, key[1]) and rule.minor in (_ANY, key[2])


def _overlaps(rule: Rule, key: tuple[str, int, int]) -> bool:
    if rule.kind != key[0]:
        return False
    return all(a == b or _ANY in (a, b) for a, b in ((rule.major, key[1]), (rule.minor, key[2])))

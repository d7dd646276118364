"""Limits and device rules in systemd's words (systemd.resource-control(5)), as D-Bus variants.

What systemd has a word for it must be told: it writes its own idea of it into the group again whenever it reloads.
"""

from __future__ import annotations

from sampan.cgroup import devices
from sampan.cgroup.hierarchy import read_file
from sampan.cgroup.v2_limits import io_weight, weight_of_shares
from sampan.errors import InvalidInput, SampanError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Property = tuple[str, tuple[str, Any]]

_NO_LIMIT = 2**64 - 1
_KINDS = {"b": ("block", "/dev/block"), "c": ("char", "/dev/char")}
#: Keys of ``linux.resources.unified`` whose value is a number of bytes or of things, or "max".
_AMOUNTS = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}


def properties(resources: dict[str, Any], *, v2: bool) -> list[Property]:
    """The limits of ``linux.resources`` that systemd has names for; a later one of a name wins."""
    cpu = resources.get("cpu") or {}
    found = [*_cpu(cpu, v2=v2), *_memory(resources.get("memory") or {}, v2=v2)]
    if (resources.get("pids") or {}).get("limit"):
        found.append(("TasksMax", ("t", _unsigned(resources["pids"]["limit"]))))
    if v2 and (weight := (resources.get("blockIO") or {}).get("weight")):
        found.append(("IOWeight", ("t", io_weight(weight))))
    if v2:
        for key, value in (resources.get("unified") or {}).items():
            found += _unified(key, str(value))
    return found


def _cpu(cpu: dict[str, Any], *, v2: bool) -> list[Property]:
    found: list[Property] = []
    if v2 and cpu.get("idle"):
        found.append(("CPUWeight", ("t", 0)))  # "idle", since systemd 252
    elif cpu.get("shares"):
        name, value = ("CPUWeight", weight_of_shares(cpu["shares"])) if v2 else ("CPUShares", cpu["shares"])
        found.append((name, ("t", value)))
    if cpu.get("quota"):
        found += _quota(cpu["quota"], cpu.get("period") or 0)
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if v2 and cpu.get(key):
            found.append((name, ("ay", _bits(cpu[key], f"cpu.{key}"))))
    return found


def _memory(memory: dict[str, Any], *, v2: bool) -> list[Property]:
    found: list[Property] = []
    if memory.get("limit"):
        found.append(("MemoryMax" if v2 else "MemoryLimit", ("t", _unsigned(memory["limit"]))))
    if v2 and memory.get("reservation"):
        found.append(("MemoryLow", ("t", _unsigned(memory["reservation"]))))
    if v2 and memory.get("swap") and memory.get("limit", 0) > 0:
        swap = memory["swap"] - memory["limit"] if memory["swap"] > 0 else -1
        found.append(("MemorySwapMax", ("t", _unsigned(swap))))
    return found


def device_properties(rules: list[dict[str, Any]]) -> list[Property]:
    """What systemd's own device filter must let pass. Both filters decide, so it is never narrower than ours."""
    allowed = allowed_devices(rules)
    if allowed is None:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    # The list is added to, and an empty one clears it.
    return [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),
        ("DeviceAllow", ("a(ss)", allowed)),
    ]


def allowed_devices(rules: list[dict[str, Any]]) -> list[tuple[str, str]] | None:
    """``(device, access)`` for each rule that allows; None where a list of what is allowed cannot say what they do.

    systemd has no word for a denial, so a rule that takes something back from an earlier one leaves the matter to our
    own filter, as does one whose major number has no name in /proc/devices.
    """
    try:
        policy = devices.reduce(devices.parse(rules))
    except SampanError:
        return None  # said where our own filter is made, or said there alone
    if policy.allow_all:
        return None
    names = _driver_names()
    found: list[tuple[str, str]] = []
    for (kind, major, minor), letters in policy.exceptions.items():
        word, folder = _KINDS[kind]
        access = "".join(letter for letter in "rwm" if letter in letters)
        if major < 0:
            if minor >= 0:
                return None
            found.append((f"{word}-*", access))
        elif minor < 0:
            if (kind, major) not in names:
                return None
            found.append((f"{word}-{names[kind, major]}", access))
        else:
            found.append((f"{folder}/{major}:{minor}", access))
    return found


def _driver_names() -> dict[tuple[str, int], str]:
    """(kind, major) -> name, from /proc/devices; a name that several numbers have means all of them."""
    found: dict[tuple[str, int], str] = {}
    kind = ""
    for line in read_file("/proc/devices").splitlines():
        if line.endswith("devices:"):
            kind = line[0].lower()
        elif line:
            number, _, name = line.strip().partition(" ")
            found[kind, int(number)] = name
    return found


def _unified(key: str, value: str) -> list[Property]:
    field = f"unified.{key}"
    if name := _AMOUNTS.get(key):
        return [(name, ("t", _NO_LIMIT if value == "max" else _number(value, field)))]
    if key == "cpu.weight":
        return [("CPUWeight", ("t", _number(value, field)))]
    if key == "cpu.idle":
        return [("CPUWeight", ("t", 0))] if _number(value, field) else []
    if key == "cpu.max":
        quota, _, period = value.partition(" ")
        return _quota(-1 if quota == "max" else _number(quota, field), _number(period, field) if period else 0)
    if key in ("cpuset.cpus", "cpuset.mems"):
        return [("AllowedCPUs" if key == "cpuset.cpus" else "AllowedMemoryNodes", ("ay", _bits(value, field)))]
    return []


def _number(text: str, field: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no number", field=f"linux.resources.{field}") from None


def _unsigned(value: int) -> int:
    return _NO_LIMIT if value < 0 else value


def _quota(quota: int, period: int) -> list[Property]:
    found: list[Property] = [("CPUQuotaPerSecUSec", ("t", _per_second(quota, period or 100_000)))]
    if period:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    return found


def _per_second(quota: int, period: int) -> int:
    """Microseconds a second, rounded up to the hundredth of a processor that systemd counts in."""
    if quota < 0:
        return _NO_LIMIT
    value = quota * 1_000_000 // period
    return -(-value // 10_000) * 10_000


def _bits(text: str, field: str) -> bytes:
    """A list of numbers as systemd's bit mask: bytes, the lowest number in the lowest bit of the first."""
    from sampan.cgroup.v1_stats import parse_list

    try:
        value = sum(1 << number for number in set(parse_list(text)))
    except ValueError:
        raise InvalidInput(f"{text!r} is no list of numbers", field=f"linux.resources.{field}") from None
    return value.to_bytes((value.bit_length() + 7) // 8 or 1, "little")

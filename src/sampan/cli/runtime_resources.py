"""`update` and `events`."""

from __future__ import annotations

import os
import select
import time

from sampan.cli.runtime import Context, container_id
from sampan.cli.runtime_options import FLAG, NUMBER, VALUE, Option, Parsed
from sampan.cli.runtime_output import write_text
from sampan.errors import InvalidInput, SampanError, StageFailed, WrongState
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.runtime.native import NativeHandler

#: Option -> (section and key of linux.resources, kind, text).
_LIMITS: dict[str, tuple[str, str, str, str]] = {
    "blkio-weight": ("blockIO", "weight", NUMBER, "weight of block I/O, 10 to 1000"),
    "cpu-period": ("cpu", "period", VALUE, "CFS period in microseconds"),
    "cpu-quota": ("cpu", "quota", VALUE, "CFS quota in microseconds a period"),
    "cpu-burst": ("cpu", "burst", VALUE, "CFS burst in microseconds"),
    "cpu-share": ("cpu", "shares", VALUE, "weight among other containers"),
    "cpu-rt-period": ("cpu", "realtimePeriod", VALUE, "real-time period in microseconds"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", VALUE, "real-time budget in microseconds a period"),
    "cpu-idle": ("cpu", "idle", NUMBER, "1: run only when nothing else does"),
    "cpuset-cpus": ("cpu", "cpus", VALUE, "processors: 0-2,7"),
    "cpuset-mems": ("cpu", "mems", VALUE, "memory nodes"),
    "memory": ("memory", "limit", VALUE, "memory limit: bytes, or with a suffix of b, k, m, g"),
    "memory-reservation": ("memory", "reservation", VALUE, "soft limit"),
    "memory-swap": ("memory", "swap", VALUE, "limit of memory and swap together; -1: none"),
    "pids-limit": ("pids", "limit", NUMBER, "most processes and threads"),
}
#: Of which 0 is a value like others in a file of resources, as runc has it.
_ZERO_COUNTS = frozenset(("burst", "idle"))
_SIZES = frozenset(("memory", "memory-reservation", "memory-swap"))
_TEXTS = frozenset(("cpuset-cpus", "cpuset-mems"))
#: Which kernels have no more: read and warned of, as runc does.
_BYGONE = ("kernel-memory", "kernel-memory-tcp")

OPTIONS = {
    "update": (
        Option(
            "resources,r", VALUE, "file of linux.resources, or - for standard input; other options are ignored then"
        ),
        *(Option(name, kind, text) for name, (_, _, kind, text) in _LIMITS.items()),
        *(Option(name, VALUE, "ignored: kernels have no such limit any more") for name in _BYGONE),
        Option("l3-cache-schema", VALUE, "Intel RDT schema"),
        Option("mem-bw-schema", VALUE, "Intel RDT schema"),
    ),
    "events": (
        Option("interval", VALUE, "time between two reports (default: 5s)"),
        Option("stats", FLAG, "print the statistics once"),
    ),
}


def command_update(context: Context, parsed: Parsed) -> int:
    """Change limits of a container."""
    name = container_id(parsed)
    for option in ("l3-cache-schema", "mem-bw-schema"):
        if parsed.given(option):
            raise InvalidInput("Intel RDT is not supported", field=f"--{option}")
    for option in filter(parsed.given, _BYGONE):
        size(parsed.value(option), option)
        context.report("warning", f"--{option} is ignored: kernels have no such limit any more")
    resources = _read_resources(parsed.value("resources")) if parsed.given("resources") else limits(parsed)
    context.handler().update(name, resources)
    return 0


def _read_resources(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            content = b""
            while chunk := os.read(0, 65536):
                content += chunk
        else:
            with open(path, "rb") as file:
                content = file.read(1 << 20)
        document = jsontext.loads(content)
    except OSError as error:
        raise StageFailed("read resources", error, path=path) from error
    except ValueError as error:
        raise InvalidInput(f"is not JSON: {error}", field=path) from None
    if not isinstance(document, dict):
        raise InvalidInput("is not a JSON object", field=path)
    # runc's own callers (docker update, for one) write 0 for "as it is".
    return {
        section: {key: value for key, value in values.items() if value not in (0, "", None) or key in _ZERO_COUNTS}
        if section in ("cpu", "memory", "pids", "blockIO") and isinstance(values, dict)
        else values
        for section, values in document.items()
        if section != "devices"
    }


def limits(parsed: Parsed) -> dict[str, Any]:
    """The limits that the options name."""
    resources: dict[str, Any] = {}
    for option, (section, key, _, _) in _LIMITS.items():
        if not parsed.given(option):
            continue
        if option in _SIZES:
            value: int | str = size(parsed.value(option), option)
        else:
            value = parsed.value(option) if option in _TEXTS else parsed.number(option)
        resources.setdefault(section, {})[key] = value
    return resources


def size(text: str, option: str) -> int:
    """Bytes: a number, with a suffix for multiples of 1024 (512, 64m, 1.5GiB)."""
    lowered = text.strip().lower()
    digits = lowered.rstrip("bkmgtpi ")
    unit = lowered[len(digits) :].strip().removesuffix("b").removesuffix("i")
    factor = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}.get(unit)
    try:
        if factor is None:
            raise ValueError
        return int(float(digits) * (1 << factor)) if "." in digits else int(digits) << factor
    except ValueError:
        raise InvalidInput(f"{text!r} is no size", field=f"--{option}") from None


def duration(text: str) -> float:
    """Seconds of a duration in Go's form: 5s, 1m30s, 500ms."""
    units = {"ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, rest = 0.0, text
    try:
        while rest:
            digits = rest[: len(rest) - len(rest.lstrip("0123456789."))]
            rest = rest[len(digits) :]
            letters = rest[: len(rest) - len(rest.lstrip("nuµmsh"))]
            rest = rest[len(letters) :]
            total += float(digits) * units[letters]
    except (ValueError, KeyError):
        raise InvalidInput(f"{text!r} is no duration", field="--interval") from None
    if total <= 0:
        raise InvalidInput("must be more than nothing", field="--interval")
    return total


def command_events(context: Context, parsed: Parsed) -> int:
    """Print statistics, and out-of-memory events as they come, until the container stops."""
    name = container_id(parsed)
    interval = duration(parsed.value("interval", "5s"))
    handler = context.handler()
    state = handler.state(name)
    if state["status"] == "stopped":
        raise WrongState(f"container with id {name} is not running")
    if parsed.flag("stats"):
        _print(name, "stats", handler.stats(name))
        return 0
    _follow(handler, name, int(state["pid"]), interval)
    return 0


def _follow(handler: NativeHandler, name: str, pid: int, interval: float) -> None:
    from sampan.linux.process import pidfd_open

    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return
    watch = handler.group(name).oom_watch()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(watch.fd, watch.events)
    killed, following = watch.kills(), 0.0
    while True:
        now = time.monotonic()
        if now >= following:
            try:
                _print(name, "stats", handler.stats(name))
            except SampanError:
                return  # it stopped meanwhile
            following = now + interval
        ready = {fd for fd, _ in poll.poll(max(0.0, following - time.monotonic()) * 1000)}
        if watch.fd in ready and (count := watch.drain()) > killed:
            killed = count
            _print(name, "oom", None)
        if pidfd in ready:
            return


def _print(name: str, kind: str, data: object) -> None:
    event = {"type": kind, "id": name}
    if data is not None:
        event["data"] = data  # type: ignore[assignment]
    write_text(jsontext.dumps(event) + "\n")

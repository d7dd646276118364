"""Values of flags: volumes, ports, sizes, environments, in the forms that docker and nerdctl take."""

import os
import re
from typing import TYPE_CHECKING

from sampan.engine.model import Mount, PortMapping
from sampan.errors import InvalidInput

if TYPE_CHECKING:
    from sampan.registry.credentials import Credentials

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|\d+(?:\.\d+){3}):)?(?:(?P<host>[\d-]*):)?(?P<inner>[\d-]+)(?:/(?P<proto>\w+))?"
)


def size(text: str, flag: str) -> int:
    """``64m``, ``1.5g``, ``4096``: bytes.

    Raises:
        InvalidInput: Not of that form.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f'"{text}" is no size', field=flag, hint="such as 512m or 2g")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def volume(text: str) -> Mount:
    """``SOURCE:TARGET[:OPTIONS]``.

    Raises:
        InvalidInput: Paths that are not absolute, or an unknown option.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise InvalidInput(f'"{text}" is not SOURCE:TARGET[:OPTIONS]', field="--volume")
    source, target = os.path.abspath(parts[0]) if parts[0].startswith(".") else parts[0], parts[1]
    for path in (source, target):
        if not path.startswith("/"):
            raise InvalidInput(
                f'"{path}" is not absolute', field="--volume", hint="named volumes are not kept; bind a path"
            )
    if not os.path.exists(source):
        raise InvalidInput(f'"{source}" does not exist', field="--volume", hint="make it, or correct the path")
    options = set(parts[2].split(",")) if len(parts) == 3 else set()
    unknown = options - {"ro", "rw", "rro", "rslave", "rshared", "rprivate", "z", "Z"}
    if unknown:
        raise InvalidInput(f'unknown option "{unknown.pop()}"', field="--volume")
    propagation = "rshared" if "rshared" in options else "rslave" if "rslave" in options else "private"
    return Mount(
        container_path=target,
        host_path=source,
        readonly=bool(options & {"ro", "rro"}),
        recursive_readonly="rro" in options,
        propagation=propagation,  # type: ignore[arg-type]
    )


def ports(text: str) -> list[PortMapping]:
    """``[IP:][HOST:]CONTAINER[/PROTOCOL]``, either side a number or a range.

    Raises:
        InvalidInput: Not of that form, or ranges of different length.
    """
    match = _PORT.fullmatch(text)
    protocol = (match["proto"] or "tcp").lower() if match else ""
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise InvalidInput(
            f'"{text}" is no port mapping', field="--publish", hint="such as 8080:80 or 127.0.0.1:53:53/udp"
        )
    inner = _range(match["inner"], text)
    host = _range(match["host"], text) if match["host"] else inner
    if len(inner) != len(host):
        raise InvalidInput(f'"{text}" has ranges of different length', field="--publish")
    address = (match["ip"] or "").strip("[]")
    return [
        PortMapping(container_port=i, host_port=h, protocol=protocol, host_ip=address)  # type: ignore[arg-type]
        for i, h in zip(inner, host, strict=True)
    ]


def _range(text: str, whole: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise InvalidInput(f'"{whole}" is no port mapping', field="--publish")
    found = range(int(first), int(last or first) + 1)
    if not found or found[0] < 1 or found[-1] > 65535:
        raise InvalidInput(f'"{whole}" is outside of 1 to 65535', field="--publish")
    return found


def environment(given: tuple[str, ...], files: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE``, or ``NAME`` with its value from our own environment; files hold one such a line.

    Raises:
        InvalidInput: A file that can't be read.
    """
    entries: list[str] = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                entries += [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}", field="--env-file") from error
    entries += given
    pairs = []
    for entry in entries:
        name, equals, value = entry.partition("=")
        if equals:
            pairs.append((name, value))
        elif name in os.environ:
            pairs.append((name, os.environ[name]))
    return tuple(pairs)


def credentials(text: str) -> "Credentials | None":
    """``USER:PASSWORD``, the password asked for where it is left out; None for nothing.

    Raises:
        InvalidInput: There is no user.
    """
    if not text:
        return None
    import click

    from sampan.registry.credentials import Credentials

    user, colon, password = text.partition(":")
    if not user:
        raise InvalidInput("is not USER[:PASSWORD]", field="--creds")
    return Credentials(user, password if colon else click.prompt("Password", hide_input=True, err=True))

"""From a container's security request to the parts of config.json that grant or withhold.

The defaults are containerd's (its ``oci`` and ``cri`` packages): fourteen capabilities, masked and read-only paths.
"""

import json
from collections.abc import Iterable
from typing import Any

from sampan.engine.model import Security, SecurityProfile
from sampan.errors import InvalidInput
from sampan.linux.capabilities import NAMES
from sampan.spec import kernel_files

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

_MAX_PROFILE = 8 << 20


def held_capabilities() -> frozenset[str]:
    """The capabilities in this process's own bounding set: none beyond them can be given to a container."""
    with open("/proc/self/status", encoding="ascii") as status:
        mask = next(int(line[7:], 16) for line in status if line.startswith("CapBnd:"))
    return frozenset(name for number, name in enumerate(NAMES) if mask >> number & 1)


def _names(given: Iterable[str], field: str) -> tuple[set[str], bool]:
    """Those that are named, and whether ALL is among them."""
    names: set[str] = set()
    every = False
    for position, text in enumerate(given):
        name = text.upper()
        if name == "ALL":
            every = True
            continue
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        if name not in NAMES:
            raise InvalidInput(f'unknown capability "{text}"', field=f"{field}[{position}]", hint="see capabilities(7)")
        names.add(name)
    return names, every


def capabilities(security: Security) -> dict[str, list[str]]:
    """The five sets of ``process.capabilities``.

    A privileged container gets all that this process has. Inheritable stays empty unless ambient capabilities are
    asked for (CVE-2022-29162).

    Raises:
        InvalidInput: An unknown name.
    """
    held = held_capabilities()
    drop, drop_all = _names(security.drop_capabilities, "security.drop_capabilities")
    add, add_all = _names(security.add_capabilities, "security.add_capabilities")
    ambient, ambient_all = _names(security.add_ambient_capabilities, "security.add_ambient_capabilities")
    if ambient_all:
        ambient = set(NAMES)
    if security.privileged:
        granted = set(held)
    else:
        # To drop all is to start from nothing; a name that is dropped is dropped from what is added, too.
        base = set(NAMES) if add_all else set() if drop_all else set(DEFAULT_CAPABILITIES)
        granted = ((base | add | ambient) - drop) & held
    ordered = [name for name in NAMES if name in granted]
    raised = [name for name in ordered if name in ambient]
    return {
        "bounding": ordered,
        "effective": ordered,
        "permitted": ordered,
        "inheritable": raised,
        "ambient": raised,
    }


def masked_paths(security: Security) -> list[str]:
    """``linux.maskedPaths``: the request's, or the default; none for a privileged container."""
    if security.privileged:
        return []
    return list(kernel_files.HIDDEN if security.masked_paths is None else security.masked_paths)


def readonly_paths(security: Security) -> list[str]:
    """``linux.readonlyPaths``: the request's, or the default; none for a privileged container."""
    if security.privileged:
        return []
    return list(kernel_files.READ_ONLY if security.readonly_paths is None else security.readonly_paths)


def seccomp(security: Security, bounding: list[str]) -> dict[str, Any] | None:
    """``linux.seccomp``, or None for an unconfined or privileged container.

    Args:
        security: The request; a ``localhost`` profile is read from its absolute path.
        bounding: The container's bounding set: the default profile depends on it.

    Raises:
        InvalidInput: The profile is missing, too large or no JSON object.
    """
    profile = security.seccomp
    if security.privileged or profile.kind == "unconfined":
        return None
    if profile.kind == "default":
        from sampan.runtime.seccomp_default import profile as default_profile

        return default_profile(bounding)
    return _localhost(profile)


def _localhost(profile: SecurityProfile) -> dict[str, Any]:
    field = "security.seccomp.reference"
    if not profile.reference.startswith("/"):
        raise InvalidInput(f'"{profile.reference}" is not an absolute path', field=field)
    try:
        with open(profile.reference, "rb") as file:
            text = file.read(_MAX_PROFILE + 1)
    except OSError as error:
        raise InvalidInput(f"seccomp profile {profile.reference}: {error.strerror}", field=field) from error
    try:
        section = json.loads(text) if len(text) <= _MAX_PROFILE else None
    except ValueError as error:
        raise InvalidInput(f"seccomp profile {profile.reference}: {error}", field=field) from error
    if not isinstance(section, dict):
        raise InvalidInput(f"seccomp profile {profile.reference} is not a JSON object of at most 8 MiB", field=field)
    return section

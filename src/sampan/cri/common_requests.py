"""Parts that requests for pods and for containers share: namespaces, ids, limits, security profiles."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from sampan.cri import api_pb2 as pb
from sampan.cri import fields
from sampan.engine.model import (
    IdMapping,
    NamespaceMode,
    Namespaces,
    Resources,
    SecurityProfile,
    SelinuxLabel,
)
from sampan.errors import InvalidInput

#: The highest user or group id: (uid_t)-1 means "no change" to the kernel (setuid(2)).
ID_LIMIT = (1 << 32) - 2
_INT64 = (1 << 63) - 1
#: Shares outside of these are made one of them by the kernel (MIN_SHARES and MAX_SHARES of its scheduler).
_SHARES = (2, 1 << 18)

_MODES: dict[int, NamespaceMode] = {pb.POD: "pod", pb.CONTAINER: "container", pb.NODE: "node", pb.TARGET: "target"}
_SHARED: dict[int, NamespaceMode] = {pb.POD: "pod", pb.NODE: "node"}
POLICIES: dict[int, Literal["merge", "strict"]] = {pb.Merge: "merge", pb.Strict: "strict"}

_CPUSET = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\Z")
_PAGE_SIZE = re.compile(r"[1-9][0-9]*[KMG]B\Z")
_UNIFIED = re.compile(r"[a-z0-9_]+(?:\.[a-zA-Z0-9_]+)+\Z")


def namespaces(options: pb.NamespaceOption, field: str, *, pod: bool) -> Namespaces:
    """Namespace modes. An absent message means POD throughout, as the zero value does."""
    pid = fields.choice(_MODES, options.pid, f"{field}.pid")
    if pod and pid == "target":
        raise InvalidInput("TARGET has no meaning for a pod", field=f"{field}.pid")
    target = fields.word(options.target_id, f"{field}.target_id", required=pid == "target")
    uids, gids = _user_namespace(options, f"{field}.userns_options")
    return Namespaces(
        network=fields.choice(_SHARED, options.network, f"{field}.network"),
        pid=pid,
        ipc=fields.choice(_SHARED, options.ipc, f"{field}.ipc"),
        target_id=target if pid == "target" else "",
        uid_mappings=uids,
        gid_mappings=gids,
    )


def _user_namespace(options: pb.NamespaceOption, field: str) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    if not options.HasField("userns_options"):
        return (), ()
    userns = options.userns_options
    mode = fields.choice(_SHARED, userns.mode, f"{field}.mode")
    if mode == "node":
        if userns.uids or userns.gids:
            raise InvalidInput("mappings have no meaning with mode NODE", field=f"{field}.uids")
        return (), ()
    return _root_mapping(userns.uids, f"{field}.uids"), _root_mapping(userns.gids, f"{field}.gids")


def _root_mapping(mappings: Iterable[pb.IDMapping], field: str) -> tuple[IdMapping, ...]:
    found = id_mappings(mappings, field)
    if len(found) != 1:
        raise InvalidInput(f"has {len(found)} mappings where exactly one is supported", field=field)
    if found[0].container_id != 0:
        raise InvalidInput("does not map the container's id 0", field=field)
    return found


def id_mappings(mappings: Iterable[pb.IDMapping], field: str) -> tuple[IdMapping, ...]:
    """Id mappings; at most 340 of them fit into the kernel (user_namespaces(7))."""
    found = fields.listed(mappings, field, limit=340)
    for number, each in enumerate(found):
        if not each.length:
            raise InvalidInput("is zero", field=f"{field}[{number}].length")
        for side, first in (("host_id", each.host_id), ("container_id", each.container_id)):
            if first + each.length - 1 > ID_LIMIT:
                raise InvalidInput(f"with its length goes above {ID_LIMIT}", field=f"{field}[{number}].{side}")
    return tuple(IdMapping(container_id=m.container_id, host_id=m.host_id, size=m.length) for m in found)


def user_id(value: pb.Int64Value, field: str) -> int:
    """A user or group id."""
    return fields.between(value.value, 0, ID_LIMIT, field)


def groups(values: Iterable[int], field: str) -> tuple[int, ...]:
    """Supplemental groups; NGROUPS_MAX of them at most (setgroups(2))."""
    found = fields.listed(values, field, limit=1 << 16)
    return tuple(fields.between(value, 0, ID_LIMIT, f"{field}[{number}]") for number, value in enumerate(found))


def selinux(options: pb.SELinuxOption, field: str) -> SelinuxLabel:
    """The parts of an SELinux context. None may hold what separates them; a level may."""
    for name in ("user", "role", "type"):
        if ":" in fields.word(getattr(options, name), f"{field}.{name}"):
            raise InvalidInput("holds a colon", field=f"{field}.{name}")
    level = fields.word(options.level, f"{field}.level")
    return SelinuxLabel(user=options.user, role=options.role, type=options.type, level=level)


def profile(given: pb.SecurityProfile, field: str, *, path: bool) -> SecurityProfile:
    """A seccomp profile (``path``: a file of the machine) or an AppArmor profile (a loaded one's name)."""
    kind = given.profile_type
    if kind == pb.SecurityProfile.RuntimeDefault:
        return SecurityProfile("default")
    if kind == pb.SecurityProfile.Unconfined:
        return SecurityProfile("unconfined")
    if kind != pb.SecurityProfile.Localhost:
        raise InvalidInput(f"{kind} is none of 0, 1, 2", field=f"{field}.profile_type")
    check = fields.absolute if path else fields.line
    # Older kubelets gave the file in the form of the deprecated field.
    reference = given.localhost_ref.removeprefix("localhost/")
    return SecurityProfile("localhost", check(reference, f"{field}.localhost_ref", required=True))


def named_profile(text: str, field: str, *, path: bool) -> SecurityProfile | None:
    """A profile in the deprecated form: ``runtime/default``, ``unconfined``, ``localhost/NAME``; None for nothing."""
    fields.line(text, field, limit=fields.PATH_LIMIT)
    if not text:
        return None
    if text in ("runtime/default", "docker/default"):
        return SecurityProfile("default")
    if text == "unconfined":
        return SecurityProfile("unconfined")
    reference = text.removeprefix("localhost/")
    if reference == text:
        raise InvalidInput(f"{text[:60]!r} is no profile", field=field)
    return SecurityProfile("localhost", (fields.absolute if path else fields.line)(reference, field, required=True))


def resources(given: pb.LinuxContainerResources, field: str) -> Resources:
    """Limits; zero and the empty string leave one as it is. The bounds are the kernel's (cgroups(7))."""

    def number(name: str, low: int, high: int = _INT64) -> int | None:
        value: int = getattr(given, name)
        return fields.between(value, low, high, f"{field}.{name}") if value else None

    return Resources(
        cpu_period=number("cpu_period", 1000, 1_000_000),
        cpu_quota=_quota(given.cpu_quota, f"{field}.cpu_quota"),
        cpu_shares=_shares(given.cpu_shares, f"{field}.cpu_shares"),
        cpuset_cpus=_cpuset(given.cpuset_cpus, f"{field}.cpuset_cpus"),
        cpuset_mems=_cpuset(given.cpuset_mems, f"{field}.cpuset_mems"),
        memory_limit=number("memory_limit_in_bytes", -1),
        memory_swap_limit=number("memory_swap_limit_in_bytes", -1),
        oom_score_adj=fields.between(given.oom_score_adj, -1000, 1000, f"{field}.oom_score_adj"),
        hugepages=_hugepages(given.hugepage_limits, f"{field}.hugepage_limits"),
        unified=_unified(given.unified, f"{field}.unified"),
    )


def _quota(value: int, field: str) -> int | None:
    if not value:
        return None
    return -1 if value < 0 else fields.between(value, 1000, _INT64 // 1000, field)


def _shares(value: int, field: str) -> int | None:
    """Shares as they come to be in force, so that a status tells those."""
    least, most = _SHARES
    return max(least, fields.between(value, 1, most, field)) if value else None


def _cpuset(value: str, field: str) -> str:
    if value and not _CPUSET.match(fields.word(value, field, limit=fields.PATH_LIMIT)):
        raise InvalidInput(f"{value[:60]!r} is not a list such as 0-3,8", field=field)
    return value


def _hugepages(limits: Iterable[pb.HugepageLimit], field: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for position, limit in enumerate(fields.listed(limits, field, limit=64)):
        if not _PAGE_SIZE.match(limit.page_size):
            raise InvalidInput(f"{limit.page_size[:60]!r} is not a page size", field=f"{field}[{position}].page_size")
        found[limit.page_size] = fields.between(limit.limit, 0, _INT64, f"{field}[{position}].limit")
    return found


def _unified(values: Mapping[str, str], field: str) -> dict[str, str]:
    found = fields.strings(values, field)
    for key in found:
        if not _UNIFIED.match(key):
            raise InvalidInput(f"{key[:60]!r} is not a cgroup v2 file", field=f"{field} key")
    return found

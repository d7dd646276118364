"""Which namespace a kernel parameter belongs to (config-linux.md, "Sysctl"; namespaces(7))."""

from __future__ import annotations

_IPC = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced",
        "msg_next_id", "sem_next_id", "shm_next_id", "auto_msgmni",
    )
)  # fmt: skip
_UTS = frozenset(("kernel.domainname", "kernel.hostname"))
#: Where the kernel has a parameter for each interface, and what is there for those that are still to come.
_PER_INTERFACE = frozenset(f"net.{family}.{kind}" for family in ("ipv4", "ipv6") for kind in ("conf", "neigh"))
_ALWAYS = frozenset(("all", "default", "lo"))
_TURN = {ord("/"): ".", ord("."): "/"}


def namespace_of(name: str) -> str:
    """The type of namespace that a parameter, in the dotted form, belongs to; empty of the whole machine's."""
    if name in _IPC or name.startswith("fs.mqueue."):
        return "ipc"
    if name in _UTS:
        return "uts"
    return "network" if name.startswith("net.") else ""


def interface_of(name: str) -> str:
    """The network interface, other than lo, that a parameter is of; empty of any other parameter."""
    parts = dotted(name).split(".")
    of_one = len(parts) > 4 and ".".join(parts[:3]) in _PER_INTERFACE and parts[3] not in _ALWAYS
    return parts[3].translate(_TURN) if of_one else ""


def dotted(name: str) -> str:
    """A name in the dotted form: of "net/ipv4/conf/eth0.1/mtu" dots and slashes change places, as sysctl(8) has it."""
    slash, dot = name.find("/"), name.find(".")
    if slash < 0 or 0 <= dot < slash:
        return name
    return name.translate(_TURN)


def path_of(name: str) -> str:
    """The parameter's path below /proc/sys."""
    return dotted(name).translate(_TURN)

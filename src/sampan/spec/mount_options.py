"""Mount options of config.json, turned into what the mount calls take. Pure: touches nothing.

The names are those of mount(8) and of the table in the runtime specification's "Linux mount options". What no
table knows is handed to the file system as its own option.
"""

from __future__ import annotations

from sampan.linux import mount as m

# Option -> (attribute, whether it is set). Each is also known with an "r" before it: recursive.
_ATTRIBUTES = {
    "ro": (m.MOUNT_ATTR_RDONLY, True),
    "rw": (m.MOUNT_ATTR_RDONLY, False),
    "nosuid": (m.MOUNT_ATTR_NOSUID, True),
    "suid": (m.MOUNT_ATTR_NOSUID, False),
    "nodev": (m.MOUNT_ATTR_NODEV, True),
    "dev": (m.MOUNT_ATTR_NODEV, False),
    "noexec": (m.MOUNT_ATTR_NOEXEC, True),
    "exec": (m.MOUNT_ATTR_NOEXEC, False),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, True),
    "diratime": (m.MOUNT_ATTR_NODIRATIME, False),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, True),
    "symfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, False),
}
# The access-time modes are one field of the attributes, of which relatime is zero and the default.
_ATIME = {
    "relatime": 0,
    "norelatime": m.MOUNT_ATTR_STRICTATIME,
    "noatime": m.MOUNT_ATTR_NOATIME,
    "atime": 0,
    "strictatime": m.MOUNT_ATTR_STRICTATIME,
    "nostrictatime": 0,
}
# Flags of the superblock: fsconfig(2) takes them by name.
_SUPERBLOCK = {
    "sync": "sync",
    "async": "",
    "dirsync": "dirsync",
    "lazytime": "lazytime",
    "nolazytime": "",
    "mand": "mand",
    "nomand": "",
    "noiversion": "",
    "silent": "",
    "loud": "",
}
#: What the runtime itself does: option -> (attribute of :class:`MountOptions`, value).
_OURS = {
    "tmpcopyup": ("copy_up", True),
    "idmap": ("idmap", "idmap"),
    "ridmap": ("idmap", "ridmap"),
    "remount": ("remount", True),
}
_PROPAGATION = {
    "private": m.MS_PRIVATE,
    "slave": m.MS_SLAVE,
    "shared": m.MS_SHARED,
    "unbindable": m.MS_UNBINDABLE,
}
#: rootfsPropagation and the propagation options: name -> (type, recursive).
PROPAGATION = {
    **{name: (kind, False) for name, kind in _PROPAGATION.items()},
    **{f"r{name}": (kind, True) for name, kind in _PROPAGATION.items()},
}

#: Every option that is not handed to the file system, for the ``features`` command.
KNOWN = sorted(
    {
        "bind", "rbind", "defaults", *_OURS,
        *_ATTRIBUTES, *(f"r{name}" for name in _ATTRIBUTES),
        *_ATIME, *(f"r{name}" for name in _ATIME), *_SUPERBLOCK, *PROPAGATION,
    }
)  # fmt: skip


class MountOptions:
    """The options of one mount, sorted by who takes them."""

    __slots__ = (
        "bind",
        "clear",
        "copy_up",
        "data",
        "idmap",
        "propagation",
        "recursive",
        "recursive_clear",
        "recursive_set",
        "remount",
        "set",
    )

    def __init__(self) -> None:
        self.bind = False
        self.recursive = False
        #: Attributes of the mount itself to set and to clear.
        self.set = 0
        self.clear = 0
        #: Attributes of every mount of the tree.
        self.recursive_set = 0
        self.recursive_clear = 0
        #: (type, recursive), in the order given.
        self.propagation: list[tuple[int, bool]] = []
        #: Options of the file system: "key" or "key=value".
        self.data: list[str] = []
        self.copy_up = False
        #: "", "idmap" or "ridmap".
        self.idmap = ""
        #: What is mounted at the destination already is changed.
        self.remount = False


def parse(options: list[str]) -> MountOptions:
    """Sort options; a later one overrules an earlier one."""
    result = MountOptions()
    for option in options:
        _one(result, option)
    return result


def _one(result: MountOptions, option: str) -> None:
    if option in ("bind", "rbind"):
        result.bind = True
        result.recursive = result.recursive or option == "rbind"
    elif option in PROPAGATION:
        result.propagation.append(PROPAGATION[option])
    elif option in _ATTRIBUTES:
        bit, on = _ATTRIBUTES[option]
        result.set, result.clear = _change(result.set, result.clear, bit, on)
    elif option in _ATIME:
        result.clear |= m.MOUNT_ATTR_ATIME
        result.set = result.set & ~m.MOUNT_ATTR_ATIME | _ATIME[option]
    elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
        bit, on = _ATTRIBUTES[option[1:]]
        result.recursive_set, result.recursive_clear = _change(result.recursive_set, result.recursive_clear, bit, on)
    elif option[:1] == "r" and option[1:] in _ATIME:
        result.recursive_clear |= m.MOUNT_ATTR_ATIME
        result.recursive_set = result.recursive_set & ~m.MOUNT_ATTR_ATIME | _ATIME[option[1:]]
    elif option in _SUPERBLOCK:
        if _SUPERBLOCK[option]:
            result.data.append(_SUPERBLOCK[option])
    elif option in _OURS:
        setattr(result, *_OURS[option])
    elif option not in ("defaults", ""):
        result.data.append(option)


def _change(on: int, off: int, bit: int, value: bool) -> tuple[int, int]:
    return (on | bit, off & ~bit) if value else (on & ~bit, off | bit)

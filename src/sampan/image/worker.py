"""The process that applies one layer: it confines itself, then applies.

Started by whoever can fork or spawn (a zygote, or :mod:`sampan.storage.worker`) with descriptors and a small
argument. What it hands back is small too; lists of paths go through a file. On the import diet.
"""

from __future__ import annotations

import os
import sys

from isal import igzip_lib as _igzip_lib  # noqa: F401 - to be there when the root is no longer the machine's

from sampan.image.apply import Applied, Applier, NeedsParent
from sampan.image.decompress import Arriving, Stored, TarStream
from sampan.image.tar import Limits, Reader
from sampan.linux import capabilities
from sampan.linux.namespaces import CLONE_NEWIPC, CLONE_NEWNET, unshare
from sampan.linux.process import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, prctl
from sampan.linux.syscall import libc

#: What it takes to make files of any owner and kind; none of these leaves the root or opens a device in it. Not
#: CAP_DAC_READ_SEARCH, by which open_by_handle_at(2) opens any file of the file system that the root is on.
_KEPT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
)


#: Mark in the file of lists -> attribute of :class:`~sampan.image.apply.Applied`.
_LISTS = {b"o": "opaque", b"i": "implied", b"p": "presumed", b"w": "whiteouts"}

#: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of mallopt(3).
_MALLOC = ((-1, 64 << 20), (-3, 32 << 20), (-8, 1))


def main(argument: dict[str, object], fds: list[int]) -> dict[str, object]:
    """Apply a layer.

    Args:
        argument: ``merged``: see :mod:`sampan.image.apply`; ``arriving``: the bytes are still being written;
            ``confine``: give up what can be given up (always, but for callers without privileges).
        fds: Of the directory; of the layer's bytes; of an empty file for the lists of paths; with ``arriving`` of
            the pipe that tells the news.

    Returns:
        ``diff_id``, ``size``, ``entries``, ``bytes``, ``inodes``; or ``needs_parent`` with the reason.
    """
    root, data, lists = fds[:3]
    source = Arriving(data, fds[3]) if argument.get("arriving") else Stored(data)
    _warm_up(source.peek())
    if argument.get("confine", True):
        confine(root)
    limits = Limits()
    stream = TarStream(source, limits)
    try:
        applied = Applier(root, merged=bool(argument.get("merged")), limits=limits).apply(Reader(stream.pull))
    except NeedsParent as reason:
        return {"needs_parent": str(reason)}
    _write_lists(lists, applied)
    return {
        "diff_id": stream.digest,
        "size": stream.size,
        "entries": applied.entries,
        "bytes": applied.bytes,
        "inodes": applied.inodes,
    }


def _warm_up(first: bytes) -> None:
    """Import what would be imported later, when there is nothing left to import from."""
    if first.startswith(b"\x28\xb5\x2f\xfd") or first[1:4] == b"\x2a\x4d\x18":
        import zstandard  # noqa: F401
    # Buffers of one size come and go; handing them back to the kernel each time costs a tenth of the whole time.
    for option, value in _MALLOC:
        libc.mallopt(option, value)
    "".encode("unicode_escape")
    b"".decode("ascii", "backslashreplace")


def confine(root: int) -> None:
    """Make ``root`` the root directory for good, and give up everything but the making of files.

    ``root`` should be a mount by itself, nodev: then not even the right to make device nodes opens one.
    """
    prctl(PR_SET_DUMPABLE, 0)
    # From now on a module found on any path would be the image's.
    for finders in (sys.meta_path, sys.path_hooks, sys.path):
        finders.clear()
    sys.path_importer_cache.clear()
    os.fchdir(root)
    os.chroot(".")
    unshare(CLONE_NEWNET | CLONE_NEWIPC)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    kept = capabilities.mask(_KEPT) & capabilities.get()[1]
    capabilities.set_sets(kept, kept, 0)


def _write_lists(fd: int, applied: Applied) -> None:
    for mark, attribute in _LISTS.items():
        data = memoryview(b"".join(mark + name + b"\0" for name in sorted(getattr(applied, attribute))))
        while data:
            data = data[os.write(fd, data) :]


def read_lists(fd: int) -> Applied:
    """What :func:`main` wrote: the lists; the figures are in its result."""
    data = b""
    while piece := os.pread(fd, 1 << 20, len(data)):
        data += piece
    lists: dict[bytes, set[bytes]] = {mark: set() for mark in _LISTS}
    for line in data.split(b"\0")[:-1]:
        lists[line[:1]].add(line[1:])
    applied = Applied()
    for mark, attribute in _LISTS.items():
        setattr(applied, attribute, lists[mark])
    return applied

"""Making a layer that was applied apart from its parents into one that fits on them, for overlayfs.

An archive may put ``usr/bin/x`` into a layer without a word on ``usr``. Overlayfs shows the attributes of the topmost
``usr``, so that the layer's must be given those of its parents'. And if ``usr`` is a symlink there, the file belongs
elsewhere altogether: then the layer must be applied again, on a mount (:class:`~sampan.image.apply.NeedsParent`).
"""

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sampan.image.apply import NeedsParent
from sampan.image.folders import find_again
from sampan.image.tar import show
from sampan.linux.resolve import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OPAQUE = "overlay.opaque"


def set_opaque(layer: str, directories: Collection[bytes], *, userxattr: bool) -> None:
    """Make directories of a layer hide their parents' contents."""
    name = f"{'user' if userxattr else 'trusted'}.{_OPAQUE}"
    with _opened(layer) as (root,):
        for directory in directories:
            fd = find_again(root, directory)
            if fd >= 0:
                try:
                    os.setxattr(fd, name, b"y")
                finally:
                    os.close(fd)


def refuse_symlinks(presumed: Collection[bytes], parents: Sequence[str]) -> None:
    """See that no parent has a symlink where the layer took a directory for granted.

    Whether the layer lists, hides or replaces that directory afterwards is of no account: what it had put there belongs
    where the symlink leads. (Had the layer hidden the symlink before, all would be well; that isn't told apart.)

    Args:
        presumed: Paths of those directories.
        parents: The parents' directories, nearest first.

    Raises:
        NeedsParent: One of them is a symlink in the parents, or lies behind one.
    """
    if not presumed:
        return
    with _opened(*parents) as roots:
        lower = _Lower(roots, ())
        for directory in sorted(presumed):
            lower.holders(_parts(directory))


def adopt_attributes(layer: str, implied: Collection[bytes], opaque: Collection[bytes], parents: Sequence[str]) -> None:
    """Give directories that the layer never lists the attributes that they have in its parents.

    Args:
        layer: The layer's directory.
        implied: Paths of those directories in it.
        opaque: Paths below which parents don't show.
        parents: The parents' directories, nearest first.

    Raises:
        NeedsParent: One of them is a symlink in the parents.
    """
    if not parents:
        return
    with _opened(layer, *parents) as roots:
        lower = _Lower(roots[1:], opaque)
        for directory in sorted(implied):
            fd = find_again(roots[0], directory)
            if fd < 0:
                continue  # replaced by something else later in the archive
            try:
                source = lower.open(_parts(directory))
                if source >= 0:
                    try:
                        _copy_attributes(source, fd)
                    finally:
                        os.close(source)
            finally:
                os.close(fd)


def drop_idle_whiteouts(
    layer: str, whiteouts: Collection[bytes], opaque: Collection[bytes], parents: Sequence[str]
) -> None:
    """Remove whiteouts from directories that no parent has: overlayfs shows them where it has nothing to merge."""
    if not whiteouts:
        return
    with _opened(layer, *parents) as roots:
        hidden = set(opaque)
        lower = _Lower(roots[1:], opaque)
        merged: dict[bytes, bool] = {}
        for whiteout in whiteouts:
            folder, _, name = whiteout.rpartition(b"/")
            fd = find_again(roots[0], folder)
            if fd < 0:
                continue
            try:
                if folder not in merged:
                    merged[folder] = folder not in hidden and bool(lower.holders(_parts(folder)))
                if not merged[folder] and _is_whiteout(fd, name):
                    os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)


@contextmanager
def _opened(*directories: str) -> Iterator[list[int]]:
    with ExitStack() as stack:
        found = []
        for path in directories:
            found.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, found[-1])
        yield found


def _is_whiteout(folder: int, name: bytes) -> bool:
    try:
        status = os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _parts(directory: bytes) -> list[str]:
    return os.fsdecode(directory).split("/") if directory else []


class _Lower:
    """The merged parents of a layer, as overlayfs's lookup would find them; each path is looked up once.

    Args:
        roots: Descriptors of the parents' directories, nearest first.
        opaque: Paths below which they don't show.
    """

    def __init__(self, roots: Sequence[int], opaque: Collection[bytes]) -> None:
        self._hidden = {os.fsdecode(path) for path in opaque}
        self._holders: dict[str, list[int]] = {"": list(roots)}

    def open(self, parts: Sequence[str]) -> int:
        """The topmost directory at a path, or -1.

        Raises:
            NeedsParent: A symlink is on the way.
        """
        holders = self.holders(parts)
        if not holders:
            return -1
        return openat2(holders[0], "/".join(parts) or ".", _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def holders(self, parts: Sequence[str]) -> list[int]:
        """The parents whose directories at a path are merged there.

        Raises:
            NeedsParent: A symlink is on the way.
        """
        path = ""
        found = self._holders[path]
        for part in parts:
            # A directory that hides what is in its lower namesake still is that directory.
            above, path = path, f"{path}/{part}" if path else part
            if path not in self._holders:
                self._holders[path] = [] if above in self._hidden else self._look(found, path)
            found = self._holders[path]
            if not found:
                break
        return found

    @staticmethod
    def _look(above: Sequence[int], path: str) -> list[int]:
        found: list[int] = []
        for root in above:
            status = _lstat(root, path)
            if status is None:
                continue
            if stat.S_ISLNK(status.st_mode) and not found:
                raise NeedsParent(f'"{show(os.fsencode(path))}" is a symlink in a lower layer')
            if not stat.S_ISDIR(status.st_mode):
                break
            found.append(root)
            if _is_opaque(root, path):
                break
        return found


def _lstat(root: int, path: str) -> os.stat_result | None:
    try:
        fd = openat2(root, path, os.O_PATH | os.O_NOFOLLOW, resolve=RESOLVE_BENEATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _is_opaque(root: int, path: str) -> bool:
    fd = openat2(root, path, _DIRECTORY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    try:
        return any(name.endswith(_OPAQUE) for name in os.listxattr(fd))
    finally:
        os.close(fd)


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if ".overlay." not in name:
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

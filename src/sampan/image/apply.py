"""Applying a layer: a tar stream becomes files in a directory, and nothing anywhere else.

OCI image-layout specification, layer.md. Two modes:

- ``layer``: the directory is a layer by itself, apart from its parents, in overlayfs's form: a deleted file is a
  character device 0/0; directories to be made opaque are *reported*, because marking them takes privileges that this
  process has given up. So are directories that the archive never lists, which must take their attributes from the
  parents. A hard link to a parent's file can't be made: the layer :class:`NeedsParent`.
- ``merged``: the directory shows the parents (a copy, or an overlay mount) and deletions delete.

Safety, in the order of what would have to fail: this runs in a process of its own (:func:`main`) whose root is a
detached nodev, nosuid, noexec mount of the directory, without capabilities to leave it and without a network;
parents are resolved by openat2(RESOLVE_IN_ROOT); files are made with O_EXCL | O_NOFOLLOW and names of one component;
nothing that exists is ever written to.

On the import diet.
"""

from __future__ import annotations

import errno
import os
import stat

from sampan.errors import Corrupt, Exhausted, SampanError, StageFailed
from sampan.image import tar
from sampan.image.acl import acl_from_text
from sampan.image.folders import KNOWN, Folders, clean, find_again, join
from sampan.image.tar import Entry, Held, Limits, Reader, show
from sampan.linux import tree
from sampan.linux.resolve import make_dirs

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_ID_LIMIT = 0xFFFFFFFE
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How names begin that may be no file's: none at all, ``.``, ``..``, whiteouts.
_SPECIAL = (b"", b".")
#: Attributes that say something about the machine a layer was packed on, or steer overlayfs itself.
_FOREIGN_XATTRS = (b"trusted.", b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor")
_OVERLAY_XATTRS = b"user.overlay."
_ACL = {b"SCHILY.acl.access": b"system.posix_acl_access", b"SCHILY.acl.default": b"system.posix_acl_default"}


class NeedsParent(Exception):
    """The layer can't be applied apart from its parents; says why."""


class Applied:
    """What came of a layer.

    Attributes:
        opaque: Directories that hide their parents' contents. These and all other paths are without symlinks.
        implied: Directories that were made because something lies in them, without an entry of their own.
        presumed: Those, and the ones that got an entry later or are gone again. If one is a symlink in the parents,
            what was put into it belongs where that leads.
        bytes: Disk space of the files.
        inodes: How many files, directories and others there are.
        entries: How many entries the archive had.
        whiteouts: Paths of files that are hidden.
    """

    __slots__ = ("bytes", "entries", "implied", "inodes", "opaque", "presumed", "whiteouts")

    def __init__(self) -> None:
        self.opaque: set[bytes] = set()
        self.implied: set[bytes] = {b""}
        self.presumed: set[bytes] = set()
        self.whiteouts: set[bytes] = set()
        self.bytes = 0
        self.inodes = 1
        self.entries = 0


class Applier:
    """Applies one archive to the directory ``root``.

    Args:
        root: Descriptor of the directory.
        merged: The mode, see the module.
        limits: Bounds.
    """

    def __init__(self, root: int, *, merged: bool = False, limits: Limits | None = None) -> None:
        self._root = root
        self._merged = merged
        self._limits = limits or Limits()
        self._tree = Folders(root)
        #: Folders as entries' names have them -> the same, clean.
        self._folders: dict[bytes, bytes] = {}
        #: Directory -> what it will get when nothing more is put into it. This and all below by paths without symlinks.
        self._directories: dict[bytes, Entry] = {}
        self._touched: set[bytes] = set()
        #: Directories that took the place of a whiteout, so that a lower one's attributes are none of theirs.
        self._anew: set[bytes] = set()
        self.result = Applied()
        self._make = {
            tar.REGULAR: self._file,
            tar.HARD_LINK: self._hard_link,
            tar.SYMLINK: self._symlink,
            tar.CHARACTER: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.FIFO: self._device,
        }

    def apply(self, reader: Reader) -> Applied:
        """Apply all of ``reader``'s members.

        Raises:
            NeedsParent: In mode ``layer``: it has to be applied on top of its parents.
            Corrupt, Unsupported, Exhausted, StageFailed: What is wrong, with the entry's name.
        """
        umask = os.umask(0)
        try:
            while True:
                if not self._merged:
                    self._plain_files(reader)
                entry = reader.next()
                if entry is None:
                    break
                self._any_entry(entry, reader)
            try:
                self._finish_directories()
            except OSError as error:
                raise _failed(os.fsencode(error.filename or ""), error) from error
        finally:
            self._tree.forget()
            os.umask(umask)
        return self.result

    # ---------------------------------------------------------------- one entry

    def _plain_files(self, reader: Reader) -> None:
        """Make the files that come next, as far as nothing about them is special: :meth:`_entry` in short."""
        parents, folders, result = self._tree.opened, self._folders, self.result
        last = self._limits.entries
        for name, owner, times, data in reader.plain():
            folder, _, base = name.rpartition(b"/")
            mode, uid, gid = owner
            parent = parents.get(folders[folder], -1) if folder in folders else -1
            if parent < 0 or base[:1] in _SPECIAL or result.entries >= last or not 0 <= uid | gid < _ID_LIMIT:
                self._plain_as_any(name, owner, times, data)
                continue
            try:
                fd = os.open(base, _FILE, mode, dir_fd=parent)
            except OSError:
                self._plain_as_any(name, owner, times, data)
                continue
            try:
                if data:
                    _write(fd, data)
                if uid or gid:
                    os.fchown(fd, uid, gid)
                if mode & 0o6000:
                    os.fchmod(fd, mode)
                os.utime(fd, ns=times)
            except OSError as error:
                raise _failed(name, error) from error
            finally:
                os.close(fd)
            result.entries += 1
            result.inodes += 1
            result.bytes += len(data) + -len(data) % 4096

    def _plain_as_any(self, name: bytes, owner: tuple[int, int, int], times: tuple[int, int], data: memoryview) -> None:
        entry = Entry()
        entry.name = name
        entry.mode, entry.uid, entry.gid = owner
        entry.size = entry.stored = len(data)
        entry.mtime = times[1]
        self._any_entry(entry, Held(data))
        if len(self._folders) >= KNOWN:
            self._folders.clear()
        folder, _, base = name.rpartition(b"/")
        if base:
            self._folders[folder] = clean(folder, self._limits.depth)

    def _any_entry(self, entry: Entry, reader: Reader | Held) -> None:
        self.result.entries += 1
        if self.result.entries > self._limits.entries:
            raise Exhausted(f"layer: more than {self._limits.entries} entries")
        try:
            self._entry(entry, reader)
        except OSError as error:
            raise _failed(entry.name, error) from error

    def _entry(self, entry: Entry, reader: Reader | Held) -> None:
        name = clean(entry.name, self._limits.depth)
        if not 0 <= entry.uid <= _ID_LIMIT or not 0 <= entry.gid <= _ID_LIMIT:
            raise Corrupt(f'layer: entry "{show(name)}" has an owner that no user can be')
        folder, _, base = name.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            self._whiteout(folder, base)
            return
        if entry.type == tar.DIRECTORY:
            self._directory(entry, folder, base)
            return
        if not base:
            raise Corrupt("layer: the root of the file system is no directory")
        make = self._make[entry.type]
        parent = self._parent(folder)
        if self._merged:
            self._touch(self._tree.path(folder, base))
        try:
            make(entry, parent, base, reader)
        except FileExistsError:
            self._remove(folder, base)
            make(entry, self._parent(folder), base, reader)
        self.result.inodes += 1

    def _touch(self, name: bytes) -> None:
        """Remember that this layer brought ``name``, and so the directories that it lies in; for mode ``merged``."""
        while name not in self._touched:
            self._touched.add(name)
            name = name.rpartition(b"/")[0]

    def _file(self, entry: Entry, parent: int, base: bytes, reader: Reader | Held) -> None:
        fd = os.open(base, _FILE, entry.mode, dir_fd=parent)
        try:
            if entry.sparse is not None:
                self._sparse(entry, fd, reader)
            elif entry.size:
                reader.copy(entry.size, lambda piece: _write(fd, piece))
            if entry.uid or entry.gid or self._merged:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o6000:
                # Another owner takes these bits away, and so does each write in a user namespace.
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._xattrs(entry, fd)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)
        self.result.bytes += entry.stored + -entry.stored % 4096

    def _sparse(self, entry: Entry, fd: int, reader: Reader | Held) -> None:
        if entry.size > self._limits.size:
            raise Exhausted(f'layer: "{show(entry.name)}" would be a file of more than {self._limits.size} bytes')
        os.ftruncate(fd, entry.size)
        for offset, length in entry.sparse or ():
            os.lseek(fd, offset, os.SEEK_SET)
            reader.copy(length, lambda piece: _write(fd, piece))

    def _hard_link(self, entry: Entry, parent: int, base: bytes, reader: Reader | Held) -> None:  # noqa: ARG002
        target = clean(entry.linkname, self._limits.depth)
        folder, _, name = target.rpartition(b"/")
        if not name:
            raise Corrupt(f'layer: hard link "{show(entry.name)}" leads to the root')
        try:
            source = self._tree.open(folder)
            status = os.lstat(name, dir_fd=source)
            if _is_whiteout(status) and not self._merged:
                raise FileNotFoundError(errno.ENOENT, "is a whiteout", name)
            if stat.S_ISDIR(status.st_mode):
                raise Corrupt(f'layer: hard link "{show(entry.name)}" leads to a directory')
            os.link(name, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            if not self._merged:
                raise NeedsParent(f'hard link "{show(entry.name)}" to a file of a lower layer') from None
            raise Corrupt(
                f'layer: hard link "{show(entry.name)}" leads to "{show(target)}", which is not there'
            ) from None
        self.result.inodes -= 1

    def _symlink(self, entry: Entry, parent: int, base: bytes, reader: Reader | Held) -> None:  # noqa: ARG002
        if not entry.linkname:
            raise Corrupt(f'layer: symlink "{show(entry.name)}" leads nowhere')
        os.symlink(entry.linkname, base, dir_fd=parent)
        self._own(entry, parent, base)

    def _device(self, entry: Entry, parent: int, base: bytes, reader: Reader | Held) -> None:  # noqa: ARG002
        kind = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.type]
        if not 0 <= entry.major < 1 << 12 or not 0 <= entry.minor < 1 << 20:
            raise Corrupt(f'layer: device "{show(entry.name)}" has an impossible number')
        os.mknod(base, entry.mode | kind, os.makedev(entry.major, entry.minor), dir_fd=parent)
        self._own(entry, parent, base)
        if entry.mode & (stat.S_ISUID | stat.S_ISGID):  # which a new owner does not get
            os.chmod(base, entry.mode, dir_fd=parent)

    def _own(self, entry: Entry, parent: int, base: bytes) -> None:
        os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(base, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    def _directory(self, entry: Entry, folder: bytes, base: bytes) -> None:
        name = b""
        if base:
            parent = self._parent(folder)
            name = self._tree.path(folder, base)
            try:
                os.mkdir(base, 0o700, dir_fd=parent)
                self.result.inodes += 1
            except FileExistsError:
                status = os.lstat(base, dir_fd=parent)
                if not stat.S_ISDIR(status.st_mode):
                    hides = self._remove(folder, base)
                    os.mkdir(base, 0o700, dir_fd=self._parent(folder))
                    if hides:
                        self.result.opaque.add(name)
        if self._merged:
            self._touch(name)
        self.result.implied.discard(name)
        self._directories[name] = entry

    # ---------------------------------------------------------------- parents

    def _parent(self, folder: bytes) -> int:
        """A descriptor of the directory that something is to be put into, made if it is missing."""
        try:
            return self._tree.open(folder)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            if not self._revive(folder):
                if self._merged:
                    raise
                # A file where a directory is needed, or a symlink to what a whiteout hides: the parents decide.
                raise NeedsParent(f'"{show(folder)}" is no directory in the layer') from None
        self._make_parents(folder)
        return self._tree.open(folder)

    def _revive(self, folder: bytes) -> bool:
        """If a directory on the way was whited out before, let it be a new one, which hides the lower one."""
        above = b""
        for part in folder.split(b"/"):
            path = self._tree.path(above, part)
            # The layer may have put something of its own in its place since.
            if path in self.result.whiteouts and _is_whiteout(os.lstat(part, dir_fd=self._tree.open(above))):
                self._remove(above, part)
                self.result.whiteouts.discard(path)
                self.result.opaque.add(path)
                self._anew.add(path)
                return True
            above = join(above, part)
            try:
                self._tree.open(above)
            except (FileNotFoundError, NotADirectoryError):
                break
        return False

    def _make_parents(self, folder: bytes) -> None:
        """Make the missing directories of a path, symlinks on the way followed inside the root."""
        path = b""
        for part in folder.split(b"/"):
            above, path = path, join(path, part)
            try:
                self._tree.open(path)
                continue
            except FileNotFoundError:
                pass
            try:
                os.mkdir(part, 0o755, dir_fd=self._tree.open(above))
            except FileExistsError:
                # A symlink to what is not there: it may be there in a parent.
                if not self._merged:
                    raise NeedsParent(f'"{show(path)}" is a symlink out of the layer') from None
                os.close(make_dirs(self._root, os.fsdecode(path)))
            self.result.inodes += 1
            made = self._tree.path(above, part)
            self._directories.pop(made, None)  # it was about one that is gone
            if made not in self._anew:
                self.result.implied.add(made)
                self.result.presumed.add(made)

    # ---------------------------------------------------------------- replacing and deleting

    def _remove(self, folder: bytes, base: bytes) -> bool:
        """Remove what is in the way.

        Returns:
            Whether a directory in its place must hide a lower one: what was here, a file or a whiteout, did.
        """
        parent = self._tree.open(folder)
        status = os.lstat(base, dir_fd=parent)
        if stat.S_ISDIR(status.st_mode):
            tree.remove_at(parent, base)
        else:
            os.unlink(base, dir_fd=parent)
            self.result.inodes -= 1
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            # Paths through it may mean something else from now on.
            self._tree.forget()
        return not self._merged and not stat.S_ISDIR(status.st_mode)

    def _whiteout(self, folder: bytes, base: bytes) -> None:
        if base.startswith(_WHITEOUT + _WHITEOUT) and base != _OPAQUE:
            return  # aufs's own book-keeping, in old images
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise Corrupt(f'layer: whiteout "{show(folder)}/{show(base)}" names no file')
        parent = self._parent(folder)
        folder = self._tree.path(folder, b"")
        if self._merged:
            self._touch(folder)  # it is there, whatever another whiteout says of it
        if base == _OPAQUE:
            self._opaque(folder)
            return
        # Whiteouts are about lower layers only: what this layer brings stays, and hides what was below.
        path = join(folder, name)
        if self._merged:
            self._delete(folder, name, path)
            return
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
            self.result.inodes += 1
            self.result.whiteouts.add(path)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                self.result.opaque.add(path)

    def _opaque(self, folder: bytes) -> None:
        if not self._merged:
            if not folder:
                # Overlayfs merges the roots of all layers, marked or not.
                raise NeedsParent("the root is opaque")
            self.result.opaque.add(folder)
            return
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._tree.open(folder))
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            path = join(folder, name)
            self._delete(folder, name, path)
            if path in self._touched and path not in self._directories:
                self._make_plain(folder, name)

    def _make_plain(self, folder: bytes, name: bytes) -> None:
        """Give a directory that this layer uses without listing it nothing of the hidden one that it was."""
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._tree.open(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o755)
        finally:
            os.close(fd)

    def _delete(self, folder: bytes, name: bytes, path: bytes) -> None:
        """In mode ``merged``, delete what the parents brought of ``path``."""
        try:
            if path not in self._touched:
                self._remove(folder, name)
            elif stat.S_ISDIR(os.lstat(name, dir_fd=self._tree.open(folder)).st_mode):
                self._opaque(path)
        except (FileNotFoundError, NotADirectoryError):
            pass

    # ---------------------------------------------------------------- attributes

    def _finish_directories(self) -> None:
        """Set modes and times of directories, now that nothing more changes them; the innermost first."""
        for name, entry in sorted(self._directories.items(), reverse=True):
            fd = find_again(self._root, name)
            if fd < 0:
                continue  # replaced by something else later in the archive
            try:
                os.fchown(fd, entry.uid, entry.gid)
                os.fchmod(fd, entry.mode)
                if entry.xattrs:
                    self._xattrs(entry, fd)
                os.utime(fd, ns=_times(entry))
            finally:
                os.close(fd)

    def _xattrs(self, entry: Entry, fd: int) -> None:
        total = 0
        for name, value in (entry.xattrs or {}).items():
            if name in _ACL:
                name, value = _ACL[name], acl_from_text(value)
            if name.startswith((*_FOREIGN_XATTRS, _OVERLAY_XATTRS)):
                continue
            total += len(name) + len(value)
            if total > self._limits.xattrs:
                raise Exhausted(f'layer: entry "{show(entry.name)}" has too many extended attributes')
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                # A file system without them (or without this kind) can still hold the image.
                if error.errno != errno.ENOTSUP:
                    raise


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _times(entry: Entry) -> tuple[int, int]:
    return (entry.mtime if entry.atime is None else entry.atime, entry.mtime)


def _write(fd: int, piece: memoryview) -> None:
    while piece:
        done = os.write(fd, piece)
        piece = piece[done:]


def _failed(name: bytes, error: OSError) -> SampanError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f'layer: no space is left at "{show(name)}"', hint="free some, or run `sampan gc`")
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ERANGE):
        return Corrupt(f'layer: entry "{show(name)}": {error.strerror}')
    return StageFailed(f'apply entry "{show(name)}"', OSError(error.errno, error.strerror))

"""Random and hostile layers: nothing is written outside, and both ways of applying agree.

The second is a differential test: a layer applied apart from its parents, mended and mounted by the kernel's overlayfs,
must look like the same layer applied on top of a copy of them.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sampan.errors import SampanError
from sampan.image import pack, tar
from sampan.image.apply import Applied, Applier, NeedsParent
from sampan.image.tar import Entry, Reader
from sampan.storage.chain import adopt_attributes, drop_idle_whiteouts, refuse_symlinks, set_opaque
from sampan.storage.mount import attach, detach

if TYPE_CHECKING:
    from sampan.image.tar import Plain

pytestmark = pytest.mark.root

KINDS = [tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.HARD_LINK, tar.FIFO]


def entry(kind: bytes, name: str, link: str, mode: int) -> Entry:
    result = Entry()
    result.type, result.name, result.mode, result.uid, result.mtime = kind, name.encode(), mode, mode % 7, 10**18
    if kind in (tar.SYMLINK, tar.HARD_LINK):
        result.linkname = link.encode()
    return result


def archive(entries: list[Entry]) -> bytes:
    parts: list[bytes] = []
    writer = pack.Writer(parts.append)
    for number, one in enumerate(entries):
        data = b"%d" % number if one.type == tar.REGULAR and b".wh." not in one.name else b""
        one.size = len(data)
        writer.member(one, [data])
    writer.close()
    return b"".join(parts)


def run(data: bytes, directory: Path, *, merged: bool) -> Applied:
    source = io.BytesIO(data)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Applier(fd, merged=merged).apply(Reader(lambda: source.read(4096)))
    finally:
        os.close(fd)


HOSTILE = ["..", ".", "", "a", "b", ".wh.a", ".wh...", ".wh..", ".wh.", ".wh..wh..opq", "\x01", "x" * 256, "etc"]
hostile_path = st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=5).map("/".join)
hostile_link = st.one_of(
    hostile_path, st.sampled_from(["/", "..", "/outside", "../outside", "../../outside/victim", "."])
)
hostile = st.lists(
    st.builds(entry, st.sampled_from(KINDS), hostile_path, hostile_link, st.integers(0, 0o7777)), max_size=12
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostile, st.booleans(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_nothing_is_written_outside(entries: list[Entry], merged: bool, damage: list[tuple[int, int]]) -> None:
    entries = [one for one in entries if b"\0" not in one.name]
    data = bytearray(archive(entries))
    for position, value in damage:
        data[position % len(data)] = value
        start = position % len(data) - position % len(data) % 512
        data[start + 148 : start + 156] = b"        "
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    top = Path(tempfile.mkdtemp(prefix="sampan-fuzz-"))
    try:
        inside, outside = top / "in/side", top / "outside"
        inside.mkdir(parents=True)
        outside.mkdir()
        (outside / "victim").write_text("untouched")
        before = state(outside), sorted(os.listdir(top)), os.listdir(top / "in")
        try:
            run(bytes(data), inside, merged=merged)
        except (SampanError, NeedsParent):
            pass
        assert (state(outside), sorted(os.listdir(top)), os.listdir(top / "in")) == before
    finally:
        shutil.rmtree(top)


def state(directory: Path) -> list[tuple[object, ...]]:
    return [
        (path.name, s.st_mode, s.st_uid, s.st_nlink, s.st_size, s.st_mtime_ns)
        for path in (directory, *directory.rglob("*"))
        for s in [path.lstat()]
    ]


NAMES = ["a", "b", "a/b", "a/c", "a/b/c", "b/d", "c", "c/e/f", "link", "link/x", "."]
WHITEOUTS = [
    *(".wh.a", ".wh.b", "a/.wh.b", "a/.wh..wh..opq", ".wh..wh..opq", "b/.wh.d", "a/b/.wh.c", "n/.wh.x"),
    *("b/.wh..wh..opq", "link/.wh..wh..opq", "link/.wh.b", "link/x/.wh.c"),
]
sane = st.builds(
    entry,
    st.sampled_from([tar.REGULAR, tar.REGULAR, tar.DIRECTORY, tar.DIRECTORY, tar.SYMLINK]),
    st.sampled_from(NAMES),
    st.sampled_from(["a", "b", "c/e"]),
    st.sampled_from([0o755, 0o700, 0o644]),
)
whiteout = st.builds(entry, st.just(tar.REGULAR), st.sampled_from(WHITEOUTS), st.just(""), st.just(0o644))


LOWER_FILES = [entry(tar.REGULAR, "a/b", "", 0o644), entry(tar.REGULAR, "a/c/d", "", 0o644)]
#: A directory, and a link to it through which a whiteout is given.
THROUGH_A_LINK = [entry(tar.REGULAR, "a/b", "", 0o755), entry(tar.SYMLINK, "b", "a", 0o755)]
#: A symlink of the lower layer, which the upper one puts something through before it gets to be something else.
A_LINK = [entry(tar.SYMLINK, "a", "c/e", 0o755)]
A_LINK_BELOW = [entry(tar.SYMLINK, "a/b", "c/e", 0o755)]
A_FILE_THROUGH_IT = entry(tar.REGULAR, "a/b", "", 0o755)
TWO_OF_A_NAME = [entry(tar.DIRECTORY, "b/d", "", 0o755), entry(tar.DIRECTORY, "c/d", "", 0o755)]
#: A link that takes the place of one whiteout and leads to another.
FROM_WHITEOUT_TO_WHITEOUT = [
    *(entry(tar.REGULAR, ".wh.a", "", 0o644), entry(tar.REGULAR, ".wh.b", "", 0o644)),
    *(entry(tar.SYMLINK, "a", "b", 0o755), entry(tar.REGULAR, "a/c", "", 0o644)),
]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(sane, max_size=8), st.lists(st.one_of(sane, whiteout), max_size=8))
@example([], [*THROUGH_A_LINK, entry(tar.REGULAR, "b/.wh.d", "", 0o644)])
@example([], [*THROUGH_A_LINK, entry(tar.REGULAR, "b/.wh.b", "", 0o644)])
@example(LOWER_FILES, [*THROUGH_A_LINK, entry(tar.REGULAR, "b/.wh..wh..opq", "", 0o644)])
@example(LOWER_FILES, [*THROUGH_A_LINK, entry(tar.REGULAR, "b/.wh.c", "", 0o644)])
@example(LOWER_FILES, [*THROUGH_A_LINK, entry(tar.DIRECTORY, "b/c", "", 0o700), entry(tar.REGULAR, ".wh.a", "", 0o644)])
@example(A_LINK, [entry(tar.DIRECTORY, "a/b", "", 0o755), entry(tar.SYMLINK, "a", "a", 0o755)])
@example(A_LINK, [A_FILE_THROUGH_IT, entry(tar.REGULAR, "a", "", 0o755)])
@example(A_LINK, [A_FILE_THROUGH_IT, entry(tar.DIRECTORY, "a", "", 0o755)])
@example(A_LINK_BELOW, [entry(tar.REGULAR, "a/b/c", "", 0o755), entry(tar.REGULAR, ".wh.a", "", 0o644)])
@example(TWO_OF_A_NAME, [entry(tar.DIRECTORY, "b/d", "", 0o700), entry(tar.SYMLINK, "b", "c", 0o755)])
@example([], FROM_WHITEOUT_TO_WHITEOUT)
def test_apart_and_merged_agree(lower_entries: list[Entry], upper_entries: list[Entry]) -> None:
    top = Path(tempfile.mkdtemp(prefix="sampan-fuzz-"))
    try:
        lower, merged, upper, root = (top / name for name in ("lower", "merged", "upper", "root"))
        for directory in (lower, merged, upper, root):
            directory.mkdir()
            directory.chmod(0o755)
        try:
            run(archive(lower_entries), lower, merged=True)
        except SampanError:
            return
        shutil.rmtree(merged)
        os.system(f"cp -a {lower} {merged}")
        data = archive(upper_entries)
        try:
            run(data, merged, merged=True)
        except SampanError:
            return  # a file where a directory is needed; apart from its parents that can't be seen
        try:
            applied = run(data, upper, merged=False)
            refuse_symlinks(applied.presumed, [str(lower)])
            drop_idle_whiteouts(str(upper), applied.whiteouts, applied.opaque, [str(lower)])
            adopt_attributes(str(upper), applied.implied, applied.opaque, [str(lower)])
        except NeedsParent:
            return
        set_opaque(str(upper), applied.opaque, userxattr=False)
        attach([{"type": "overlay", "source": "overlay", "options": [f"lowerdir={upper}:{lower}"]}], str(root))
        try:
            assert listing(root) == listing(merged)
        finally:
            detach(str(root))
    finally:
        shutil.rmtree(top)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        target = os.readlink(path) if stat.S_ISLNK(s.st_mode) else ""
        result[str(path.relative_to(root))] = (s.st_mode, s.st_uid, content, target)
    return result


class GeneralReader(Reader):
    """One that takes no short way."""

    def plain(self) -> Iterator[Plain]:
        """Give nothing: ``next`` has it all."""
        return iter(())


def file_info(kind: bytes, name: str, link: str, size: int, fields: tuple[int, int, float]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.mode, info.uid, info.mtime = fields
    info.gid = info.uid // 2
    info.size = size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) else 0
    return info


FILE_NAMES = [
    *("a", "b", "a/b", "./a/c", "a//c", "a/../b", "../b", "/a/d", "link/x", "a/./d", "deep/er/x", "deep/er/y", "a/"),
    *(".wh.a", "a/.wh.b", "a/.wh..wh..opq", "a/..", "a/.", ".", "", "n" * 256, "d" * 90 + "/" + "f" * 60, "é" * 99),
]
files = st.builds(
    file_info,
    st.sampled_from([*[tarfile.REGTYPE] * 9, *(tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE),
                     *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)]),
    st.sampled_from(FILE_NAMES),
    st.sampled_from(["a", "/deep", "nowhere", "a/b"]),
    st.sampled_from([0, 1, 511, 512, 513, 5000]),
    st.tuples(
        st.sampled_from([0o644, 0o755, 0o4755, 0o2711, 0o7777, 0]),
        st.sampled_from([0, 1000, 3_000_000, 0xFFFFFFFE, 0xFFFFFFFF, -1]),
        st.sampled_from([0, 1_600_000_000, -5, 1.5, 1 << 34, 1 << 62, 1 << 70]),
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(files, max_size=10),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255), st.booleans()), max_size=3),
    st.sampled_from([700, 1024, 4096, 100_000]),
)
def test_the_short_way_makes_what_the_long_one_does(
    infos: list[tarfile.TarInfo], form: int, damage: list[tuple[int, int, bool]], piece: int
) -> None:
    """Plain files are made by a short way: each byte, attribute, count and refusal is that of the long one."""
    data = packed(infos, form)
    for position, value, repair in damage:
        if position < len(data):
            data[position] = value
            if repair:
                start = position - position % 512
                data[start + 148 : start + 156] = b"        "
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    short, long = (made_by(reader, bytes(data), piece) for reader in (Reader, GeneralReader))
    assert short == long


def packed(infos: list[tarfile.TarInfo], form: int) -> bytearray:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, info in enumerate(infos):
            try:
                archive.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
            except ValueError:  # the form has no such number
                continue
    return bytearray(out.getvalue())


def made_by(kind: type[Reader], data: bytes, piece: int) -> tuple[object, ...]:
    """What a reader's members become: how it ended, what was counted, and the files."""
    top = Path(tempfile.mkdtemp(prefix="sampan-fuzz-"))
    source = io.BytesIO(data)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.utime(top, ns=(0, 0))
        applier = Applier(fd)
        ended = ""
        try:
            applier.apply(kind(lambda: source.read(piece)))
        except (SampanError, NeedsParent) as error:
            ended = f"{type(error).__name__}: {error}"
        counted = tuple(getattr(applier.result, name) for name in Applied.__slots__)
        return ended, counted, whole_listing(top)
    finally:
        os.close(fd)
        shutil.rmtree(top)


def whole_listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about files, as far as it comes from the archive."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        # A whiteout's time, like a directory's, is that of the work.
        working = stat.S_ISDIR(s.st_mode) or stat.S_ISCHR(s.st_mode)
        times: tuple[int, ...] = () if working else (s.st_mtime_ns, s.st_size)
        if stat.S_ISREG(s.st_mode):  # of a link it is that of the last look at it
            times = (s.st_atime_ns, *times)
        content = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        target = os.readlink(path) if stat.S_ISLNK(s.st_mode) else ""
        found[str(path.relative_to(root))] = (s.st_mode, s.st_uid, s.st_gid, s.st_nlink, *times, content, target)
    return found

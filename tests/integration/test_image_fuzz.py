"""Random and hostile layers: nothing is written outside, and both ways of applying agree.

The second is a differential test: a layer applied apart from its parents, mended and mounted by the kernel's overlayfs,
must look like the same layer applied on top of a copy of them.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.errors import SampanError
from sampan.image import pack, tar
from sampan.image.apply import Applied, Applier, NeedsParent
from sampan.image.tar import Entry, Reader
from sampan.storage.chain import adopt_attributes, drop_idle_whiteouts, set_opaque
from sampan.storage.mount import attach, detach

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
WHITEOUTS = [".wh.a", ".wh.b", "a/.wh.b", "a/.wh..wh..opq", ".wh..wh..opq", "b/.wh.d", "a/b/.wh.c", "n/.wh.x"]
sane = st.builds(
    entry,
    st.sampled_from([tar.REGULAR, tar.REGULAR, tar.DIRECTORY, tar.DIRECTORY, tar.SYMLINK]),
    st.sampled_from(NAMES),
    st.sampled_from(["a", "b", "c/e"]),
    st.sampled_from([0o755, 0o700, 0o644]),
)
whiteout = st.builds(entry, st.just(tar.REGULAR), st.sampled_from(WHITEOUTS), st.just(""), st.just(0o644))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(sane, max_size=8), st.lists(st.one_of(sane, whiteout), max_size=8))
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

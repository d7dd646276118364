"""The tar reader against archives that tarfile and GNU tar write, and against damage."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import Corrupt, Exhausted, SampanError, Unsupported
from sampan.image import tar
from sampan.image.tar import Entry, Reader


def members(data: bytes, piece: int = 1000) -> Iterator[tuple[Entry, bytes]]:
    source = io.BytesIO(data)
    reader = Reader(lambda: source.read(piece))
    while entry := reader.next():
        content = bytearray(min(entry.size, 8 << 20))
        position = 0
        for offset, length in entry.sparse if entry.sparse is not None else [(0, entry.size)]:
            parts: list[bytes] = []
            reader.copy(length, lambda piece, parts=parts: parts.append(bytes(piece)))  # type: ignore[misc]
            content[offset : offset + length] = b"".join(parts)
            position = offset + length
        assert position <= entry.size
        yield entry, bytes(content)


def pack(*infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in infos:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def info(name: str, **fields: object) -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(result, key, value)
    return result


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats(form: int) -> None:
    long = "d" * 90 + "/" + "f" * 60 if form == tarfile.USTAR_FORMAT else "d" * 200 + "/" + "f" * 200
    data = pack(
        (info("a", mode=0o4755, uid=1000, gid=50, mtime=1_600_000_000), b"hello"),
        (info(long), b"x" * 1500),
        (info("dir", type=tarfile.DIRTYPE), b""),
        (info("link", type=tarfile.SYMTYPE, linkname="a"), b""),
        (info("hard", type=tarfile.LNKTYPE, linkname="a"), b""),
        (info("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        form=form,
    )
    for piece in (1, 511, 512, 100_000):
        read = list(members(data, piece))
        assert [entry.name.decode().rstrip("/") for entry, _ in read] == ["a", long, "dir", "link", "hard", "null"]
        assert [content for _, content in read[:2]] == [b"hello", b"x" * 1500]
        first = read[0][0]
        assert (first.mode, first.uid, first.gid, first.mtime) == (0o4755, 1000, 50, 1_600_000_000 * 10**9)
        assert [entry.type for entry, _ in read] == [b"0", b"0", b"5", b"2", b"1", b"3"]
        assert read[3][0].linkname == b"a"
        assert (read[5][0].major, read[5][0].minor) == (1, 3)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"0.000000001", 1),
        (b"-0.1", -100_000_000),
        (b"7", 7 * 10**9),
    ],
)
def test_times(text: bytes, nanoseconds: int) -> None:
    assert tar.pax_time(text) == nanoseconds


def test_large_and_negative_numbers_in_base_256() -> None:
    data = pack((info("old", mtime=-5, uid=3_000_000), b""), form=tarfile.GNU_FORMAT)
    entry = next(members(data))[0]
    assert (entry.mtime, entry.uid) == (-5 * 10**9, 3_000_000)


@pytest.mark.parametrize("seconds", [1 << 62, -(1 << 62), 1 << 70])
def test_times_that_no_clock_can_show_are_refused(seconds: int) -> None:
    data = pack((info("first"), b""), (info("a", mtime=seconds), b"x"), form=tarfile.GNU_FORMAT)
    with pytest.raises(Corrupt, match="impossible time"):
        list(members(data))
    assert summary(data, len(data), plain=True)[-1] is Corrupt


@pytest.mark.parametrize("form", ["gnu", "posix", "posix --sparse-version=0.0", "posix --sparse-version=0.1"])
def test_sparse_files_of_gnu_tar(form: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(40):
            file.seek(number * 65536)
            file.write(b"%d" % number * 4096)
        file.truncate(50 * 65536)
    command = ["tar", "-C", str(tmp_path), "--format", *form.split(), "--sparse", "-cf", "-", "sparse"]
    [(entry, content)] = members(subprocess.run(command, capture_output=True, check=True).stdout)
    assert entry.name == b"sparse"
    assert entry.sparse
    assert content == path.read_bytes()


def test_extended_attributes() -> None:
    header = info("a", pax_headers={"SCHILY.xattr.user.x": "value", "path": "other"})
    entry = next(members(pack((header, b"z"))))[0]
    assert entry.xattrs == {b"user.x": b"value"}
    assert entry.name == b"other"


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"?", b"A"])
def test_other_types_are_refused_by_name(kind: bytes) -> None:
    with pytest.raises(Unsupported, match='"odd"'):
        list(members(pack((info("odd", type=kind), b""))))


def test_cut_off_archives_are_noticed() -> None:
    data = pack((info("a"), b"x" * 2000), (info("b" * 200), b"y"))
    whole = len(list(members(data)))
    for end in range(1, 512 * 8):
        try:
            assert len(list(members(data[:end]))) < whole or end % 512 == 0
        except Corrupt:
            pass


def test_huge_extended_headers_are_not_read() -> None:
    data = bytearray(pack((info("a" * 200), b"")))
    data[124:136] = b"77777777777\0"
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(Exhausted):
        list(members(bytes(data)))


@pytest.mark.parametrize(
    "text", [b"x", b"5 a=", b"99 a=b\n", b"6 a=b\nx", b"0 a=b\n", b"-6 a=b\n", b"4 ab\n", b"5 =b\n", b"7 a\0=b\n"]
)
def test_malformed_pax_records(text: bytes) -> None:
    with pytest.raises(Corrupt):
        tar.parse_pax(text)


def set_checksum(data: bytearray, start: int) -> None:
    data[start + 148 : start + 156] = b"        "
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


SAMPLE = pack(
    (info("dir", type=tarfile.DIRTYPE), b""),
    (info("dir/a", pax_headers={"mtime": "1.5", "SCHILY.xattr.user.x": "y"}), b"x" * 700),
    (info("n" * 150), b"1"),
    (info("hard", type=tarfile.LNKTYPE, linkname="dir/a"), b""),
) + pack((info("g" * 150), b"2"), form=tarfile.GNU_FORMAT)


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_mutations_give_members_or_one_of_our_errors(changes: list[tuple[int, int]], repair: bool) -> None:
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
        if repair:  # with the checksum right, the damage gets past the first check
            set_checksum(data, position - position % 512)
    try:
        for entry, _ in members(bytes(data[: 64 * 512])):
            assert entry.size >= 0
    except SampanError:
        pass
    except MemoryError:
        pytest.fail("a header made the reader ask for memory")


@given(st.binary(max_size=2048))
def test_noise(data: bytes) -> None:
    try:
        list(members(data))
    except SampanError:
        pass


def test_a_real_tree_of_gnu_tar() -> None:
    command = ["tar", "-C", "/usr/share/doc", "-cf", "-", *sorted(os.listdir("/usr/share/doc"))[:40]]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(m.name, m.size, m.mode, m.mtime) for m in archive]
    found = [(e.name.decode().rstrip("/"), e.size, e.mode, e.mtime // 10**9) for e, _ in members(data)]
    assert found == expected


def summary(data: bytes, piece: int, *, plain: bool) -> list[object]:
    """All that matters of an archive's members, and how its reading ended."""
    source = io.BytesIO(data)
    reader = Reader(lambda: source.read(piece))
    found: list[object] = []
    try:
        while True:
            for name, owner, times, content in reader.plain() if plain else ():
                found.append((b"0", name, b"", *owner, times, bytes(content), None, None))
            entry = reader.next()
            if entry is None:
                return found
            parts: list[bytes] = []
            for _, length in entry.sparse if entry.sparse is not None else [(0, entry.size)]:
                reader.copy(length, lambda piece, parts=parts: parts.append(bytes(piece)))  # type: ignore[misc]
            times = (entry.mtime if entry.atime is None else entry.atime, entry.mtime)
            owner = (entry.mode, entry.uid, entry.gid)
            found.append(
                (entry.type, entry.name, entry.linkname, *owner, times, b"".join(parts), entry.xattrs, entry.sparse)
            )
    except SampanError as error:
        return [*found, type(error)]


FILES = st.builds(
    lambda name, size, mode, uid, mtime, kind: (
        info(name, mode=mode, uid=uid, gid=uid // 2, mtime=mtime, type=kind, linkname="a" if kind in b"12" else ""),
        b"x" * (size if kind == b"0" else 0),
    ),
    st.sampled_from(["a", "./b", "dir/.wh.c", "d" * 90 + "/" + "f" * 60, "é" * 120, "dir/"]),
    st.sampled_from([0, 1, 511, 512, 513, 5000]),
    st.sampled_from([0o644, 0o4755, 0o7777]),
    st.sampled_from([0, 1000, 3_000_000]),
    st.sampled_from([0, 1_600_000_000, -5, 1.5]),
    st.sampled_from([b"0", b"0", b"0", b"1", b"2", b"5"]),
)


@given(
    st.lists(FILES, max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=3),
    st.booleans(),
    st.sampled_from([700, 1024, 1537, 100_000]),
)
def test_the_short_way_gives_what_the_long_one_does(
    files: list[tuple[tarfile.TarInfo, bytes]], form: int, damage: list[tuple[int, int]], repair: bool, piece: int
) -> None:
    data = bytearray(pack(*files, form=form))
    for position, value in damage:
        if position < len(data):
            data[position] = value
            if repair:
                set_checksum(data, position - position % 512)
    for piece_size in (piece, len(data)):
        assert summary(bytes(data), piece_size, plain=True) == summary(bytes(data), piece_size, plain=False)


def test_plain_files_take_the_short_way() -> None:
    data = pack(*((info(f"dir/{number}", uid=7, mtime=9), b"x" * number) for number in range(1000, 1020)))
    taken = [(name, owner, times, len(content)) for name, owner, times, content in Reader(lambda: data).plain()]
    assert not taken  # nothing is in memory yet
    reader = Reader(iter([data, b""]).__next__)
    assert reader.next()
    taken = [(name, owner, times, len(content)) for name, owner, times, content in reader.plain()]
    assert taken == [(b"dir/%d" % size, (0o644, 7, 0), (9 * 10**9,) * 2, size) for size in range(1001, 1020)]
    assert reader.next() is None

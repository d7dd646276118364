import calendar
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidInput
from sampan.wire import crilog

NOW = b"2016-10-06T00:17:09.669794202Z"
outputs = st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"\n\n", b"a\nb", b"\r\n", b"x" * 40]), max_size=20)


def encode(chunks: list[bytes], limit: int, *, stream: str = "stdout") -> bytes:
    encoder = crilog.Encoder(stream, limit)
    return b"".join(b"".join(encoder.feed(chunk, NOW)) for chunk in chunks) + b"".join(encoder.flush(NOW))


@given(outputs, st.integers(1, 20))
def test_what_was_written_can_be_read_back(chunks: list[bytes], limit: int) -> None:
    log = encode(chunks, limit)
    assert log == b"" or log.endswith(b"\n")
    lines = (
        [crilog.parse(line) for line in log.splitlines(keepends=True) if line]
        if b"\r" not in log
        else [crilog.parse(line) for line in log.split(b"\n")[:-1]]
    )
    assert b"".join(line.content for line in lines) == b"".join(chunks)
    assert all(len(line.text) <= limit for line in lines)
    assert all(line.time.encode() == NOW and line.stream == "stdout" for line in lines)


@given(outputs, outputs, st.integers(1, 20))
def test_lines_do_not_depend_on_where_reads_end(chunks: list[bytes], others: list[bytes], limit: int) -> None:
    text = b"".join(chunks)
    cuts = [len(other) for other in others]
    pieces = []
    for size in cuts:
        pieces.append(text[:size])
        text = text[size:]
    assert encode([*pieces, text], limit) == encode(chunks, limit)


def test_short_lines_are_whole_and_long_ones_in_parts() -> None:
    assert encode([b"one\ntwo\n"], 16) == NOW + b" stdout F one\n" + NOW + b" stdout F two\n"
    assert encode([b"abcdefgh\n"], 3, stream="stderr") == (
        NOW + b" stderr P abc\n" + NOW + b" stderr P def\n" + NOW + b" stderr F gh\n"
    )
    assert encode([b"no end"], 16) == NOW + b" stdout P no end\n"


@given(st.integers(0, 4_102_444_800 * 10**9))
def test_times_are_exact_both_ways(moment: int) -> None:
    text = crilog.timestamp(moment).decode()
    assert len(text) == 30
    assert crilog.nanoseconds(text) == moment
    assert calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) == moment // 10**9


def test_times_of_other_zones_and_precisions() -> None:
    assert crilog.nanoseconds("1970-01-01T02:00:00+02:00") == 0
    assert crilog.nanoseconds("1969-12-31T22:30:00.5-01:30") == 500_000_000
    for bad in ["", "x", "1970-01-01", "1970-01-01T00:00:00", "1970-01-01T00:00:00.xZ", "1970-13-01T00:00:00Z"]:
        with pytest.raises(InvalidInput):
            crilog.nanoseconds(bad)


@pytest.mark.parametrize("line", [b"", b"x", b"t stdin F x", b"t stdout X x", b"t stdout"])
def test_other_text_is_no_line(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        crilog.parse(line)


def test_tags_to_come_are_ignored() -> None:
    assert crilog.parse(NOW + b" stdout P:new x").partial


@given(
    st.lists(st.tuples(st.sampled_from([b"F", b"P"]), st.binary(max_size=5).map(lambda b: b.replace(b"\n", b"")))),
    st.integers(0, 8),
)
def test_the_tail_is_the_last_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bytes, bytes]], count: int
) -> None:
    path = Path(os.devnull).parent / "shm" / f"sampan-tail-{os.getpid()}"
    texts = [NOW + b" stdout " + tag + b" " + text + b"\n" for tag, text in lines]
    path.write_bytes(b"".join(texts))
    try:
        with path.open("rb") as file:
            offset = crilog.tail_offset(file.fileno(), count)
            tail = path.read_bytes()[offset:]
    finally:
        path.unlink()
    wanted: list[bytes] = []
    found = 0
    for (tag, _), text in zip(reversed(lines), reversed(texts), strict=True):
        if tag == b"F":
            if found == count:
                break
            found += 1
        wanted.insert(0, text)
    assert tail == (b"".join(wanted) if count else b"")


def test_a_gigabyte_would_not_be_slow() -> None:
    block = (b"x" * 99 + b"\n") * 655  # one read of 64 KiB
    encoder = crilog.Encoder("stdout")
    started = time.perf_counter()
    for _ in range(200):
        encoder.feed(block, NOW)
    # 13 MB; the bound is ten times what it takes here, to be told of a loop for each line, not of a busy machine.
    assert time.perf_counter() - started < 0.5

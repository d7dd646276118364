"""The SPDY codec against itself, against the draft's numbers, and against nonsense."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.wire import spdy


def test_the_dictionary_is_the_drafts() -> None:
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2


def pair() -> tuple[spdy.Connection, spdy.Connection]:
    return spdy.Connection(client=True), spdy.Connection()


def test_a_stream_lives_through_open_data_and_both_ends() -> None:
    client, server = pair()
    stream, opening = client.open({"streamType": "stdin"})
    assert server.receive(opening) == [spdy.Opened(stream, {"streamtype": "stdin"}, finished=False)]
    assert client.receive(server.accept(stream)) == [spdy.Replied(stream, {})]
    assert server.receive(client.send(stream, b"hello")) == [spdy.Data(stream, b"hello", finished=False)]
    assert server.receive(client.send(stream, b"", finished=True)) == [spdy.Data(stream, b"", finished=True)]
    assert client.receive(server.send(stream, b"bye", finished=True)) == [spdy.Data(stream, b"bye", finished=True)]
    assert client.send(stream, b"late") == server.send(stream, b"late") == b""


def test_a_ping_of_the_peer_is_answered_and_our_own_is_not() -> None:
    server = spdy.Connection()
    ping = struct.pack(">III", 1 << 31 | 3 << 16 | 6, 4, 7)
    assert server.receive(ping) == []
    assert server.pending() == ping
    assert server.pending() == b""
    server.receive(struct.pack(">III", 1 << 31 | 3 << 16 | 6, 4, 8))
    assert server.pending() == b""


def test_data_after_our_reset_is_dropped() -> None:
    client, server = pair()
    stream, opening = client.open({})
    server.receive(opening)
    late = client.send(stream, b"x")
    client.receive(server.reset(stream))
    assert server.receive(late) == []
    assert server.reset(stream) == b""


def test_streams_over_the_bound_are_refused_and_the_connection_goes_on() -> None:
    client, server = pair()
    for _ in range(spdy.MAX_STREAMS):
        server.receive(client.open({})[1])
    stream, opening = client.open({"late": "1"})
    assert server.receive(opening) == []
    assert client.receive(server.pending()) == [spdy.Reset(stream, spdy.REFUSED_STREAM)]


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", 1 << 31 | 2 << 16 | 1, 0),
        struct.pack(">II", 1, spdy.MAX_FRAME + 1),
        struct.pack(">II", 1 << 31 | 3 << 16 | 1, 2) + b"\0\0",
        struct.pack(">IIIIH", 1 << 31 | 3 << 16 | 1, 12, 1, 0, 0) + b"xx",
    ],
    ids=["version", "size", "short", "zlib"],
)
def test_a_broken_frame_is_an_error(frame: bytes) -> None:
    with pytest.raises(spdy.SpdyError):
        spdy.Connection().receive(frame)


def test_a_header_bomb_is_refused() -> None:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = deflate.compress(bytes(10 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    payload = struct.pack(">IIH", 1, 0, 0) + block
    with pytest.raises(spdy.SpdyError, match="expands"):
        spdy.Connection().receive(struct.pack(">II", 1 << 31 | 3 << 16 | 1, len(payload)) + payload)


headers = st.dictionaries(st.text(min_size=1).map(str.lower).filter(lambda t: t == t.lower()), st.text(), max_size=8)


@given(st.lists(headers, min_size=1, max_size=5), st.integers(1, 64))
def test_headers_survive_any_split_of_the_bytes(blocks: list[dict[str, str]], step: int) -> None:
    client, server = pair()
    wire = b"".join(client.open(block)[1] for block in blocks)
    events = [e for at in range(0, len(wire), step) for e in server.receive(wire[at : at + step])]
    assert [e.headers for e in events if isinstance(e, spdy.Opened)] == blocks


@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_the_one_error(data: bytes) -> None:
    try:
        spdy.Connection().receive(data)
    except spdy.SpdyError:
        pass

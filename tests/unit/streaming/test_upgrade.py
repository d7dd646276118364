"""The opening request: what is agreed on, and what is refused with which status."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.streaming import upgrade

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def request(*lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} /exec/token HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body


def websocket(*protocols: str, key: str = KEY, version: str = "13") -> bytes:
    lines = ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket", f"Sec-WebSocket-Version: {version}"]
    lines += [f"Sec-WebSocket-Key: {key}"] if key else []
    return request(*lines, *(f"Sec-WebSocket-Protocol: {protocol}" for protocol in protocols))


def test_a_request_in_pieces_is_read_and_what_follows_is_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    data = request("Connection: Upgrade", "Upgrade: SPDY/3.1", body=b"\x80\x03early")
    writer = threading.Thread(target=lambda: [theirs.send(data[at : at + 1]) for at in range(len(data))])
    writer.start()
    read = upgrade.read_request(ours)
    writer.join()
    assert read.path == "/exec/token"
    assert read.wants("spdy/3.1")
    assert not read.wants("websocket")
    assert b"\x80\x03early".startswith(read.early)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0\1\2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + bytes([65]) * 100_000, 431),
        (request("A: " + "b" * 100_000), 431),
        (request(method="DELETE"), 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
        (b"GET / HT", 400),
        (b"", 400),
    ],
    ids=["binary", "no host", "long target", "long header", "method", "http2", "cut", "nothing"],
)
def test_a_bad_request_is_refused(pair: tuple[socket.socket, socket.socket], data: bytes, status: int) -> None:
    ours, theirs = pair

    def send() -> None:
        with suppress(BrokenPipeError):  # refused before its end
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(upgrade.Refused) as caught:
        upgrade.read_request(ours)
    assert caught.value.status == status
    ours.close()
    sender.join()


def test_a_request_that_trickles_is_refused_in_time(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "REQUEST_TIME", 0.1)
    ours, theirs = pair
    theirs.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(upgrade.Refused) as caught:
        upgrade.read_request(ours)
    assert caught.value.status == 408


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (websocket(version="8"), 400),
        (websocket(key=""), 400),
        (websocket(key="not base64!"), 400),
        (websocket(key="c2hvcnQ="), 400),
        (websocket("v9.channel.k8s.io"), 403),
    ],
)
def test_a_bad_websocket_handshake_is_refused(
    pair: tuple[socket.socket, socket.socket], data: bytes, status: int
) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    with pytest.raises(upgrade.Refused) as caught:
        upgrade.to_websocket(ours, upgrade.read_request(ours), upgrade.REMOTE_PROTOCOLS)
    assert caught.value.status == status


def test_the_newest_protocol_of_both_is_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(websocket("channel.k8s.io, v4.channel.k8s.io", "v3.channel.k8s.io"))
    chosen = upgrade.to_websocket(ours, upgrade.read_request(ours), upgrade.REMOTE_PROTOCOLS)
    assert chosen == "v4.channel.k8s.io"
    answer = theirs.recv(4096)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    assert b"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n" in answer


@pytest.mark.parametrize(
    ("offered", "chosen"), [((), "channel.k8s.io"), (("v2.channel.k8s.io", "v4.channel.k8s.io"), "v4.channel.k8s.io")]
)
def test_spdy_agrees_on_a_protocol(
    pair: tuple[socket.socket, socket.socket], offered: tuple[str, ...], chosen: str
) -> None:
    ours, theirs = pair
    theirs.sendall(request(*(f"X-Stream-Protocol-Version: {name}" for name in offered)))
    assert upgrade.to_spdy(ours, upgrade.read_request(ours), upgrade.REMOTE_PROTOCOLS) == chosen
    assert f"X-Stream-Protocol-Version: {chosen}\r\n".encode() in theirs.recv(4096)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            read = upgrade.read_request(ours)
            upgrade.to_websocket(ours, read, upgrade.REMOTE_PROTOCOLS)
        except upgrade.Refused as refusal:
            upgrade.refuse(ours, refusal)
            assert theirs.recv(4096).startswith(b"HTTP/1.1 4")

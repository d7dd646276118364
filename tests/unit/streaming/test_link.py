"""Links: WebSocket messages in and out, bounds, goodbyes; and no bytes that make a traceback."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from sampan.streaming import link as links
from sampan.streaming.channels import SpdyChannels, Wanted, WebSocketChannels
from sampan.streaming.link import HIGH_WATER, PlainLink, WebSocketLink
from sampan.streaming.pairs import ChannelPairs, SpdyPairs
from sampan.wire import spdy

ALL = Wanted(stdin=True, stdout=True, stderr=True, tty=False).channels("v5.channel.k8s.io")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


class Peer:
    """The other side of a WebSocket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = Connection(ConnectionType.CLIENT)

    def say(self, *events: Event) -> None:
        self.sock.sendall(b"".join(self.protocol.send(event) for event in events))

    def hear(self) -> list[Event]:
        self.protocol.receive_data(self.sock.recv(1 << 20))
        return list(self.protocol.events())


def test_messages_in_pieces_come_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    link, peer = WebSocketLink(pair[0]), Peer(pair[1])
    peer.say(BytesMessage(b"\0one ", message_finished=False), BytesMessage(b"two"), TextMessage("\3é"))
    assert link.read() == [b"\0one two", "\3é".encode()]
    assert link.read() == []


def test_a_ping_between_the_pieces_is_answered(pair: tuple[socket.socket, socket.socket]) -> None:
    link, peer = WebSocketLink(pair[0]), Peer(pair[1])
    peer.say(BytesMessage(b"a", message_finished=False), Ping(b"x"), BytesMessage(b"b"))
    assert link.read() == [b"ab"]
    assert peer.hear() == [Pong(b"x")]


def test_early_bytes_come_first_and_hide_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"late")
    link = PlainLink(ours, b"early")
    assert link.hidden()
    assert link.read() == [b"early", b"late"]
    assert not link.hidden()


def test_a_message_that_is_too_long_ends_the_link(pair: tuple[socket.socket, socket.socket]) -> None:
    link, peer = WebSocketLink(pair[0]), Peer(pair[1])
    data = peer.protocol.send(BytesMessage(bytes(HIGH_WATER + 1)))
    sender = threading.Thread(target=lambda: pair[1].sendall(data))
    sender.start()
    while link.read() is not None:
        pass
    sender.join()
    (goodbye,) = peer.hear()
    assert isinstance(goodbye, CloseConnection)
    assert goodbye.code == 1009
    link.write(b"after")
    assert link.read() is None


def test_a_goodbye_is_answered_and_is_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    link, peer = WebSocketLink(pair[0]), Peer(pair[1])
    peer.say(BytesMessage(b"last"), CloseConnection(1000))
    pair[1].sendall(b"rubbish after it")
    assert link.read() == [b"last"]
    assert link.hidden()
    assert link.read() is None
    assert isinstance(peer.hear()[0], CloseConnection)


def test_a_frame_without_a_mask_is_a_fault_of_the_peer(pair: tuple[socket.socket, socket.socket]) -> None:
    link = WebSocketLink(pair[0])
    pair[1].sendall(b"\x82\x01a")
    assert link.read() is None
    assert pair[1].recv(100)[2:4] == (1002).to_bytes(2, "big")


def test_closing_delivers_what_waits_though_bytes_are_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    theirs.settimeout(10)
    link = PlainLink(ours)
    theirs.sendall(b"never read")
    sent = os.urandom(8_000_000)
    link.write(sent)
    assert link.backlog() > 0
    closer = threading.Thread(target=link.close)
    closer.start()
    got = bytearray()
    while data := theirs.recv(1 << 16):
        got += data
    theirs.close()
    closer.join()
    assert got == sent


def test_closing_gives_up_on_a_peer_that_takes_nothing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "CLOSE_TIME", 0.05)
    monkeypatch.setattr(links, "LINGER_TIME", 0.05)
    link = PlainLink(pair[0])
    link.write(bytes(5_000_000))
    link.close()
    assert pair[0].fileno() == -1


def frames() -> st.SearchStrategy[bytes]:
    """WebSocket messages of a client, with random contents, in one go or cut; and rubbish."""
    message = st.builds(lambda data: Connection(ConnectionType.CLIENT).send(BytesMessage(data)), st.binary(max_size=40))
    stream, block = st.sampled_from(["stdin", "error", "data", "x"]), st.sampled_from(["80", "0", "99999", "²"])

    def opened(kind: str, port: str, rubbish: bytes) -> bytes:
        client = spdy.Connection(client=True)
        number, data = client.open({"streamtype": kind, "port": port, "requestid": "1"})
        return data + client.send(number, rubbish) + rubbish

    return st.one_of(st.binary(max_size=60), message, st.builds(opened, stream, block, st.binary(max_size=30)))


@given(st.lists(frames(), max_size=6), st.integers(1, 50), st.integers(0, 3))
def test_nothing_that_a_client_sends_makes_a_traceback(parts: list[bytes], step: int, kind: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        make = (
            lambda: SpdyChannels(PlainLink(ours), ALL),
            lambda: WebSocketChannels(WebSocketLink(ours), ALL),
            lambda: SpdyPairs(WebSocketLink(ours) if step % 2 else PlainLink(ours), {80}),
            lambda: ChannelPairs(WebSocketLink(ours), [80, 81]),
        )
        receiver = make[kind]()
        data = b"".join(parts)
        for at in range(0, len(data), step):
            theirs.sendall(data[at : at + step])
            if receiver.receive() is None:
                return  # nobody reads on, and sending would block
        theirs.shutdown(socket.SHUT_WR)
        while receiver.receive() is not None:
            pass

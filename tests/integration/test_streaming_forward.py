"""Port-forward to real pods, over SPDY, SPDY in WebSocket, and WebSocket channels."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from engine_world import World, world
from stream_client import Messages, Refused, Spdy, Tunnel

from sampan.engine.engine import Engine
from sampan.engine.model import Metadata, PodSpec
from sampan.linux.namespaces import CLONE_NEWNET, setns
from sampan.streaming.server import Server

pytestmark = pytest.mark.root

PROTOCOL = "portforward.k8s.io"


class PodServer:
    """Servers inside a pod: port 7000 tells how much it got once it has heard the end of it, port 7001 echoes.

    Args:
        netns: The pod's network namespace.
    """

    def __init__(self, netns: str) -> None:
        self.open: set[socket.socket] = set()
        with ThreadPoolExecutor(1) as inside:
            # Sockets stay in the namespace that they were made in.
            inside.submit(self._enter, netns).result()
            self._listeners = [
                inside.submit(socket.create_server, ("127.0.0.1", port)).result() for port in (7000, 7001)
            ]
        for listener, serve in zip(self._listeners, (self._count, self._echo), strict=True):
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()

    def _enter(self, netns: str) -> None:
        fd = os.open(netns, os.O_RDONLY)
        setns(fd, CLONE_NEWNET)
        os.close(fd)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.open.add(sock)
            threading.Thread(target=self._serve, args=(sock, serve), daemon=True).start()

    def _serve(self, sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        with sock, suppress(OSError):
            serve(sock)
        self.open.discard(sock)

    def _count(self, sock: socket.socket) -> None:
        size = 0
        while data := sock.recv(65536):
            size += len(data)
        sock.sendall(b"%d" % size)

    def _echo(self, sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)

    def close(self) -> None:
        """Listen no more."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("forward")) as made:
        yield made


@pytest.fixture(scope="module")
def engine(here: World) -> Iterator[Engine]:
    opened = here.engine()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pod(engine: Engine) -> Iterator[str]:
    made = engine.pods.run(PodSpec(metadata=Metadata("p")))
    yield made.id
    engine.pods.remove(made.id)


@pytest.fixture(scope="module", autouse=True)
def inside(engine: Engine, pod: str) -> Iterator[PodServer]:
    made = PodServer(engine.pods.netns(pod))
    yield made
    made.close()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    made = Server(engine, "127.0.0.1", 0)
    made.start()
    yield made
    deadline = time.monotonic() + 15
    while [thread for thread in threading.enumerate() if thread.name == "stream"]:
        assert time.monotonic() < deadline, "a session is left"
        time.sleep(0.01)
    made.close()


def client_of(server: Server, pod: str, ports: list[int], *, tunnel: bool) -> Spdy:
    url = server.port_forward(pod, ports)
    return Tunnel(url) if tunnel else Spdy.to(url, PROTOCOL)


def open_pair(client: Spdy, port: int, name: str) -> tuple[int, int]:
    error = client.open(streamType="error", port=str(port), requestID=name)
    return client.open(streamType="data", port=str(port), requestID=name), error


TUNNEL = pytest.mark.parametrize("tunnel", [False, True], ids=["spdy", "websocket"])


@TUNNEL
def test_many_connections_each_with_a_half_close(server: Server, pod: str, tunnel: bool) -> None:
    client = client_of(server, pod, [7000, 7001], tunnel=tunnel)
    pairs = [open_pair(client, 7000, str(number)) for number in range(40)]
    for number, (data, _) in enumerate(pairs):
        client.send(data, bytes(1000 * number), finished=True)
    client.until(*(stream for pair in pairs for stream in pair))
    assert [bytes(client.data[data]).strip() for data, _ in pairs] == [b"%d" % (1000 * n) for n in range(40)]
    assert not any(client.data[error] for _, error in pairs)
    client.close()


@TUNNEL
def test_a_large_transfer_comes_back_whole(server: Server, pod: str, tunnel: bool) -> None:
    client = client_of(server, pod, [7001], tunnel=tunnel)
    data, error = open_pair(client, 7001, "1")
    sent = os.urandom(4_000_000)

    def send() -> None:
        for at in range(0, len(sent), 50_000):
            client.send(data, sent[at : at + 50_000])
        client.send(data, b"", finished=True)

    sender = threading.Thread(target=send)
    sender.start()
    client.until(data, error)
    sender.join()
    assert client.data[data] == sent
    client.close()


@TUNNEL
def test_a_port_that_nobody_listens_on_is_an_error_of_that_connection(server: Server, pod: str, tunnel: bool) -> None:
    client = client_of(server, pod, [], tunnel=tunnel)
    data, error = open_pair(client, 9, "1")
    client.until(data, error)
    assert client.data[error] == b"connecting to port 9 in the pod: Connection refused"
    data, error = open_pair(client, 7001, "2")
    client.send(data, b"still there", finished=True)
    client.until(data, error)
    assert client.data[data] == b"still there"
    client.close()


def test_a_port_that_was_not_asked_for_is_refused(server: Server, pod: str) -> None:
    client = client_of(server, pod, [7001], tunnel=False)
    streams = [client.open(streamType="error", port=port, requestID="x") for port in ("7000", "0", "99999", "²", "")]
    streams.append(client.open(streamType="other", port="7001", requestID="y"))
    client.until(*streams)
    assert client.refused == set(streams)
    client.close()


def test_clients_without_request_ids_are_understood(server: Server, pod: str) -> None:
    client = client_of(server, pod, [7001], tunnel=False)
    pairs = []
    for _ in range(2):
        error = client.open(streamType="error", port="7001")
        pairs.append((client.open(streamType="data", port="7001"), error))
    for data, _ in pairs:
        client.send(data, b"%d" % data, finished=True)
    for data, error in pairs:
        client.until(data, error)
        assert client.data[data] == b"%d" % data
    client.close()


def test_the_channels_of_the_older_websocket_protocol(server: Server, pod: str) -> None:
    client = Messages(server.port_forward(pod, [7001, 9]), "v4.channel.k8s.io")
    got = {number: bytearray() for number in range(4)}
    client.send(b"\0echo this")
    while b"echo this" not in got[0] or b"refused" not in got[3]:
        messages = client.receive()
        assert messages is not None, got
        for message in messages:
            got[message[0]] += message[1:]
    assert [bytes(got[channel][:2]) for channel in range(4)] == [(7001).to_bytes(2, "little")] * 2 + [b"\x09\0"] * 2
    client.close()


def test_a_client_that_vanishes_leaves_no_connection_in_the_pod(server: Server, pod: str, inside: PodServer) -> None:
    client = client_of(server, pod, [7001], tunnel=False)
    for number in range(10):
        data, _ = open_pair(client, 7001, str(number))
        client.send(data, b"x")
        client.until(data, text=b"x")
    assert len(inside.open) == 10
    client.close()
    deadline = time.monotonic() + 15
    while inside.open:
        assert time.monotonic() < deadline, "connections are left"
        time.sleep(0.01)


def test_a_pod_that_is_gone_is_an_answer(server: Server, engine: Engine) -> None:
    gone = engine.pods.run(PodSpec(metadata=Metadata("gone"), network="none"))
    url = server.port_forward(gone.id, [80])
    engine.pods.remove(gone.id)
    with pytest.raises(Refused, match="404"):
        Spdy.to(url, PROTOCOL)


def test_fifty_clients_at_once(server: Server, pod: str) -> None:
    def talk(number: int) -> bytes:
        client = client_of(server, pod, [7001], tunnel=number % 2 == 0)
        with socket.socket() as unrelated:
            unrelated.bind(("127.0.0.1", 0))  # still in the machine's own network
        data, error = open_pair(client, 7001, "1")
        client.send(data, b"%d" % number, finished=True)
        client.until(data, error)
        client.close()
        return bytes(client.data[data])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(talk, range(50))) == [b"%d" % number for number in range(50)]

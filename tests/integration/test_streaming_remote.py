"""Exec and attach as a client sees them, over SPDY and WebSocket, with real containers."""

from __future__ import annotations

import gc
import os
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from engine_world import World, world
from stream_client import Refused, Remote, Spdy

from sampan.engine.engine import Engine
from sampan.engine.model import ContainerSpec, Metadata, Namespaces, PodSpec
from sampan.streaming.server import Server

pytestmark = pytest.mark.root

V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
WAYS = pytest.mark.parametrize("websocket", [False, True], ids=["spdy", "websocket"])
SUCCESS = {"metadata": {}, "status": "Success"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("streaming")) as made:
        yield made


@pytest.fixture(scope="module")
def engine(here: World) -> Iterator[Engine]:
    opened = here.engine()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def container(here: World, engine: Engine) -> Iterator[str]:
    """A container that sleeps."""
    pod = engine.pods.run(PodSpec(metadata=Metadata("p"), network="none"))
    yield start(here, engine, pod.id, "sleeper", "sleep", "1000")
    engine.pods.remove(pod.id)


def start(
    here: World, engine: Engine, pod_id: str, name: str, *command: str, stdin: bool = False, tty: bool = False
) -> str:
    spec = ContainerSpec(
        metadata=Metadata(name), image=here.image, command=command, namespaces=Namespaces(), stdin=stdin, tty=tty
    )
    made = engine.containers.create(pod_id, spec)
    engine.containers.start(made.id)
    return made.id


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    """A server that leaves neither a thread nor a descriptor."""
    gc.collect()
    before = descriptors()
    made = Server(engine, "127.0.0.1", 0)
    made.start()
    yield made
    settled(lambda: not sessions())
    made.close()
    # A few idle connections to the monitor are kept for the next call; and SQLite keeps the files of connections that
    # it closed beside open ones, for the next to open (POSIX locks are lost at any close).
    settled(lambda: len(descriptors() - before) <= 24, lambda: descriptors() - before)


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def sessions() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "stream"]


def settled(done: Callable[[], bool], left: Callable[[], object] = sessions, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"left: {left()}"
        time.sleep(0.01)


def exec_url(server: Server, container: str, *command: str, stdin: bool = False, tty: bool = False) -> str:
    return server.exec(container, command, tty=tty, stdin=stdin, stdout=True, stderr=not tty)


def running(engine: Engine, container: str) -> list[str]:
    return engine.containers.exec_sync(container, ["ps", "-o", "args"]).stdout.decode().splitlines()


@WAYS
def test_output_errors_and_the_exit_code_arrive(server: Server, container: str, websocket: bool) -> None:
    url = exec_url(server, container, "sh", "-c", "echo out; echo err >&2; exit 7")
    client = Remote(url, websocket=websocket)
    outcome = client.outcome()
    assert client.received["stdout"] == b"out\n"
    assert client.received["stderr"] == b"err\n"
    assert outcome["reason"] == "NonZeroExitCode"
    assert outcome["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


@WAYS
def test_input_is_half_closed_and_comes_back_whole(server: Server, container: str, websocket: bool) -> None:
    client = Remote(
        exec_url(server, container, "cat", stdin=True), "stdin stdout stderr", protocol=V5, websocket=websocket
    )
    sent = os.urandom(3_000_000)

    def type_it() -> None:
        for at in range(0, len(sent), 30_000):
            client.send("stdin", sent[at : at + 30_000])
        client.end("stdin")

    typist = threading.Thread(target=type_it)
    typist.start()
    assert client.outcome() == SUCCESS
    typist.join()
    assert client.received["stdout"] == sent


@WAYS
def test_a_terminal_echoes_and_has_the_size_it_is_told(server: Server, container: str, websocket: bool) -> None:
    url = exec_url(server, container, "sh", stdin=True, tty=True)
    client = Remote(url, "stdin stdout resize", websocket=websocket)
    for part in (b'{"Wid', b'th":132,"Hei', b'ght":43}\n'):
        client.send("resize", part)
    # The size travels on a channel of its own, so the shell asks until it is there.
    client.send("stdin", b"until stty size | grep -q '43 132'; do :; done; echo got-$((40 + 2))\n")
    client.until(b"got-42")
    assert b"until stty" in client.received["stdout"]
    client.send("stdin", b"exit 3\n")
    assert client.outcome()["details"]["causes"][0]["message"] == "3"


@WAYS
def test_a_command_that_is_not_there_is_a_failure_of_ours(server: Server, container: str, websocket: bool) -> None:
    outcome = Remote(exec_url(server, container, "/nosuch"), websocket=websocket).outcome()
    assert (outcome["status"], outcome["reason"]) == ("Failure", "InternalError")
    assert "nosuch" in outcome["message"]


def test_an_address_works_once(server: Server, container: str) -> None:
    url = exec_url(server, container, "true")
    assert Remote(url).outcome() == SUCCESS
    for wrong in (url, url[:-1], url.replace("/exec/", "/attach/")):
        with pytest.raises(Refused, match="404"):
            Remote(wrong)


def test_a_child_that_holds_the_pipe_does_not_hold_the_session(server: Server, container: str) -> None:
    began = time.monotonic()
    client = Remote(exec_url(server, container, "sh", "-c", "sleep 60 & echo done"))
    assert client.outcome() == SUCCESS
    assert client.received["stdout"] == b"done\n"
    assert time.monotonic() - began < 10


def test_a_slow_reader_gets_all_of_a_process_that_has_ended(server: Server, container: str) -> None:
    client = Remote(exec_url(server, container, "head", "-c", "6000000", "/dev/zero"))
    # Longer than late output is waited for; the socket's buffers are full meanwhile.
    time.sleep(3)
    assert client.outcome() == SUCCESS
    assert len(client.received["stdout"]) == 6_000_000


def test_a_command_that_reads_nothing_gets_its_outcome_through(server: Server, container: str) -> None:
    client = Remote(
        exec_url(server, container, "sh", "-c", "exec <&-; sleep 0.5; exit 5", stdin=True), "stdin stdout stderr"
    )
    cpu = time.process_time()
    client.send("stdin", bytes(500_000))
    assert client.outcome()["details"]["causes"][0]["message"] == "5"
    assert time.process_time() - cpu < 0.4, "turned in circles over a closed pipe"


@WAYS
@pytest.mark.parametrize("tty", [False, True])
def test_a_client_that_vanishes_takes_its_command_along(
    server: Server, engine: Engine, container: str, websocket: bool, tty: bool
) -> None:
    url = exec_url(server, container, "sh", "-c", "echo on; sleep 4321", stdin=True, tty=tty)
    client = Remote(url, "stdin stdout resize" if tty else "stdin stdout stderr", websocket=websocket)
    client.until(b"on")
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    settled(lambda: not sessions())
    assert not [line for line in running(engine, container) if "4321" in line]


def test_a_client_that_vanishes_while_its_input_is_stuck_is_noticed(
    server: Server, engine: Engine, container: str
) -> None:
    client = Remote(exec_url(server, container, "sleep", "4322", stdin=True), "stdin stdout stderr")
    client.sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.send("stdin", bytes(100_000))
    client.close()
    settled(lambda: not sessions())
    assert not [line for line in running(engine, container) if "4322" in line]


def test_a_client_may_vanish_before_it_has_asked_or_opened_anything(server: Server, container: str) -> None:
    silent = Remote.__new__(Remote)
    parts = exec_url(server, container, "true").split("/")
    with socket.create_connection((parts[2].split(":")[0], int(parts[2].split(":")[1]))) as sock:
        sock.sendall(b"GET /exec/x HTTP/1.1\r\n")
    half = Spdy.to(exec_url(server, container, "true"), V4)
    half.open(streamType="error")
    half.close()
    settled(lambda: not sessions())
    del silent


def test_the_end_of_the_server_ends_sessions_and_their_commands(engine: Engine, container: str) -> None:
    ending = Server(engine, "127.0.0.1", 0)
    ending.start()
    clients = [Remote(exec_url(ending, container, "sh", "-c", "echo on; sleep 4323")) for _ in range(5)]
    for client in clients:
        client.until(b"on")
    ending.close()
    assert not sessions()
    for client in clients:
        client.close()
    assert not [line for line in running(engine, container) if "4323" in line]


def test_silence_ends_a_session(engine: Engine, container: str) -> None:
    impatient = Server(engine, "127.0.0.1", 0, idle=0.3)
    impatient.start()
    outcome = Remote(exec_url(impatient, container, "sleep", "4324")).outcome()
    assert "0.3 s" in outcome["message"]
    impatient.close()
    assert not [line for line in running(engine, container) if "4324" in line]


def test_a_client_that_opens_too_little_too_late_is_refused(engine: Engine, container: str) -> None:
    hasty = Server(engine, "127.0.0.1", 0, creation=0.3)
    hasty.start()
    client = Remote(exec_url(hasty, container, "sleep", "4326", stdin=True), "stdout stderr")
    outcome = client.outcome()
    assert outcome["status"] == "Failure"
    assert "not all of the streams were opened in 0.3 s" in outcome["message"]
    settled(lambda: not sessions())
    assert not [line for line in running(engine, container) if "4326" in line]
    hasty.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have, as the daemon has it: here one process is both ends."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_two_hundred_sessions_at_once(server: Server, engine: Engine, container: str) -> None:
    count = 200

    def open_one(number: int) -> Remote:
        url = exec_url(server, container, "cat", stdin=True)
        client = Remote(url, "stdin stdout stderr", protocol=V5, websocket=number % 2 == 1)
        client.send("stdin", b"hello\n")
        client.until(b"hello\n")
        return client

    with ThreadPoolExecutor(16) as pool:
        clients = list(pool.map(open_one, range(count)))
        assert len(sessions()) == count
        for number, client in enumerate(clients):
            client.send("stdin", b"%d" % number)
            client.end("stdin")
        assert list(pool.map(Remote.outcome, clients)) == [SUCCESS] * count
    assert [bytes(client.received["stdout"]) for client in clients] == [b"hello\n%d" % n for n in range(count)]


@WAYS
def test_attach_sees_what_the_container_prints_and_types_to_it(
    here: World, server: Server, engine: Engine, container: str, websocket: bool
) -> None:
    pod = engine.containers.get(container).pod_id
    name = f"reader-{websocket}"
    cid = start(here, engine, pod, name, "sh", "-c", "while read x; do echo got $x; done; exit 4", stdin=True)
    clients = [
        Remote(
            server.attach(cid, tty=False, stdin=True, stdout=True, stderr=True),
            "stdin stdout stderr",
            protocol=V5,
            websocket=websocket,
        )
        for _ in range(2)
    ]
    settled(lambda: len(sessions()) == 2)
    # Both are attached once each has seen its own words; the other may have come too late for the first.
    for number, client in enumerate(clients):
        client.send("stdin", b"%d\n" % number)
        client.until(b"got %d\n" % number)
    clients[0].close()
    clients[1].send("stdin", b"again\n")
    clients[1].until(b"got again\n")
    engine.containers.kill(cid, 9)
    assert clients[1].outcome() == SUCCESS
    assert engine.containers.wait(cid, 10) == 137


@WAYS
def test_attach_to_a_terminal_resizes_it(
    here: World, server: Server, engine: Engine, container: str, websocket: bool
) -> None:
    pod = engine.containers.get(container).pod_id
    cid = start(here, engine, pod, f"tty-{websocket}", "sh", stdin=True, tty=True)
    url = server.attach(cid, tty=True, stdin=True, stdout=True, stderr=False)
    client = Remote(url, "stdin stdout resize", websocket=websocket)
    client.send("resize", b'{"Width":77,"Height":33}')
    client.send("stdin", b"until stty size | grep -q '33 77'; do :; done; echo got-$((40 + 2))\n")
    client.until(b"got-42")
    client.send("stdin", b"exit\n")
    assert client.outcome() == SUCCESS
    assert engine.containers.wait(cid, 10) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@WAYS
def test_all_of_it_over_tls(engine: Engine, container: str, certificate: tuple[Path, Path], websocket: bool) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    secure = Server(engine, "127.0.0.1", 0, str(cert), str(key))
    secure.start()
    url = exec_url(secure, container, "sh", "-c", "head -c 2000000 | md5sum; exec sleep 4325", stdin=True)
    assert url.startswith("https://")
    # More input at once than TLS' records hold: what poll() can't see must be found.
    client = Remote(url, "stdin stdout stderr", protocol=V5, websocket=websocket, context=context)
    for _ in range(40):
        client.send("stdin", bytes(50_000))
    client.until(b"-\n")
    client.close()
    settled(lambda: not sessions())
    assert not [line for line in running(engine, container) if "4325" in line]
    big = Remote(
        exec_url(secure, container, "head", "-c", "5000000", "/dev/zero"), websocket=websocket, context=context
    )
    assert big.outcome() == SUCCESS
    assert len(big.received["stdout"]) == 5_000_000
    with pytest.raises((Refused, OSError)):
        Remote(exec_url(secure, container, "true"))
    secure.close()

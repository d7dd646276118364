"""The streaming server: CRI hands out a URL, a client opens it once, a thread serves the session.

One thread a session, in one poll loop each: hundreds at once cost a few hundred kilobytes, and none can hold up
another. The tokens in the URLs are the authorisation, as in every CRI runtime; TLS is an option.
"""

import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Literal, NamedTuple

from sampan.errors import SampanError, StageFailed
from sampan.linux.process import pidfd_open
from sampan.streaming import remote, upgrade
from sampan.streaming.channels import Channels, Said, SpdyChannels, Wanted, WebSocketChannels
from sampan.streaming.forward import Forward
from sampan.streaming.link import Link, PlainLink, WebSocketLink
from sampan.streaming.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sampan.engine.engine import Engine
    from sampan.engine.execs import AttachSession, ExecSession


class _Waiting(NamedTuple):
    """A request that waits for its client."""

    kind: Literal["exec", "attach", "portforward"]
    target: str
    command: tuple[str, ...] = ()
    wanted: Wanted = Wanted(stdin=False, stdout=False, stderr=False, tty=False)
    ports: tuple[int, ...] = ()


class Server:
    """Serves exec, attach and port-forward.

    Args:
        engine: Whose containers.
        address: Address to listen on.
        port: Port to listen on; 0: one that is free.
        tls_cert: Certificate file; empty: no TLS.
        tls_key: Its key.
    """

    def __init__(self, engine: "Engine", address: str, port: int, tls_cert: str = "", tls_key: str = "") -> None:
        self._engine = engine
        self._tokens: Tokens[_Waiting] = Tokens()
        self._address = (address, port)
        self._tls: ssl.SSLContext | None = None
        if tls_cert:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(tls_cert, tls_key)
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Listen, and serve from a thread.

        Raises:
            StageFailed: The address can't be listened on.
        """
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._address)
            listener.listen(512)
        except OSError as error:
            listener.close()
            where = f"{self._address[0]}:{self._address[1]}"
            raise StageFailed("listen for streaming", error, path=where) from error
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="streaming", daemon=True).start()

    def close(self) -> None:
        """Take no more clients; sessions under way go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()

    def exec(
        self, container_id: str, cmd: "Sequence[str]", *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """The URL at which a client can run a command in a container."""
        wanted = Wanted(stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)
        return self._url("exec", _Waiting("exec", container_id, tuple(cmd), wanted))

    def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """The URL at which a client can join a container's streams."""
        wanted = Wanted(stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)
        return self._url("attach", _Waiting("attach", container_id, wanted=wanted))

    def port_forward(self, pod_id: str, ports: "Sequence[int]") -> str:
        """The URL at which a client can reach ports of a pod."""
        return self._url("portforward", _Waiting("portforward", pod_id, ports=tuple(ports)))

    def _url(self, kind: str, waiting: _Waiting) -> str:
        if self._listener is None:
            raise SampanError("the streaming server does not run")
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{host}:{port}/{kind}/{self._tokens.add(waiting)}"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                if self._listener is not listener:
                    return
                continue
            threading.Thread(target=self._serve, args=(sock,), name="stream", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock.settimeout(upgrade.REQUEST_TIME)
                sock = self._tls.wrap_socket(sock, server_side=True)
            try:
                request = upgrade.read_request(sock)
                waiting = self._waiting(request)
                self._session(sock, request, waiting)
            except upgrade.Refused as refusal:
                upgrade.refuse(sock, refusal)
        except OSError:
            pass  # the client has gone
        finally:
            sock.close()

    def _waiting(self, request: upgrade.Request) -> _Waiting:
        kind, _, token = request.path.partition("?")[0].strip("/").partition("/")
        waiting = self._tokens.take(token)
        if waiting is None or waiting.kind != kind:
            raise upgrade.Refused(404, "this address was never handed out, was used already, or is too old")
        return waiting

    def _session(self, sock: socket.socket, request: upgrade.Request, waiting: _Waiting) -> None:
        websocket = request.wants("websocket")
        if not websocket and not request.wants("SPDY/3.1"):
            raise upgrade.Refused(400, "only upgrades to SPDY/3.1 and websocket are served here")
        if waiting.kind == "portforward":
            self._forward(sock, request, waiting, websocket=websocket)
            return
        agree = upgrade.to_websocket if websocket else upgrade.to_spdy
        version = agree(sock, request, upgrade.REMOTE_PROTOCOLS)
        expected = waiting.wanted.channels(version)
        link: Link
        channels: Channels
        if websocket:
            link = WebSocketLink(sock, request.early)
            channels = WebSocketChannels(link, expected)
        else:
            link = PlainLink(sock, request.early)
            channels = SpdyChannels(link, expected)
        try:
            said = remote.await_channels(link, channels)
            if said is not None:
                self._join(link, channels, waiting, version, said)
        finally:
            link.close()

    def _forward(self, sock: socket.socket, request: upgrade.Request, waiting: _Waiting, *, websocket: bool) -> None:
        link: Link
        if websocket:
            upgrade.to_websocket(sock, request, (upgrade.TUNNEL_PREFIX + upgrade.FORWARD_PROTOCOL,))
            link = WebSocketLink(sock, request.early)
        else:
            upgrade.to_spdy(sock, request, (upgrade.FORWARD_PROTOCOL,))
            link = PlainLink(sock, request.early)
        try:
            Forward(link, self._engine.pods.netns(waiting.target), list(waiting.ports)).run()
        finally:
            link.close()

    def _join(
        self,
        link: Link,
        channels: Channels,
        waiting: _Waiting,
        version: str,
        said: list[Said],
    ) -> None:
        start = _start_exec if waiting.kind == "exec" else _start_attach
        try:
            process, ends = start(self._engine, waiting)
        except SampanError as error:
            channels.finish(remote.failure(error, version=version))
            return
        try:
            if remote.Session(link, channels, process, ends, waiting.wanted).run(said):
                channels.finish(remote.status(process.outcome(), version=version))
            else:
                process.abandon()
        except SampanError as error:
            channels.finish(remote.failure(error, version=version))
        finally:
            process.close()


class _Command:
    """A command as a session's process."""

    def __init__(self, session: "ExecSession") -> None:
        self._session = session
        try:
            self.ended = pidfd_open(session.pid)
        except ProcessLookupError:
            self.ended = -1

    def resize(self, width: int, height: int) -> None:
        self._session.resize(width, height)

    def outcome(self) -> int:
        return self._session.wait()

    def abandon(self) -> None:
        self._session.kill()

    def close(self) -> None:
        self._session.close()
        ended, self.ended = self.ended, -1
        if ended >= 0:
            os.close(ended)


class _Attached:
    """A container's first process as a session's process; its end is no failure of the attach."""

    def __init__(self, session: "AttachSession") -> None:
        self._session = session
        self.ended = session.fileno()

    def resize(self, width: int, height: int) -> None:
        self._session.resize(width, height)

    def outcome(self) -> int:
        return 0

    def abandon(self) -> None:
        """The container runs on."""

    def close(self) -> None:
        self._session.close()


def _start_exec(engine: "Engine", waiting: _Waiting) -> tuple[_Command, remote.Ends]:
    wanted = waiting.wanted
    if wanted.tty:
        session = engine.containers.exec(waiting.target, waiting.command, tty=True)
        # A copy: the session's own is for window sizes, and both are closed at the end.
        console = os.dup(session.console)
        return _Command(session), remote.Ends(console if wanted.stdin else -1, console, -1)
    ours, theirs = _pipes(wanted)
    try:
        session = engine.containers.exec(
            waiting.target, waiting.command, stdin=theirs.stdin, stdout=theirs.stdout, stderr=theirs.stderr
        )
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    return _Command(session), ours


def _start_attach(engine: "Engine", waiting: _Waiting) -> tuple[_Attached, remote.Ends]:
    wanted = waiting.wanted
    ours, theirs = _pipes(wanted._replace(stderr=wanted.stderr and not wanted.tty))
    try:
        session = engine.containers.attach(
            waiting.target, stdin=theirs.stdin, stdout=theirs.stdout, stderr=theirs.stderr
        )
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    return _Attached(session), ours


def _pipes(wanted: Wanted) -> tuple[remote.Ends, remote.Ends]:
    """Our ends and the process's ends of the streams that are wanted."""
    stdin = os.pipe2(os.O_CLOEXEC) if wanted.stdin else (-1, -1)
    stdout = os.pipe2(os.O_CLOEXEC) if wanted.stdout else (-1, -1)
    stderr = os.pipe2(os.O_CLOEXEC) if wanted.stderr else (-1, -1)
    return remote.Ends(stdin[1], stdout[0], stderr[0]), remote.Ends(stdin[0], stdout[1], stderr[1])


def _close(ends: remote.Ends) -> None:
    for fd in set(ends) - {-1}:
        os.close(fd)

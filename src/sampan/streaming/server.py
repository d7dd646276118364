"""The streaming server: CRI hands out a URL, a client opens it once, a thread serves the session.

One thread a session, in one poll loop each: none can hold up another, and a session that is silent costs its stack.
The tokens in the URLs are the authorisation, as in every CRI runtime; TLS is an option.
"""

import logging
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from sampan.errors import SampanError, StageFailed, TimedOut, Unavailable
from sampan.streaming import remote, targets, upgrade
from sampan.streaming.channels import Channels, Said, SpdyChannels, Wanted, WebSocketChannels
from sampan.streaming.forward import Forward
from sampan.streaming.link import Link, PlainLink, WebSocketLink
from sampan.streaming.pairs import ChannelPairs, Pairs, SpdyPairs
from sampan.streaming.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sampan.engine.engine import Engine

_LOG = logging.getLogger(__name__)

#: Connections at once, those included that have not said yet what they want.
MOST = 1024
#: Seconds for the sessions to end when the server does.
END_TIME = 5.0
#: Seconds until a peer that answers nothing is asked whether it lives, between questions; how many go unanswered.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


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
        idle: Seconds without a byte in either direction after which a session ends; 0: never.
        creation: Seconds for a client to open all of its streams.
    """

    def __init__(
        self,
        engine: "Engine",
        address: str,
        port: int,
        tls_cert: str = "",
        tls_key: str = "",
        idle: float = remote.IDLE_TIME,
        creation: float = remote.CREATION_TIME,
    ) -> None:
        self._engine = engine
        self._tokens: Tokens[_Waiting] = Tokens()
        self._address = (address, port)
        self._tls = _tls_context(tls_cert, tls_key) if tls_cert else None
        self._idle = idle
        self._creation = creation
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}

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
        """Take no more clients, and end the sessions under way as if their clients had gone."""
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()
        deadline = time.monotonic() + END_TIME
        with self._lock:
            clients = dict(self._clients)
            for sock in clients.values():
                try:
                    # Not SSLSocket's own, which forgets the TLS state under the thread that reads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in clients:
            thread.join(max(0.0, deadline - time.monotonic()))

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
            except OSError as error:
                if self._listener is not listener:
                    return
                _LOG.warning("a streaming client was not taken: %s", error)
                time.sleep(0.1)  # out of descriptors: others have to end first
                continue
            thread = threading.Thread(target=self._serve, args=(sock,), name="stream", daemon=True)
            with self._lock:
                full = len(self._clients) >= MOST
                if not full:
                    self._clients[thread] = sock
            if full:
                sock.close()
                continue
            try:
                thread.start()
            except RuntimeError as error:  # no more threads
                _LOG.warning("a streaming client was not taken: %s", error)
                self._forget(thread, sock)

    def _forget(self, thread: threading.Thread, sock: socket.socket) -> None:
        # Closed under the lock, so that close() never acts on a number that is another's by now.
        with self._lock:
            self._clients.pop(thread, None)
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            if self._tls is not None:
                sock.settimeout(upgrade.REQUEST_TIME)
                secure = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                sock = secure
                with self._lock:
                    self._clients[threading.current_thread()] = sock
                secure.do_handshake()
            try:
                request = upgrade.read_request(sock)
                self._session(sock, request, self._waiting(request))
            except upgrade.Refused as refusal:
                upgrade.refuse(sock, refusal)
        except OSError as error:
            _LOG.debug("a streaming client has gone: %s", error)
        finally:
            self._forget(threading.current_thread(), sock)

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
            said = remote.await_channels(link, channels, self._creation)
            if said is not None:
                self._join(link, channels, waiting, version, said)
        except TimedOut as error:
            channels.finish(remote.failure(error, version=version))
        finally:
            link.close()

    def _forward(self, sock: socket.socket, request: upgrade.Request, waiting: _Waiting, *, websocket: bool) -> None:
        try:
            netns = self._engine.pods.netns(waiting.target)
        except SampanError as error:
            raise upgrade.Refused(404, str(error)) from error
        finally:
            self._engine.store.release()
        link: Link
        pairs: Pairs
        if websocket:
            supported = (upgrade.TUNNEL_PROTOCOL, upgrade.CHANNEL_PROTOCOL)
            protocol = upgrade.to_websocket(sock, request, supported)
            link = WebSocketLink(sock, request.early)
        else:
            protocol = upgrade.to_spdy(sock, request, (upgrade.FORWARD_PROTOCOL,))
            link = PlainLink(sock, request.early)
        if websocket and protocol != upgrade.TUNNEL_PROTOCOL:
            pairs = ChannelPairs(link, list(waiting.ports))
        else:
            pairs = SpdyPairs(link, set(waiting.ports), self._creation)
        try:
            Forward(link, pairs, netns, self._idle).run()
        except SampanError as error:
            _LOG.warning("port-forward to pod %s ended: %s", waiting.target[:12], error)
        finally:
            link.close()

    def _join(self, link: Link, channels: Channels, waiting: _Waiting, version: str, said: list[Said]) -> None:
        try:
            process, ends = self._start(waiting)
        except OSError as error:
            channels.finish(remote.failure(StageFailed("make the streams", error), version=version))
            return
        except SampanError as error:
            channels.finish(remote.failure(error, version=version))
            return
        try:
            if remote.Session(link, channels, process, ends, self._idle).run(said):
                channels.finish(remote.status(process.outcome(), version=version))
            else:
                process.abandon()
        except SampanError as error:
            process.abandon()
            channels.finish(remote.failure(error, version=version))
        finally:
            process.close()

    def _start(self, waiting: _Waiting) -> tuple[targets.Command | targets.Attached, remote.Ends]:
        if self._listener is None:
            raise Unavailable("the streaming server is ending")
        try:
            if waiting.kind == "exec":
                return targets.start_command(self._engine, waiting.target, waiting.command, waiting.wanted)
            return targets.attach(self._engine, waiting.target, waiting.wanted)
        finally:
            # A session may last for hours, and asks only the monitor from here on.
            self._engine.store.release()


def _tls_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # Without renegotiation a write never waits for something to read.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise StageFailed("load the certificate for streaming", error, path=f"{cert}, {key}") from error
    return context

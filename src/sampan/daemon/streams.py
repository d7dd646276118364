"""The streaming server, started when the first URL is asked for: most daemons are idle most of the time."""

import threading
from typing import TYPE_CHECKING

from sampan.daemon.config import CriConfig
from sampan.engine.engine import Engine

if TYPE_CHECKING:
    from sampan.streaming.server import Server


class LazyStreams:
    """Gives URLs, starting the server at the first.

    Args:
        engine: What the streams lead to.
        config: Address, port and TLS files.
    """

    def __init__(self, engine: Engine, config: CriConfig) -> None:
        self._engine = engine
        self._config = config
        self._lock = threading.Lock()
        self._server: Server | None = None

    def _started(self) -> "Server":
        with self._lock:
            if self._server is None:
                from sampan.streaming.server import Server

                config = self._config
                server = Server(
                    self._engine,
                    config.stream_address,
                    config.stream_port,
                    tls_cert=config.stream_tls_cert,
                    tls_key=config.stream_tls_key,
                    idle=config.stream_idle_timeout,
                    creation=config.stream_creation_timeout,
                )
                server.start()
                self._server = server
            return self._server

    def exec(self, container_id: str, cmd: list[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of a command."""
        return self._started().exec(container_id, cmd, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)

    def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of a container's streams."""
        return self._started().attach(container_id, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)

    def port_forward(self, pod_id: str, ports: list[int]) -> str:
        """URL of a pod's ports."""
        return self._started().port_forward(pod_id, ports)

    def close(self) -> None:
        """End the server, if it was started."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

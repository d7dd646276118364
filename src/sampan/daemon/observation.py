"""Prometheus metrics and health over HTTP, on a TCP or unix address. Imported only when an address is configured.

Labels are of bounded cardinality: calls and states, never pods or containers; those are told through the CRI.
"""

import http.server
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

import sampan
from sampan.daemon.sockets import endpoint, remove_stale
from sampan.engine.engine import Engine
from sampan.errors import SampanError, StageFailed

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _States(Collector):
    """Pods and containers by state, counted when asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Count."""
        build = GaugeMetricFamily("sampan_build_info", "Version of Sampan.", labels=["version"])
        build.add_metric([sampan.__version__], 1)
        yield build
        pods: list[str] = [pod.state for pod in self._engine.pods.list()]
        containers: list[str] = [container.state for container in self._engine.containers.list()]
        for name, records in (("pods", pods), ("containers", containers)):
            family = GaugeMetricFamily(f"sampan_{name}", f"Number of {name}.", labels=["state"])
            for state in sorted(set(records)):
                family.add_metric([state], records.count(state))
            yield family


class Observation:
    """The endpoint and what it tells.

    Args:
        engine: Whose pods and containers are counted, and whose store answers for health.
        address: ``HOST:PORT`` or ``unix:///PATH``.

    Raises:
        InvalidInput: The address is neither.
        StageFailed: It can't be listened on.
    """

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        self._calls = Counter("sampan_cri_calls", "CRI calls ended.", ["method", "outcome"], registry=self.registry)
        self._seconds = Histogram(
            "sampan_cri_call_seconds", "Duration of CRI calls.", ["method"], registry=self.registry, buckets=_SECONDS
        )
        self.registry.register(_States(engine))
        ProcessCollector(registry=self.registry)
        self._server = _listen(address, self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Any:
        """What the socket is bound to: the port is the real one."""
        return self._server.server_address

    def observe(self, method: str, seconds: float, succeeded: bool) -> None:
        """Note the end of a CRI call."""
        self._calls.labels(method, "ok" if succeeded else "error").inc()
        self._seconds.labels(method).observe(seconds)

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self.registry)
        if path == "/healthz":
            try:
                self._engine.pods.list()
            except (SampanError, OSError) as error:
                return 503, "text/plain", f"{error}\n".encode()
            return 200, "text/plain", b"ok\n"
        return 404, "text/plain", b"there is /metrics and /healthz\n"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Ipv6Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _listen(address: str, answer: Any) -> Any:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            status, kind, body = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "client"

        def log_message(self, *_arguments: Any) -> None:
            return

    where = endpoint(address, "metrics_address")
    try:
        if isinstance(where, str):
            remove_stale(where)
            # Nobody else may connect between bind and chmod.
            before = os.umask(0o117)
            try:
                return _UnixServer(where, Handler)
            finally:
                os.umask(before)
        return (_Ipv6Server if ":" in where[0] else http.server.ThreadingHTTPServer)(where, Handler)
    except OSError as error:
        raise StageFailed("listen for metrics", error, path=address) from error

"""Commands in containers, and the URLs at which streams are had: ExecSync, Exec, Attach, PortForward."""

from collections.abc import Iterable
from typing import Protocol

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import fields
from sampan.engine.engine import Engine
from sampan.errors import InvalidInput, WrongState
from sampan.shim.cancellation import Cancellation

_LONGEST = (1 << 31) - 1
#: Bytes of both streams of an ExecSync: a kubelet takes an answer of 16 MiB, in which the rest must find room too.
OUTPUT_LIMIT = (16 << 20) - (4 << 10)


class Streams(Protocol):
    """What serves the URLs (:mod:`sampan.streaming`): each call notes what is wanted and answers where to get it."""

    def exec(self, container_id: str, cmd: list[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of a command that starts when a client connects."""
        ...

    def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of the container's own streams."""
        ...

    def port_forward(self, pod_id: str, ports: list[int]) -> str:
        """URL of ports of the pod."""
        ...


class Commands:
    """Calls about commands and streams.

    Args:
        engine: The engine.
        streams: Gives URLs.
    """

    def __init__(self, engine: Engine, streams: Streams) -> None:
        self._engine = engine
        self._streams = streams

    def exec_sync(self, request: pb.ExecSyncRequest, context: grpc.ServicerContext) -> pb.ExecSyncResponse:
        """Run a command to its end; when the client gives up, it is ended."""
        container_id = fields.identifier(request.container_id, "container_id")
        command = _command(request.cmd)
        timeout = fields.between(request.timeout, 0, _LONGEST, "timeout")
        cancellation = Cancellation()
        if not context.add_callback(cancellation.cancel):
            cancellation.cancel()
        result = self._engine.containers.exec_sync(container_id, command, float(timeout), cancellation)
        stdout, stderr = _cut(result.stdout, result.stderr)
        return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)

    def exec(self, request: pb.ExecRequest, _context: grpc.ServicerContext) -> pb.ExecResponse:
        """Where a command's streams will be."""
        command = _command(request.cmd)
        _check_streams(request)
        url = self._streams.exec(
            self._running(request.container_id),
            command,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.ExecResponse(url=url)

    def attach(self, request: pb.AttachRequest, _context: grpc.ServicerContext) -> pb.AttachResponse:
        """Where the container's own streams will be."""
        _check_streams(request)
        url = self._streams.attach(
            self._running(request.container_id),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.AttachResponse(url=url)

    def port_forward(self, request: pb.PortForwardRequest, _context: grpc.ServicerContext) -> pb.PortForwardResponse:
        """Where ports of the pod will be."""
        ports = [
            fields.between(port, 1, 65535, f"port[{number}]")
            for number, port in enumerate(fields.listed(request.port, "port"))
        ]
        pod = self._engine.pods.get(fields.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        if pod.state != "ready":
            raise WrongState(f'pod "{pod.id[:12]}" is not ready')
        return pb.PortForwardResponse(url=self._streams.port_forward(pod.id, ports))

    def _running(self, given: str) -> str:
        container = self._engine.containers.get(fields.identifier(given, "container_id"))
        if container.state != "running":
            raise WrongState(f'container "{container.id[:12]}" is {container.state}, not running')
        return container.id


def _command(given: Iterable[str]) -> list[str]:
    command = fields.arguments(given, "cmd")
    if not command or not command[0]:
        raise InvalidInput("is missing", field="cmd")
    return list(command)


def _cut(stdout: bytes, stderr: bytes) -> tuple[bytes, bytes]:
    """What of two streams fits into an answer: of the longer one less, so that what went wrong is told after much."""
    stdout = stdout[: max(OUTPUT_LIMIT // 2, OUTPUT_LIMIT - len(stderr))]
    return stdout, stderr[: OUTPUT_LIMIT - len(stdout)]


def _check_streams(request: pb.ExecRequest | pb.AttachRequest) -> None:
    """The rules that the interface writes beside the two messages."""
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidInput("none of stdin, stdout and stderr is asked for", field="stdin")
    if request.tty and request.stderr:
        raise InvalidInput("a terminal has no stderr of its own", field="stderr")

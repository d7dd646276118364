"""Binds the services to the names in ``api.proto`` and serves them.

A service is a plain object whose methods are called as the interface's, in snake case: ``RunPodSandbox`` is
``run_pod_sandbox(request, context)``; a streaming answer is an iterator. The generated ``api_pb2_grpc`` is for clients:
here the descriptor says it all.

Threads: calls that only read records (lists, statuses, versions) have a pool of their own, so that work which waits
for a container or a registry can't keep a kubelet from seeing the node; so have pulls, figures of usage, and followers
of events, which stay for hours. Commands, and containers that take their time to end, which a whole node may be full
of, keep nothing new from being made.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

from sampan.cri import api_pb2, failures

_LOG = logging.getLogger("sampan.cri")

#: Threads of each pool; they are made when they are first needed.
POOLS = {"work": 128, "end": 512, "exec": 256, "read": 16, "usage": 16, "pull": 32, "follow": 64}
#: A kubelet's own limit is 16 MiB each way.
MESSAGE_LIMIT = 16 << 20
#: Above a kubelet's, for the lists of clients that take longer ones.
ANSWER_LIMIT = 34 << 20

#: The first pattern that a call's whole name matches says which pool it runs in.
_POOL_OF = (
    (re.compile(r"GetContainerEvents"), "follow"),
    (re.compile(r"PullImage"), "pull"),
    (re.compile(r"ExecSync"), "exec"),
    (re.compile(r"(Stop|Remove)(Container|PodSandbox)"), "end"),
    (re.compile(r"\w+(Stats|Metrics)|ImageFsInfo"), "usage"),
    (re.compile(r"Version|RuntimeConfig|\w*Status|(List|Stream)\w+|Exec|Attach|PortForward"), "read"),
    (re.compile(r"\w+"), "work"),
)

Observer = Callable[[str, float, bool], None]
Behavior = Callable[[Any, grpc.ServicerContext], Any]


def snake(name: str) -> str:
    """``ListPodSandboxMetrics`` -> ``list_pod_sandbox_metrics``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Server:
    """The gRPC server of both services.

    Args:
        services: Objects that together have a method for every call.
        observe: Told of each call when it ends: name, seconds, whether it succeeded.
    """

    def __init__(self, services: list[object], observe: Observer | None = None) -> None:
        self._observe = observe
        #: Calls that ended; only ever compared with a former value.
        self.calls = 0
        self._pools = {name: ThreadPoolExecutor(size, f"cri-{name}") for name, size in POOLS.items()}
        self._server = grpc.server(
            self._pools["work"],
            options=(
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_send_message_length", ANSWER_LIMIT),
                ("grpc.so_reuseport", 0),
            ),
        )
        for service in api_pb2.DESCRIPTOR.services_by_name.values():
            handlers = {method.name: self._handler(method, services) for method in service.methods}
            self._server.add_registered_method_handlers(service.full_name, handlers)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _handler(self, method: Any, services: list[object]) -> grpc.RpcMethodHandler:
        behavior = find(services, method.name)
        wrapped = (self._stream if method.server_streaming else self._unary)(method.name, behavior)
        wrapped.experimental_thread_pool = self._pools[pool_of(method.name)]  # type: ignore[attr-defined]
        request = message_factory.GetMessageClass(method.input_type)
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(wrapped, request_deserializer=request.FromString, response_serializer=_serialize)

    def _unary(self, name: str, behavior: Behavior) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            start = time.monotonic()
            succeeded = False
            try:
                response = behavior(request, context)
                succeeded = True
            except Exception as error:  # noqa: BLE001  the edge of the process
                failures.abort(context, name, error)
            finally:
                self._ended(name, start, succeeded)
            return response

        return call

    def _stream(self, name: str, behavior: Behavior) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            start = time.monotonic()
            succeeded = False
            try:
                yield from behavior(request, context)
                succeeded = True
            except Exception as error:  # noqa: BLE001  the edge of the process
                failures.abort(context, name, error)
            finally:
                self._ended(name, start, succeeded)

        return call

    def _ended(self, name: str, start: float, succeeded: bool) -> None:
        self.calls += 1
        seconds = time.monotonic() - start
        _LOG.debug("%s took %.1f ms", name, seconds * 1000)
        if self._observe is not None:
            self._observe(name, seconds, succeeded)

    def listen(self, path: str) -> None:
        """Listen on a unix socket. The caller has removed a stale one, and sets its mode."""
        self._server.add_insecure_port(f"unix://{path}")

    def start(self) -> None:
        """Serve from now on."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more calls, and give those under way ``grace`` seconds."""
        self._server.stop(grace).wait()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _serialize(answer: Message | bytes) -> bytes:
    """A message as bytes; long lists are encoded already (:mod:`sampan.cri.encoding`)."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def pool_of(method: str) -> str:
    """Name of the pool whose threads serve a call."""
    return next(pool for pattern, pool in _POOL_OF if pattern.fullmatch(method))


def find(services: list[object], method: str) -> Behavior:
    """The one method of the services that serves a call."""
    found = [getattr(service, snake(method)) for service in services if hasattr(service, snake(method))]
    if len(found) != 1:
        raise TypeError(f"{method} is served by {len(found)} services, not by one")
    behavior: Behavior = found[0]
    return behavior

"""Inside the zygote: import what monitors need, then fork one for each request.

The zygote has one thread, runs nothing but this loop, and keeps nothing. Its children:

- *monitors*, which outlive it;
- *workers*, each of which runs one function and ends, at the latest together with the zygote.

SIGCHLD is ignored here, so that the kernel reaps them (waitpid(2), "ECHILD"); children set it back.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import os
import sys

from sampan.errors import InvalidInput, SampanError
from sampan.linux import process
from sampan.shim import monitor, sockets
from sampan.shim.interpreter import SOCKET_FD
from sampan.wire import frames, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

#: What a monitor may come to need; imported once here, shared by all.
PRELOADED = (
    "sampan.cgroup",
    "sampan.runtime.external",
    "sampan.runtime.native",
    "sampan.runtime.sandbox",
)


def main() -> NoReturn:
    """Serve the socket that the maker left as descriptor 3, until the maker hangs up."""
    process.close_range(SOCKET_FD + 1)
    process.set_name("sampan-zygote")
    process.prctl(process.PR_SET_DUMPABLE, 0)
    os.chdir("/")
    os.umask(0o022)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    for name in PRELOADED:
        try:
            __import__(name)
        except ImportError:
            pass  # a handler that is asked for by a pod, and can't be imported, is that pod's error
    gc.disable()
    gc.collect()
    gc.freeze()
    connection = _socket.socket(fileno=SOCKET_FD)
    decoder = frames.Decoder()
    while True:
        try:
            data, descriptors = sockets.receive(connection)
        except ConnectionError:
            os._exit(0)
        if not data:
            os._exit(0)
        decoder.feed(data, descriptors)
        while (frame := decoder.next()) is not None:
            _serve(connection, frame)


def _serve(connection: _socket.socket, frame: frames.Frame) -> None:
    passed: tuple[int, ...] = ()
    try:
        kind = frames.REPLY
        body, passed = _OPERATIONS[str(frame.body.get("op"))](connection, frame)
    except (SampanError, OSError, KeyError) as error:
        kind = frames.ERROR
        body = frames.describe_error(error)
    sockets.close_all(frame.descriptors)
    try:
        sockets.send(connection, frames.encode(kind, frame.request, body, len(passed)), passed)
    except ConnectionError:
        pass  # the next receive sees the end
    sockets.close_all(passed)


def _set_paths(_: _socket.socket, frame: frames.Frame) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Where workers find the dependencies; monitors have none."""
    sys.path.extend(str(path) for path in frame.body["paths"] if path not in sys.path)
    return {}, ()


def _fork_monitor(connection: _socket.socket, frame: frames.Frame) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Fork the monitor of a pod; its socket listens before the fork, so a caller can connect on our reply."""
    directory = str(frame.body["directory"])
    os.makedirs(directory, 0o711, exist_ok=True)
    listener = sockets.listen(f"{directory}/{monitor.SOCKET_NAME}")
    try:
        pid = os.fork()
    except OSError:
        os.unlink(f"{directory}/{monitor.SOCKET_NAME}")
        listener.close()
        raise
    if pid == 0:
        connection.close()
        _in_child(lambda: monitor.main(str(frame.body["pod_id"]), directory, listener, frame.body.get("options") or {}))
    listener.close()
    return {"pid": pid}, ()


def _fork_worker(connection: _socket.socket, frame: frames.Frame) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Fork a process for one function; the first descriptor is where its result is to be written."""
    if not frame.descriptors:
        raise InvalidInput("a worker needs a descriptor for its result", field="descriptors")
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        connection.close()
        _in_child(lambda: _work(parent, frame))
    try:
        return {"pid": pid}, (process.pidfd_open(pid),)
    except ProcessLookupError:
        return {"pid": pid}, ()  # it has ended already, and been reaped


def _work(parent: int, frame: frames.Frame) -> None:
    process.set_name("sampan-worker")
    process.prctl(process.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        return
    gc.enable()
    result, *descriptors = frame.descriptors
    try:
        body: dict[str, Any] = {"result": _function(str(frame.body["function"]))(frame.body["argument"], descriptors)}
        text = jsontext.dumps(body)
    except BaseException as error:  # noqa: BLE001
        text = jsontext.dumps({"error": frames.describe_error(error)})
    view = memoryview(text.encode())
    while view:
        view = view[os.write(result, view) :]


def _function(name: str) -> Callable[[Any, list[int]], object]:
    """The function that ``package.module:function`` names; of this package only."""
    module, _, attribute = name.partition(":")
    if not module.startswith("sampan."):
        raise InvalidInput(f"{name} is not one of ours", field="function")
    __import__(module)
    found: Callable[[Any, list[int]], object] = getattr(sys.modules[module], attribute)
    return found


def _in_child(body: Callable[[], None]) -> NoReturn:
    """Run ``body`` in a session of its own and end; nothing of the zygote's loop may go on in a child."""
    status = 1
    try:
        os.setsid()
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        body()
        status = 0
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(status)


_OPERATIONS = {"set_paths": _set_paths, "fork_monitor": _fork_monitor, "fork_worker": _fork_worker}

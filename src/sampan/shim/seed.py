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

from sampan.cgroup import open_group
from sampan.errors import InvalidInput, SampanError, StageFailed
from sampan.linux import process, vfork
from sampan.shim import monitor, sockets
from sampan.shim.interpreter import SOCKET_FD
from sampan.wire import frames, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

#: What a monitor may come to need; imported once here, shared by all.
PRELOADED = (
    "_blake2",
    "fcntl",
    "resource",
    "sampan.cgroup",
    "sampan.linux.pty",
    "sampan.runtime.cgroup_mount",
    "sampan.runtime.copy_up",
    "sampan.runtime.create",
    "sampan.runtime.execute",
    "sampan.runtime.external",
    "sampan.runtime.hooks",
    "sampan.runtime.native",
    "sampan.runtime.sandbox",
    "sampan.runtime.seccomp",
)


#: Objects more than before, for a child to look for garbage; Python's own is 700.
_GC_THRESHOLD = 10_000

#: The bounding set of a container that asks for nothing: what its filter depends on.
_USUAL_CAPABILITIES = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"),
    "CAP_SYS_CHROOT",
)


def main(mode: str, open_files: int, paths: Sequence[str]) -> NoReturn:
    """Serve the socket that the maker left as descriptor 3, until the maker hangs up.

    Args:
        mode: ``many``, to prepare for many requests, or ``once``, for one that is waited for.
        open_files: The soft limit of open files, for us and for containers.
        paths: Where workers find the dependencies; monitors have none.
    """
    process.close_range(SOCKET_FD + 1)
    process.prctl(process.PR_SET_DUMPABLE, 0)
    _limit_open_files(open_files)
    os.chdir("/")
    os.umask(0o022)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    sys.path.extend(paths)
    if mode == "many":
        _load()
        from sampan.shim import rehearsal

        rehearsal.prepare()
    process.set_name("sampan-zygote")
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    gc.disable()
    gc.collect()
    if mode == "many":
        rehearsal.fill_holes()
    gc.freeze()
    _serve(_socket.socket(fileno=SOCKET_FD))


def _limit_open_files(soft: int) -> None:
    """Set the soft limit, where the maker has raised its own since it started us first."""
    import resource

    now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _load() -> None:
    """Import and compute what is the same for all pods."""
    for name in PRELOADED:
        __import__(name)
    vfork.available()
    open_group("/")  # imports the kind of groups that this machine has, and reads its mount table
    from sampan.runtime import pause, seccomp, seccomp_default, stage2

    filter_ = None
    try:
        filter_ = seccomp.compile_filter(seccomp_default.profile(_USUAL_CAPABILITIES))  # 18 ms; kept in memory
    except SampanError:
        pass  # without libseccomp, or seccomp: containers that want a filter say so
    # Programs that nobody can change, in files that all who are forked have too.
    if stage2.available():
        stage2.program()
        if filter_ is not None:
            stage2.program(filter_.bpf, filter_.flags)
    if pause.available():
        pause.program()


def _serve(connection: _socket.socket) -> NoReturn:
    """Fork for each request; the child reads it.

    Each page that is written here between two forks becomes one that the older children have to themselves, so the
    loop does as little as can be done.
    """
    while True:
        try:
            data, descriptors = sockets.receive(connection, sockets.PACKET_SIZE + frames.HEADER_SIZE)
        except ConnectionError:
            os._exit(0)
        if not data:
            os._exit(0)
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(connection, data, error)
            pid = -1
        if pid == 0:
            _child(connection, data, descriptors)
        for fd in descriptors:
            os.close(fd)


def _refuse(connection: _socket.socket, data: bytes, error: OSError) -> None:
    decoder = frames.Decoder()
    decoder.feed(data)
    number = int.from_bytes(data[4:8], "little")
    failure = StageFailed("fork the zygote", error)
    sockets.send(connection, frames.encode(frames.ERROR, number, frames.describe_error(failure)))


def _child(connection: _socket.socket, data: bytes, descriptors: list[int]) -> NoReturn:
    """Be what the request asks for; nothing of the zygote's loop may go on in a child."""
    status = 1
    try:
        os.setsid()
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        gc.set_threshold(
            _GC_THRESHOLD
        )  # a collection writes to each young object: seldom, in a process that does little
        gc.enable()
        decoder = frames.Decoder()
        decoder.feed(data, descriptors)
        frame = decoder.next()
        if frame is not None:
            _become(connection, frame)
        status = 0
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(status)


def _become(connection: _socket.socket, frame: frames.Frame) -> None:
    body: Callable[[], None] | None = None
    passed: list[int] = []
    try:
        body = _OPERATIONS[str(frame.body.get("op"))](frame)
        if frame.body["op"] == "fork_worker":
            passed.append(process.pidfd_open(os.getpid()))
        answer = frames.encode(frames.REPLY, frame.request, {"pid": os.getpid()}, len(passed))
    except (SampanError, OSError, KeyError) as error:
        answer = frames.encode(frames.ERROR, frame.request, frames.describe_error(error))
    try:
        sockets.send(connection, answer, passed)
    except ConnectionError:
        return  # whoever asked is gone: nobody would ever know of us
    connection.close()
    sockets.close_all(passed)
    if body is not None:
        body()


def _monitor(frame: frames.Frame) -> Callable[[], None]:
    """The monitor of a pod; its socket listens before the reply, so a caller can connect at once."""
    pod_id, directory = str(frame.body["pod_id"]), str(frame.body["directory"])
    options = monitor.Options(frame.body.get("options") or {})
    os.makedirs(directory, 0o711, exist_ok=True)
    listener = sockets.listen(f"{directory}/{monitor.SOCKET_NAME}")
    return lambda: monitor.main(pod_id, directory, listener, options)


def _worker(frame: frames.Frame) -> Callable[[], None]:
    """A process for one function; the first descriptor is where its result is to be written."""
    if not frame.descriptors:
        raise InvalidInput("a worker needs a descriptor for its result", field="descriptors")
    function, argument = str(frame.body["function"]), frame.body["argument"]
    result, *descriptors = frame.descriptors
    process.set_name("sampan-worker")
    process.prctl(process.PR_SET_PDEATHSIG, _signal.SIGKILL)
    return lambda: _work(function, argument, descriptors, result)


def _work(function: str, argument: object, descriptors: list[int], result: int) -> None:
    try:
        text = jsontext.dumps({"result": _function(function)(argument, descriptors)})
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


_OPERATIONS = {"fork_monitor": _monitor, "fork_worker": _worker}

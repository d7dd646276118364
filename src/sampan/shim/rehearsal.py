"""What a zygote does before its first fork, so that its monitors share what can be shared.

A forked process shares each page of memory with its parent until either writes to it, and Python writes wherever it
looks: each object that is touched has its reference count changed. What is touched can't be helped; how many pages it
lies on can. So the life of a pod is played, with processes that do nothing for containers:

1. Once, to see which functions a monitor runs: some 200 of the 2000 that are loaded.
2. The allocator's holes are filled, so that what is allocated from then on lies together, here and in the monitors. A
   hole in a page of shared objects would make that page the monitor's own.
3. Those functions are copied, and so is their code: the copies lie side by side.
4. Some more times. The interpreter writes to code that it runs for the first times (it specialises it), and to its
   caches; afterwards it only reads them.

Nothing of it is needed for a monitor to work: what fails, or cannot be done by whoever runs this, is left out.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import os
import select
import sys
import time

from sampan.cgroup import open_group
from sampan.errors import SampanError
from sampan.linux import process
from sampan.runtime.handler import Created
from sampan.runtime.native import NativeHandler
from sampan.runtime.rootfs import make_filesystem
from sampan.runtime.state import StateDir, start_time
from sampan.shim import footprint, helper, monitor, sockets
from sampan.wire import crilog, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FunctionType
    from typing import Any

    from sampan.runtime.handler import Stdio

#: More than after which CPython 3.11 stops rewriting a function (8).
_TURNS = 10
#: Seconds after which it is enough, since the first pod waits: a turn takes 5 ms, more where the machine is busy.
_ENOUGH = 1.0

# The allocator of CPython 3.11 to 3.13 (Objects/obmalloc.c): blocks of one size share a pool.
_POOL = 16384
_POOL_HEADER = 48
_ALIGNMENT = 16
_LARGEST_BLOCK = 512
#: Bytes of an object before a ``bytes`` object's content, and its closing zero.
_BYTES_EXTRA = 33
#: Blocks side by side in one pool from its beginning, from which it is taken to be a new one.
_RUN = 4
#: Objects of one size that are allocated at most: the allocator may be another one.
_MOST_FILLERS = 20_000

_fillers: list[list[object]] = []
_FUNCTION: Any = type(lambda: None)


def prepare() -> None:
    """Play, fill, copy, and play again."""
    try:
        footprint.measure()
        seen = _watch()
        gc.collect()
        fill_holes()
        regroup(seen)
        seen.clear()
        sys._clear_type_cache()  # its entries hold names that only importing looked up, and monitors would let go of
        end = time.monotonic() + _ENOUGH
        for _ in range(_TURNS):
            if time.monotonic() < end:
                _play()
    except (OSError, SampanError):
        pass


def _watch() -> dict[CodeType, None]:
    """The code that ran while a pod was played."""
    seen: dict[CodeType, None] = {}

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            seen[frame.f_code] = None

    sys.setprofile(note)
    try:
        _play()
    finally:
        sys.setprofile(None)
    return seen


def regroup(seen: dict[CodeType, None]) -> None:
    """Give the functions of ``seen`` copies of their code, allocated one after the other, and then copy them too."""
    functions: dict[CodeType, list[FunctionType]] = {}
    for one in gc.get_objects():
        if isinstance(one, _FUNCTION) and one.__code__ in seen:
            functions.setdefault(one.__code__, []).append(one)
    for code in seen:
        if code in functions:
            copy = code.replace()
            for function in functions[code]:
                function.__code__ = copy
    copies = {function: _copied(function) for code in seen for function in functions.get(code, ())}
    for module in tuple(sys.modules.values()):
        if isinstance(module, type(sys)):  # an import that is not to be tried again is None
            _exchange(module, copies)


def _copied(function: FunctionType) -> FunctionType:
    copy: FunctionType = _FUNCTION(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    for name in ("__kwdefaults__", "__qualname__", "__module__", "__doc__"):
        setattr(copy, name, getattr(function, name))
    if function.__dict__:
        copy.__dict__.update(function.__dict__)
    return copy


def _exchange(owner: Any, copies: dict[FunctionType, FunctionType]) -> None:
    """Put the copies in the place of a module's or a class's functions; who has another reference keeps the old one."""
    for name, value in tuple(vars(owner).items()):
        if isinstance(value, _FUNCTION):
            if value in copies:
                setattr(owner, name, copies[value])
        elif isinstance(value, type) and value is not owner and value.__module__ == owner.__name__:
            _exchange(value, copies)


def fill_holes() -> None:
    """Occupy the free blocks of pools that hold other blocks, for each size of block."""
    for size in range(_LARGEST_BLOCK, 0, -_ALIGNMENT):
        found: list[object] = []
        run = last = 0
        while run < _RUN and len(found) < _MOST_FILLERS:
            one = _filler(size)
            place = id(one)
            found.append(one)
            if place % _POOL == _POOL_HEADER:
                run = 1
            elif place == last + size:
                run += run > 0
            else:
                run = 0
            last = place
        if run:
            del found[-run:]
        _fillers.append(found)


def _filler(size: int) -> object:
    if size > _BYTES_EXTRA:
        return bytes(size - _BYTES_EXTRA)
    return object() if size == _ALIGNMENT else float(size)


class _Player:
    """A handler whose containers are processes that wait; starting one is the real handler's."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._real = NativeHandler(root)
        self._player = os.getpid()

    def create(self, container_id: str, bundle: str, stdio: Stdio) -> Created:  # noqa: ARG002
        """A process that waits at the fifos of a container."""
        directory = StateDir(self._root, container_id)
        directory.make()
        for name in ("exec.fifo", "report.fifo"):
            os.mkfifo(directory.file(name))
        begin = os.open(directory.file("exec.fifo"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        report = os.open(directory.file("report.fifo"), os.O_RDWR | os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _wait(begin, report, self._player)
        os.close(begin)
        os.close(report)
        record = {"id": container_id, "pid": pid, "start": start_time(pid), "cgroup": "", "systemd": False, "hooks": []}
        record["ungrouped"] = True
        directory.write("config.json", b"{}")
        directory.store({**record, "bundle": bundle, "annotations": {}, "ociVersion": ""})
        return Created(pid)

    def start(self, container_id: str) -> None:
        """The real one."""
        self._real.start(container_id)

    def exec(
        self,
        container_id: str,  # noqa: ARG002
        process: dict[str, Any],  # noqa: ARG002
        stdio: Stdio,  # noqa: ARG002
        *,
        watched: bool = False,  # noqa: ARG002
        bundle: str = "",  # noqa: ARG002
    ) -> Created:
        """A process that ends."""
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return Created(pid)

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:  # noqa: ARG002
        """Signal the process, and nothing else on any account."""
        os.kill(StateDir(self._root, container_id).load()["pid"], signal)

    def delete(self, container_id: str, *, force: bool = False) -> None:  # noqa: ARG002
        """Remove its files."""
        StateDir(self._root, container_id).remove()


def _wait(begin: int, report: int, player: int) -> None:
    """Be a container: wait to be started, then to be killed; not longer than the player lives, nor than a minute."""
    try:
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.alarm(60)
        poll = select.poll()
        poll.register(process.pidfd_open(player), select.POLLIN)
        poll.register(begin, select.POLLIN)
        poll.poll()
        os.close(report)
        poll.unregister(begin)
        poll.poll()
    finally:
        os._exit(1)


def _play() -> None:
    """The life of a pod with one container.

    Its files are on a file system in memory that is mounted nowhere and goes with its descriptor: who is killed while
    it plays leaves nothing.
    """
    scratch = make_filesystem("tmpfs", "played", [])
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    try:
        _Scene(scratch).play()
    finally:
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 0)
        os.close(scratch)


class _Scene:
    """A monitor and its client, in one process.

    Args:
        scratch: A directory for their files.
    """

    def __init__(self, scratch: int) -> None:
        folder = self._folder = f"/proc/self/fd/{scratch}"
        options = monitor.Options({})
        self._monitor = monitor.Monitor("", folder, sockets.listen(f"{folder}/{monitor.SOCKET_NAME}"), options)
        self._player = _Player(f"{folder}/runtime")
        player: Any = self._player
        self._monitor._made_handler = helper.ForkingHandler(player, light=True, keep=(scratch,))
        self._client = sockets.connect(f"{folder}/{monitor.SOCKET_NAME}")
        self._follower = sockets.connect(f"{folder}/{monitor.SOCKET_NAME}")
        for client in (self._client, self._follower):
            client.setblocking(False)

    def play(self) -> None:
        """Ask for what a kubelet's calls come to."""
        try:
            self._monitor._introduce()
            self._monitor._loop.run_once()
            self._monitor._loop.run_once()
            sockets.send(self._follower, frames.encode(frames.REQUEST, 1, {"op": "events", "since": 0}))
            self._ask({"op": "sandbox", "directory": f"{self._folder}/ns", "kinds": []})  # the way there, and no more
            self._ask({"op": "info"})
            log = f"{self._folder}/logs/log"
            self._ask({"op": "create", "id": "played", "bundle": self._folder, "log_path": log})
            _look_at_group()
            sockets.send(self._follower, frames.encode(frames.REQUEST, 2, {"op": "wait", "id": "played"}))
            self._ask({"op": "start", "id": "played"})
            self._ask({"op": "exec", "id": "played", "wait": True, "process": {"args": ["true"], "cwd": "/"}})
            self._log()
            footprint.give_back()
            self._ask({"op": "stop", "id": "played", "signal": int(_signal.SIGKILL), "timeout": 10})
            self._ask({"op": "delete", "id": "played"})
            self._ask({"op": "shutdown", "force": True})
        finally:
            self._client.close()
            self._follower.close()
            self._monitor._service.close()
            self._monitor._loop.close()
            self._break_off()
            self._reap()

    def _ask(self, body: dict[str, Any]) -> None:
        sockets.send(self._client, frames.encode(frames.REQUEST, 1, body))
        decoder = frames.Decoder()
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        while (frame := decoder.next()) is None:
            self._monitor._loop.run_once()
            if poll.poll(0):
                data, _ = sockets.receive(self._client)
                decoder.feed(data)
        if frame.kind == frames.ERROR:
            raise frames.restore_error(frame.body)

    @staticmethod
    def _log() -> None:
        encoder = crilog.Encoder("stdout")
        encoder.feed(b"a line\nand the beginning of", crilog.timestamp(0))
        encoder.feed(b" another\n", crilog.timestamp(1))

    def _break_off(self) -> None:
        """End the container of a play that failed, before it is waited for."""
        try:
            self._player.kill("played", _signal.SIGKILL)
        except (OSError, SampanError):
            pass  # it was played to its end

    @staticmethod
    def _reap() -> None:
        """Wait for what was forked: the loop has not seen the last of them, and nobody will later."""
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def _look_at_group() -> None:
    """What is done with a container's group when it is made and when it has ended; with our own, left as it is."""
    with open("/proc/self/cgroup", "rb") as file:
        lines = [line.split(b":", 2) for line in file.read().splitlines()]
    paths = [path for _, kinds, path in lines if b"memory" in kinds.split(b",") or not kinds]
    group = open_group(os.fsdecode(paths[0]))
    try:
        group.frozen()
        group.oom_kills()
        watch = group.oom_watch()
        watch.drain()
        watch.close()
    except (OSError, SampanError):
        pass  # where the machine's own group, or a kind of groups, can't be watched

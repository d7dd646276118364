"""The monitor of a pod: its main function, and the operations of its control socket.

One thread and one event loop. The monitor is the subreaper of everything that it starts, holds the streams of the
pod's containers, and records how each ended. Who makes it ends long before it does; any number of clients connect to
its socket at any time. A stand-alone container is a pod of one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys

from sampan import __version__
from sampan.errors import AlreadyExists, InvalidInput, NotFound, StageFailed, TimedOut, WrongState
from sampan.linux import process
from sampan.runtime.state import start_time
from sampan.shim import footprint
from sampan.shim.container import Container, Settings
from sampan.shim.exits import write_document
from sampan.shim.helper import STANDBY, ForkingHandler
from sampan.shim.journal import Journal
from sampan.shim.loop import Loop
from sampan.shim.podns import PodNamespaces
from sampan.shim.service import Service
from sampan.wire import crilog

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

    from sampan.runtime.handler import Handler
    from sampan.shim.exits import Exit
    from sampan.shim.service import Call

SOCKET_NAME = "control.sock"
DOCUMENT_NAME = "monitor.json"
CRASH_NAME = "crash.txt"
#: What can be asked of a monitor -> the method that does it.
_OPERATIONS = {
    "info": "_info",
    "sandbox": "_create_sandbox",
    "create": "_create",
    "start": "_start",
    "exec": "_exec",
    "attach": "_attach",
    "wait": "_wait",
    "resize": "_resize",
    "signal": "_signal",
    "stop": "_stop",
    "pause": "_pause",
    "resume": "_resume",
    "update": "_update",
    "stats": "_stats",
    "pids": "_pids",
    "close_stdin": "_close_stdin",
    "reopen_log": "_reopen_log",
    "delete": "_delete",
    "events": "_events",
    "shutdown": "_shutdown",
}


#: Seconds that a pause process has to end in when it was killed.
_LAST_SECONDS = 10.0


class Options:
    """How a monitor works; from its maker.

    ``handler`` is ``{"type": "native", "root": ...}`` or ``{"type": "external", "binary": ..., "root": ...,
    "options": [...], "timeout": seconds}``, each with ``"systemd": true`` where systemd makes the cgroups;
    ``seccomp_cache`` of a native one is a folder for compiled filters, by default beside its root. ``log_max_line`` is
    the length over which log lines are cut, ``standby`` the seconds that the fork which made a pod's namespaces stays.
    """

    __slots__ = ("handler", "log_max_line", "standby")

    def __init__(self, options: dict[str, Any]) -> None:
        self.handler: dict[str, Any] = options.get("handler") or {"type": "native", "root": "/run/sampan/runtime"}
        self.log_max_line = int(options.get("log_max_line") or crilog.MAX_LINE)
        self.standby = float(options.get("standby") or STANDBY)

    def make_handler(self) -> Handler:
        """The OCI runtime that is asked for."""
        kind = self.handler.get("type")
        root = str(self.handler["root"])
        systemd = bool(self.handler.get("systemd"))
        if kind == "native":
            from sampan.runtime.native import NativeHandler

            cache = str(self.handler.get("seccomp_cache") or f"{os.path.dirname(root)}/seccomp")
            return NativeHandler(root, systemd_cgroup=systemd, seccomp_cache=cache, expendable=True)
        if kind == "external":
            from sampan.runtime.external import TIMEOUT, ExternalHandler

            options = tuple(self.handler.get("options") or ())
            timeout = float(self.handler.get("timeout") or TIMEOUT)
            return ExternalHandler(str(self.handler["binary"]), root, systemd=systemd, options=options, timeout=timeout)
        raise InvalidInput(f"{kind!r} is neither native nor external", field="handler.type")


def main(pod_id: str, directory: str, listener: _socket.socket, options: Options) -> None:
    """Be the monitor of a pod until it is told to shut down.

    Args:
        pod_id: Its id.
        directory: Its folder.
        listener: The control socket, listening.
        options: How it works.
    """
    process.become_subreaper()
    name = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(name, b"sampan-monitor")  # prctl(2) does the same, and its buffer would be a new ctypes type: 100 KB
    os.close(name)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    sys.excepthook = lambda kind, error, trace: _leave_trace(directory, error)  # noqa: ARG005
    _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
    Monitor(pod_id, directory, listener, options).run()


def _leave_trace(directory: str, error: BaseException) -> None:
    import traceback

    with open(f"{directory}/{CRASH_NAME}", "a", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))


class Monitor:
    """The containers of one pod, and what can be asked of them. See :func:`main` for the arguments."""

    def __init__(self, pod_id: str, directory: str, listener: _socket.socket, options: Options) -> None:
        self._pod_id = pod_id
        self._directory = directory
        self._options = options
        self._made_handler: ForkingHandler | None = None
        self._containers: dict[str, Container] = {}
        self._journal = Journal()
        self._sandbox: PodNamespaces | None = None
        self._on_empty: Callable[[], None] | None = None
        #: What waits for the end of the pause process, which was killed for that.
        self._on_pause_end: Callable[[], None] | None = None
        self._loop = Loop(self._reaped, footprint.give_back)
        self._service = Service(self._loop, listener, self._find)

    def run(self) -> None:
        """Serve until told to shut down."""
        self._introduce()
        self._loop.run()

    def _find(self, name: str) -> Callable[[Call], dict[str, Any] | None] | None:
        method = _OPERATIONS.get(name)
        return getattr(self, method) if method else None

    def _introduce(self) -> None:
        """Write down which process this is."""
        document = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
        # Not beyond a power failure, which no process survives.
        write_document(f"{self._directory}/{DOCUMENT_NAME}", document, lasting=False)

    @property
    def _handler(self) -> ForkingHandler:
        if self._made_handler is None:
            light = self._options.handler.get("type") == "native" and not self._options.handler.get("systemd")
            handler, standby = self._options.make_handler(), self._options.standby
            self._made_handler = ForkingHandler(handler, light=light, standby=standby)
        return self._made_handler

    def _container(self, call: Call) -> Container:
        container_id = call.text("id")
        found = self._containers.get(container_id)
        if found is None:
            raise NotFound(f"pod {self._pod_id} has no container {container_id}")
        return found

    def _reaped(self, pid: int, status: int) -> None:
        for container in self._containers.values():
            if container.reaped(pid, status):
                return
        if self._sandbox is not None and pid == self._sandbox.pause_pid:
            self._sandbox.pause_ended = True
            if self._on_pause_end is not None:
                self._on_pause_end()
            else:
                self._journal.publish("pause-exit", "", pid=pid)
        # Anything else is a fork of ours, or an orphan that we adopted as the subreaper.

    def _info(self, _: Call) -> dict[str, Any]:
        sandbox = self._sandbox
        return {
            "pod_id": self._pod_id,
            "pid": os.getpid(),
            "version": __version__,
            "handler": self._options.handler,
            "sandbox": None if sandbox is None else sandbox.describe(),
            "events": self._journal.last,
            "containers": [container.describe() for container in self._containers.values()],
        }

    def _create_sandbox(self, call: Call) -> dict[str, Any]:
        if self._sandbox is None:
            kinds = call.body.get("kinds")
            if not isinstance(kinds, list):
                raise InvalidInput("must be a list", field="kinds")
            options = call.body.get("options") or {}
            self._sandbox = PodNamespaces(call.text("directory"), kinds, options, self._handler)
        elif call.text("directory") != self._sandbox.directory:
            raise AlreadyExists(f"pod {self._pod_id} has its namespaces already")
        return self._sandbox.describe()

    def _create(self, call: Call) -> dict[str, Any]:
        container_id = call.text("id")
        if not container_id or "/" in container_id or container_id in (".", ".."):
            raise InvalidInput("must be a name", field="id")
        if self._on_empty is not None:
            raise WrongState(f"pod {self._pod_id} is being taken down")
        if container_id in self._containers:
            raise AlreadyExists(f"pod {self._pod_id} has a container {container_id} already")
        settings = Settings(call, self._options.log_max_line)
        made = Container(self._loop, self._journal, self._handler, self._directory, container_id, settings)
        made.create()
        self._containers[container_id] = made
        return {"pid": made.pid}

    def _start(self, call: Call) -> dict[str, Any]:
        self._container(call).start()
        return {}

    def _exec(self, call: Call) -> dict[str, Any] | None:
        container = self._container(call)
        watched = any(one.sees(container) for one in self._containers.values())
        made, console = container.exec(call, watched=watched)
        body = {"exec_id": made.id, "pid": made.pid}
        if call.flag("wait"):
            if console >= 0:
                os.close(console)
            made.waiters.append(lambda ended: call.reply({**body, "exit": ended.as_dict()}))
            return None
        call.reply(body, (console,) if console >= 0 else ())
        return None

    def _attach(self, call: Call) -> None:
        self._container(call).attach(call)

    def _wait(self, call: Call) -> dict[str, Any] | None:
        container = self._container(call)
        exec_id = call.text("exec_id", "")
        subject = container.find_exec(exec_id) if exec_id else container
        if subject.ended is not None:
            if exec_id:
                container.find_exec(exec_id).asked = True
            return {"exit": subject.ended.as_dict()}
        self._wait_for(call, subject.waiters, call.number("timeout", 0))
        return None

    def _wait_for(self, call: Call, waiters: list[Callable[[Exit], None]], timeout: float) -> None:
        """Answer ``call`` with the exit that ``waiters`` are told, or that it took too long."""
        timer = None

        def tell(ended: Exit) -> None:
            if timer is not None:
                timer.cancel()
            call.reply({"exit": ended.as_dict()})

        def give_up() -> None:
            if tell in waiters:
                waiters.remove(tell)
                call.fail(TimedOut(f"it has not ended after {timeout:g} s"))

        def hung_up() -> None:
            if timer is not None:
                timer.cancel()
            if tell in waiters:
                waiters.remove(tell)

        if timeout > 0:
            timer = self._loop.later(timeout, give_up)
        waiters.append(tell)
        call.on_hangup(hung_up)

    def _resize(self, call: Call) -> dict[str, Any]:
        width, height = int(call.number("width")), int(call.number("height"))
        if not (0 <= width < 65536 and 0 <= height < 65536):
            raise InvalidInput("must be from 0 to 65535", field="width")
        self._container(call).resize(width, height)
        return {}

    def _signal(self, call: Call) -> dict[str, Any]:
        self._container(call).signal(int(call.number("signal")), all=call.flag("all"), exec_id=call.text("exec_id", ""))
        return {}

    def _stop(self, call: Call) -> dict[str, Any] | None:
        """Signal, and after a time kill everything; answered when the container has ended."""
        container = self._container(call)
        if container.ended is not None:
            return {"exit": container.ended.as_dict()}
        signal = int(call.number("signal", _signal.SIGTERM))
        grace = call.number("timeout", 0)
        timer = self._loop.later(grace, container.kill_all) if grace > 0 else None

        def tell(ended: Exit) -> None:
            if timer is not None:
                timer.cancel()
            call.reply({"exit": ended.as_dict()})

        container.waiters.append(tell)
        if timer is None or container.state == "created":
            container.kill_all()
            return None
        try:
            if container.state == "paused":
                self._handler.resume(container.id)
            container.signal(signal, all=False, exec_id="")
        except (WrongState, ProcessLookupError):
            pass  # it is ending by itself
        except TimedOut:
            pass  # another's runtime hangs: the timer kills without it
        return None

    def _pause(self, call: Call) -> dict[str, Any]:
        container = self._container(call)
        if container.state != "running":
            raise WrongState(f"container {container.id} is {container.state}, not running")
        self._handler.pause(container.id)
        container.state = "paused"
        return {}

    def _resume(self, call: Call) -> dict[str, Any]:
        container = self._container(call)
        if container.state != "paused":
            raise WrongState(f"container {container.id} is {container.state}, not paused")
        self._handler.resume(container.id)
        container.state = "running"
        return {}

    def _update(self, call: Call) -> dict[str, Any]:
        self._handler.update(self._alive(call).id, call.document("resources"))
        return {}

    def _stats(self, call: Call) -> dict[str, Any]:
        return {"stats": self._handler.stats(self._alive(call).id)}

    def _pids(self, call: Call) -> dict[str, Any]:
        return {"pids": self._handler.pids(self._alive(call).id)}

    def _alive(self, call: Call) -> Container:
        container = self._container(call)
        if container.ended is not None:
            raise WrongState(f"container {container.id} has exited")
        return container

    def _close_stdin(self, call: Call) -> dict[str, Any]:
        self._container(call).close_stdin()
        return {}

    def _reopen_log(self, call: Call) -> dict[str, Any]:
        self._container(call).reopen_log()
        return {}

    def _delete(self, call: Call) -> dict[str, Any] | None:
        container = self._container(call)
        if container.ended is not None:
            self._remove(container)
            return {}
        if not call.flag("force"):
            raise WrongState(f"container {container.id} is {container.state}", hint="stop it first")

        def ended(_: Exit) -> None:
            try:
                self._remove(container)
            except Exception as error:  # noqa: BLE001
                call.fail(error)
            else:
                call.reply({})

        container.waiters.append(ended)
        container.kill_all()
        return None

    def _remove(self, container: Container) -> None:
        if self._containers.get(container.id) is container:
            container.delete()
            del self._containers[container.id]
            if not self._containers and self._on_empty is not None:
                self._on_empty()

    def _events(self, call: Call) -> None:
        self._journal.subscribe(call, int(call.number("since", 0)))

    def _shutdown(self, call: Call) -> dict[str, Any] | None:
        if self._containers and not call.flag("force"):
            alive = [c.id for c in self._containers.values() if c.ended is None]
            if alive:
                raise WrongState(f"pod {self._pod_id} has running containers: {', '.join(alive)}")

        def end() -> None:
            self._on_empty = None
            self._end(call)

        self._on_empty = end
        for container in tuple(self._containers.values()):
            if container.ended is not None:
                self._remove(container)
            else:
                container.waiters.append(lambda _, container=container: self._remove(container))  # type: ignore[misc]
                container.kill_all()
        if not self._containers and self._on_empty is not None:
            self._on_empty()
        return None

    def _end(self, call: Call) -> None:
        if self._sandbox is None or not self._sandbox.kill_pause():
            self._leave(call)
            return

        def leave() -> None:
            timer.cancel()
            self._on_pause_end = None
            self._leave(call)

        # Its end needs that of all in its PID namespace, and they are ours to reap: so that is not waited for here.
        self._on_pause_end = leave
        timer = self._loop.later(_LAST_SECONDS, leave)

    def _leave(self, call: Call) -> None:
        try:
            if self._sandbox is not None:
                self._sandbox.destroy()
                self._sandbox = None
        except OSError as error:
            call.fail(StageFailed("let go of the pod's namespaces", error))
            return
        except Exception as error:  # noqa: BLE001
            call.fail(error)
            return
        self._service.stop_listening()
        for name in (SOCKET_NAME, DOCUMENT_NAME):
            try:
                os.unlink(f"{self._directory}/{name}")
            except FileNotFoundError:
                pass
        call.on_hangup(self._loop.stop)
        call.reply({})
        call.hang_up()

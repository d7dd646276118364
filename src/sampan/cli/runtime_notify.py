"""`NOTIFY_SOCKET`: a container's word of its readiness goes on to the service manager that started us (sd_notify(3)).

As runc has it: a container that is made by a service gets a socket of its own, in a folder that is read-only for it,
and `start`, or `run`, listens there. Of what the container says only ``READY=1`` goes on: with the manager's own socket
it could speak in our name.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module proper makes enumerations
import _socket
import _thread
import errno
import os
import select

from sampan.errors import StageFailed
from sampan.linux import sd_notify
from sampan.linux.process import pidfd_open
from sampan.runtime.state import NOTIFY_FOLDER, StateDir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cli.runtime import Context
    from sampan.runtime.native import NativeHandler
    from sampan.runtime.options import Options

_VARIABLE = "NOTIFY_SOCKET"
_NAME = "notify.sock"
#: Where a container has the folder.
_INSIDE = "/run/notify"
_LONGEST = 4096


def offer(config: dict[str, Any], options: Options, directory: StateDir) -> None:
    """Let a container that is to be made have the socket, unless whoever wrote its configuration gave it one.

    Args:
        config: Gets a mount and a variable; it is not validated yet.
        options: Get the order to make the folder.
        directory: The container's.
    """
    process, mounts = config.get("process"), config.get("mounts") or []
    if not isinstance(process, dict) or not isinstance(mounts, list):
        return
    env = process.get("env") or []
    if not isinstance(env, list) or any(str(entry).startswith(f"{_VARIABLE}=") for entry in env):
        return
    options.notify = True
    words = ["bind", "ro", "nosuid", "nodev", "noexec"]
    mount = {"destination": _INSIDE, "type": "bind", "source": directory.file(NOTIFY_FOLDER), "options": words}
    config["mounts"] = [*mounts, mount]
    process["env"] = [*env, f"{_VARIABLE}={_INSIDE}/{_NAME}"]


def start(context: Context, handler: NativeHandler, name: str, *, foreground: bool) -> Callable[[], None] | None:
    """Start a container, and pass its word on: return when it has said it or ended, or, in the foreground, at once.

    Returns:
        What is to be called in the foreground when it has ended, if it was made for that: its last word may be on its
        way.
    """
    directory = StateDir(handler.root, name)
    channel = _listen(directory.file(NOTIFY_FOLDER))
    if channel is None:
        handler.start(name)
    elif foreground:
        handler.start(name)
        return _Relay(context, channel).finish
    else:
        pid = directory.load()["pid"]
        try:
            pidfd = pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            pidfd = -1
        handler.start(name)  # which says what is wrong, if nothing is there to be started
        if _is_ready(channel, pidfd):
            _tell(context, pid)
            _wait_until_told(context)
    return None


def _listen(folder: str) -> _socket.socket | None:
    """The container's socket; none if it has none, or somebody listens already."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    address = f"/proc/self/fd/{fd}/{_NAME}"
    channel = _datagrams()
    mask = os.umask(0)  # the container's user is anybody
    try:
        if _bind(channel, address):
            return channel
        if _is_heard(address):
            channel.close()
            return None
        os.unlink(_NAME, dir_fd=fd)  # of a start that failed
        channel.bind(address)
    except OSError as error:
        channel.close()
        raise StageFailed("listen for the container's readiness", error, path=folder) from error
    finally:
        os.umask(mask)
        os.close(fd)
    return channel


def _datagrams() -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)


def _bind(channel: _socket.socket, address: str) -> bool:
    try:
        channel.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _is_heard(address: str) -> bool:
    probe = _datagrams()
    try:
        probe.connect(address)
    except ConnectionRefusedError:
        return False
    finally:
        probe.close()
    return True


def _is_ready(channel: _socket.socket, pidfd: int) -> bool:
    """Wait until the container says that it is ready; False if it ends first."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        found = dict(poll.poll())
        if channel.fileno() not in found:
            return False
        if _says_ready(channel.recv(_LONGEST)):
            return True


def _says_ready(message: bytes) -> bool:
    return b"READY=1" in message.split(b"\n")


class _Relay:
    """A thread that tells of the first word of readiness, and reads the others, or who sends them would wait."""

    def __init__(self, context: Context, channel: _socket.socket) -> None:
        self._context = context
        self._channel = channel
        self._told = self._ending = False
        self._works = _thread.allocate_lock()
        self._works.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # the main thread waits for them
        while True:
            message = self._channel.recv(_LONGEST)
            if not message and self._ending:
                break
            if _says_ready(message) and not self._told:
                _tell(self._context, os.getpid())
                self._told = True
        self._works.release()

    def finish(self) -> None:
        """Pass on what is there still, and see that the manager reads it while it knows whose word it is."""
        self._ending = True
        self._channel.shutdown(_socket.SHUT_RD)
        if self._works.acquire(timeout=2 * sd_notify.PATIENCE) and self._told:
            _wait_until_told(self._context)


def _tell(context: Context, pid: int) -> None:
    _speak(context, lambda address: sd_notify.send(address, f"READY=1\nMAINPID={pid}"))


def _wait_until_told(context: Context) -> None:
    _speak(context, sd_notify.wait_until_read)


def _speak(context: Context, call: Callable[[str], None]) -> None:
    address = os.environ[_VARIABLE]
    try:
        call(address)
    except OSError as error:
        failed = StageFailed("tell the service manager of the container's readiness", error, path=address)
        context.report("warning", str(failed))

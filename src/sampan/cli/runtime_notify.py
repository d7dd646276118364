"""`NOTIFY_SOCKET`: a container's word of its readiness goes on to the service manager that started us (sd_notify(3)).

As runc has it: a container that is made by a service gets a socket of its own, in a folder that it can't change, and
`start`, or `run`, listens there. Of what the container says only ``READY=1`` goes on, and not to the manager's own
socket: there it could speak in our name.
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
    from typing import Any

    from sampan.cli.runtime import Context
    from sampan.runtime.native import NativeHandler
    from sampan.runtime.options import Options

_VARIABLE = "NOTIFY_SOCKET"
_NAME = "notify.sock"
#: Where a container has the folder.
_INSIDE = "/run/notify"
#: Seconds for the manager to read what we say; sd_notify_barrier(3)'s usual ones would be longer than a start may take.
_PATIENCE = 30.0
_LONGEST = 4096


def offer(config: dict[str, Any], options: Options, folder: str) -> None:
    """Let a container that is to be made have the socket, unless whoever wrote its configuration gave it one.

    Args:
        config: Gets a mount and a variable; it is not validated yet.
        options: Get the order to make the folder.
        folder: The container's state directory.
    """
    process, mounts = config.get("process"), config.get("mounts") or []
    if not isinstance(process, dict) or not isinstance(mounts, list):
        return
    env = process.get("env") or []
    if not isinstance(env, list) or any(str(entry).startswith(f"{_VARIABLE}=") for entry in env):
        return
    options.notify = True
    words = ["bind", "ro", "nosuid", "nodev", "noexec"]
    mount = {"destination": _INSIDE, "type": "bind", "source": f"{folder}/{NOTIFY_FOLDER}", "options": words}
    config["mounts"] = [*mounts, mount]
    process["env"] = [*env, f"{_VARIABLE}={_INSIDE}/{_NAME}"]


def start(context: Context, handler: NativeHandler, name: str, *, foreground: bool) -> None:
    """Start a container; what it says goes on for as long as we run.

    Without ``foreground`` we run until it is ready, or has ended.
    """
    directory = StateDir(handler.root, name)
    channel = _listen(directory.file(NOTIFY_FOLDER))
    if channel is None:
        handler.start(name)
    elif foreground:
        handler.start(name)
        _thread.start_new_thread(_pass_on, (context, channel))
    else:
        pid = directory.load()["pid"]
        try:
            pidfd = pidfd_open(pid)
        except ProcessLookupError:
            handler.start(name)  # which says so
            return
        handler.start(name)
        if _is_ready(channel, pidfd):
            _tell(context, pid, leaving=True)


def _listen(folder: str) -> _socket.socket | None:
    """The container's socket; none if it has none, or somebody listens already."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        channel.bind(f"/proc/self/fd/{fd}/{_NAME}")
        os.chmod(_NAME, 0o777, dir_fd=fd)  # the container's user is anybody
    except OSError as error:
        channel.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise StageFailed("listen for the container's readiness", error, path=folder) from error
    finally:
        os.close(fd)
    return channel


def _is_ready(channel: _socket.socket, pidfd: int) -> bool:
    """Wait until the container says that it is ready; False if it ends first."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        found = dict(poll.poll())
        if channel.fileno() not in found:
            return False
        if _says_ready(channel):
            return True


def _says_ready(channel: _socket.socket) -> bool:
    return any(line.startswith(b"READY=") for line in channel.recv(_LONGEST).split(b"\n"))


def _pass_on(context: Context, channel: _socket.socket) -> None:
    """A thread's work: tell of the first word of readiness, and read the others, or who sends them would wait."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # the main thread waits for them
    told = False
    while True:
        if _says_ready(channel) and not told:
            _tell(context, os.getpid(), leaving=False)
            told = True


def _tell(context: Context, pid: int, *, leaving: bool) -> None:
    address = os.environ[_VARIABLE]
    try:
        sd_notify.send(address, f"READY=1\nMAINPID={pid}")
        if leaving:
            sd_notify.wait_until_read(address, _PATIENCE)
    except OSError as error:
        failed = StageFailed("tell the service manager of the container's readiness", error, path=address)
        context.report("warning", str(failed))

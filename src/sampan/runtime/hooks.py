"""Hooks: programs that the configuration has the runtime run at points of a container's life."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module brings enum
import errno
import os
import select
import time

from sampan.errors import StageFailed
from sampan.linux.process import pidfd_open, pidfd_send_signal, sealed_memfd
from sampan.runtime import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sampan.spec.runtime_types import Hook

_MOST_OUTPUT = 4096


def run(kind: str, hooks: list[Hook], state: dict[str, Any], env: list[str] | None = None) -> None:
    """Run the hooks of a kind one after another, each with the container's state on its stdin.

    Args:
        kind: Their key in the configuration.
        hooks: What to run.
        state: The state document.
        env: The environment of a hook that names none; the caller's own when None.

    Raises:
        StageFailed: One could not be run, ended with a status other than 0, or took longer than its timeout.
    """
    if not hooks:
        return
    from sampan.runtime.state import dumps

    document = dumps(state)
    for number, hook in enumerate(hooks):
        trace.step(f"run {kind} hook {number}", hook["path"])
        _run(f"{kind} hook {number}", hook, document, env)


def run_each(kind: str, hooks: list[Hook], state: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Run hooks that come too late to undo anything: ``warn`` is told of one that fails, and the next has its turn."""
    for hook in hooks:
        try:
            run(kind, [hook], state)
        except StageFailed as error:
            warn(str(error))


def preload() -> None:
    """Load what :func:`run` loads at its first call, for a process that soon can't load anything."""
    from sampan.runtime.state import dumps

    dumps({})


def _environment(hook: Hook, env: list[str] | None) -> Mapping[str, str]:
    # An empty list is an environment too.
    own = hook.get("env")
    entries = env if own is None else own
    return os.environ if entries is None else dict(entry.partition("=")[::2] for entry in entries)


def _run(name: str, hook: Hook, document: bytes, env: list[str] | None) -> None:
    path = hook["path"]
    state = _readable(document)
    output, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(writer, True)
        pid = os.posix_spawn(
            path,
            hook.get("args") or [path],
            _environment(hook, env),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, state, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
            setsigmask=[],
            setsigdef=[_signal.SIGPIPE],
        )
    except OSError as error:
        os.close(output)
        raise StageFailed(name, error, path=path) from None
    finally:
        os.close(state)
        os.close(writer)
    try:
        _wait(name, pid, output, hook)
    finally:
        os.close(output)


def _readable(document: bytes) -> int:
    """A descriptor to read the document from; a hook that does not read it holds nobody up.

    A pipe, which an SELinux policy lets containers read, whose startContainer hooks have their label; where it has not
    room for so much, a file.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    try:
        if os.write(writer, document) == len(document):
            return reader
    except BlockingIOError:
        pass
    finally:
        os.close(writer)
    os.close(reader)
    state = sealed_memfd("state", document)
    os.lseek(state, 0, os.SEEK_SET)
    return state


def _wait(name: str, pid: int, output: int, hook: Hook) -> None:
    timeout = hook.get("timeout")
    deadline = time.monotonic() + timeout if timeout else None
    pidfd = pidfd_open(pid)
    said = b""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(output, select.POLLIN)
    try:
        while True:
            left = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
            ready = dict(poll.poll(left))
            if output in ready:
                chunk = _read(output)
                said = (said + chunk)[-_MOST_OUTPUT:]
                if not chunk:
                    poll.unregister(output)
            if pidfd in ready:
                said = (said + _read(output))[-_MOST_OUTPUT:]
                break
            if deadline is not None and time.monotonic() >= deadline:
                pidfd_send_signal(pidfd, _signal.SIGKILL)
                os.waitpid(pid, 0)
                cause = OSError(errno.ETIMEDOUT, f"still running after {timeout} s")
                raise StageFailed(name, cause, path=hook["path"])
    finally:
        os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        text = said.decode("utf-8", "replace").strip()
        cause = OSError(0, f"exit status {status}{f': {text}' if text else ''}")
        raise StageFailed(name, cause, path=hook["path"])


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _MOST_OUTPUT)
    except BlockingIOError:
        return b""

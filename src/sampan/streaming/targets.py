"""What a client's session is joined to: a command that is started for it, or a container's first process."""

import os
from typing import TYPE_CHECKING

from sampan.errors import SampanError
from sampan.linux.process import pidfd_open
from sampan.streaming.channels import Wanted
from sampan.streaming.remote import Ends

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sampan.engine.engine import Engine
    from sampan.engine.execs import AttachSession, ExecSession


class Command:
    """A command.

    Args:
        session: The command, started.
    """

    def __init__(self, session: "ExecSession") -> None:
        self._session = session
        try:
            self.ended = pidfd_open(session.pid)
        except ProcessLookupError:
            self.ended = -1

    def resize(self, width: int, height: int) -> None:
        """Tell its pty a size."""
        self._session.resize(width, height)

    def outcome(self) -> int:
        """Its exit code."""
        return self._session.wait()

    def abandon(self) -> None:
        """End it: nobody would see its output or its outcome."""
        _give_up(self._session)

    def close(self) -> None:
        """Let go of it."""
        self._session.close()
        ended, self.ended = self.ended, -1
        if ended >= 0:
            os.close(ended)


class Attached:
    """A container's first process; its end is no failure of the session's.

    Args:
        session: The attachment.
    """

    def __init__(self, session: "AttachSession") -> None:
        self._session = session
        self.ended = session.fileno()

    def resize(self, width: int, height: int) -> None:
        """Tell its pty a size."""
        self._session.resize(width, height)

    def outcome(self) -> int:
        """Always success."""
        return 0

    def abandon(self) -> None:
        """The container runs on."""

    def close(self) -> None:
        """Detach."""
        self._session.close()


def start_command(
    engine: "Engine", container_id: str, command: "Sequence[str]", wanted: Wanted
) -> tuple[Command, Ends]:
    """Run a command in a container.

    Raises:
        SampanError: It can't be started.
        OSError: We are out of descriptors.
    """
    if wanted.tty:
        session = engine.containers.exec(container_id, command, tty=True)
        try:
            # A copy: the session's own is for window sizes, and both are closed at the end.
            console = os.dup(session.console)
        except OSError:
            _give_up(session)
            session.close()
            raise
        return _command(session, Ends(console if wanted.stdin else -1, console, -1))
    ours, theirs = _pipes(wanted)
    try:
        session = engine.containers.exec(
            container_id, command, stdin=theirs.stdin, stdout=theirs.stdout, stderr=theirs.stderr
        )
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    return _command(session, ours)


def attach(engine: "Engine", container_id: str, wanted: Wanted) -> tuple[Attached, Ends]:
    """Join a container's own streams.

    Raises:
        SampanError: It has ended.
        OSError: We are out of descriptors.
    """
    ours, theirs = _pipes(wanted._replace(stderr=wanted.stderr and not wanted.tty))
    try:
        session = engine.containers.attach(container_id, stdin=theirs.stdin, stdout=theirs.stdout, stderr=theirs.stderr)
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    return Attached(session), ours


def _command(session: "ExecSession", ours: Ends) -> tuple[Command, Ends]:
    try:
        return Command(session), ours
    except OSError:
        _close(ours)
        _give_up(session)
        session.close()
        raise


def _give_up(session: "ExecSession") -> None:
    """End a command and wait for that, so that its pid is not ours to think of any more."""
    try:
        session.kill()
        session.wait(timeout=5)
    except SampanError:
        pass  # it has ended already


def _pipes(wanted: Wanted) -> tuple[Ends, Ends]:
    """Our ends and the process's ends of the streams that are wanted."""
    made: list[tuple[int, int]] = []
    try:
        # What was made before a failure is in the list then.
        made.extend(
            os.pipe2(os.O_CLOEXEC) if want else (-1, -1) for want in (wanted.stdin, wanted.stdout, wanted.stderr)
        )
    except OSError:
        _close(fd for pair in made for fd in pair)
        raise
    stdin, stdout, stderr = made
    return Ends(stdin[1], stdout[0], stderr[0]), Ends(stdin[0], stdout[1], stderr[1])


def _close(descriptors: "Iterable[int]") -> None:
    for fd in set(descriptors) - {-1}:
        os.close(fd)

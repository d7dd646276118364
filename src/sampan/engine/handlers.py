"""What runtime handlers can do: our own runtime everything, another's binary what it says of itself.

A runtime is asked by ``BINARY features`` (OCI runtime specification, features.md), in a thread, and once for each
version of the file: a runtime that hangs holds up nobody who asks, and an old one that knows no such command is taken
for one that can do nothing special.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.engine.config import HandlerConfig

if TYPE_CHECKING:
    import subprocess

#: Seconds that a runtime has to answer; that whoever asks waits for it; after which a failure is tried again.
_PATIENCE, _WAIT, _AGAIN = 10.0, 1.0, 60.0
_LARGEST = 1 << 20


class Features(msgspec.Struct, frozen=True):
    """What the CRI wants to know of a handler, and why nothing is known, where nothing is."""

    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False
    #: What is wrong with the runtime; empty: it has answered.
    problem: str = ""


class _Question:
    """One asking of one version of a binary."""

    def __init__(self, binary: str, stamp: tuple[int, int, int]) -> None:
        self.stamp = stamp
        self.asked_at = time.monotonic()
        self.answer: Future[Features] = Future()
        self._program = _Program()
        threading.Thread(target=self._ask, args=(binary,), name="features", daemon=True).start()

    def _ask(self, binary: str) -> None:
        # Imported when a runtime is asked: a daemon with none but ours does without.
        import subprocess

        try:
            self.answer.set_result(_parse(self._program.output(binary)))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.answer.set_result(Features(problem=_reason(error)))

    def withdraw(self) -> None:
        """End a runtime that has not answered yet, with all that it has started."""
        self._program.end()

    def stale(self, stamp: tuple[int, int, int]) -> bool:
        """Whether to ask again: the file is another, or the answer was a failure a while ago."""
        if self.stamp != stamp:
            return True
        failed = self.answer.done() and self.answer.result().problem
        return bool(failed) and time.monotonic() - self.asked_at > _AGAIN


class Handlers:
    """Asks runtimes, and remembers their answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._questions: dict[str, _Question] = {}

    def features(self, config: HandlerConfig, *, wait: float = _WAIT) -> Features:
        """What a handler can do, as far as its runtime says it within ``wait`` seconds."""
        if config.type == "native":
            return Features(recursive_read_only_mounts=True, user_namespaces=True)
        path = shutil.which(config.binary) or ""
        if not path:
            return Features(problem=f"{config.binary} is not installed, or is no program")
        status = os.stat(path)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        with self._lock:
            question = self._questions.get(path)
            if question is None or question.stale(stamp):
                if question is not None:
                    question.withdraw()
                question = self._questions[path] = _Question(path, stamp)
        try:
            return question.answer.result(timeout=wait)
        except NotYet:
            return Features(problem=f"{path} has not said yet what it can do")

    def close(self) -> None:
        """Ask no further: runtimes that have not answered yet are ended."""
        with self._lock:
            questions, self._questions = list(self._questions.values()), {}
        for question in questions:
            question.withdraw()


class _Program:
    """A run of a runtime, which is ended whole: a script's children would outlive it and hold its output open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._run: subprocess.Popen[bytes] | None = None

    def output(self, binary: str) -> bytes:
        import subprocess

        words = [binary, "features"]
        with self._lock:
            if self._ended:
                raise OSError("is not asked any more")
            run = self._run = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            text, _ = run.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.end()
            run.communicate()
            raise
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, words)
        return text[:_LARGEST]

    def end(self) -> None:
        """Kill the run's process group, unless its leader has ended and its id may be another's."""
        with self._lock:
            self._ended = True
            if self._run is not None and self._run.poll() is None:
                os.killpg(self._run.pid, signal.SIGKILL)


def _parse(text: bytes) -> Features:
    document = msgspec.json.decode(text)
    if not isinstance(document, dict):
        raise ValueError("is no object")
    options = document.get("mountOptions")
    return Features(
        recursive_read_only_mounts="rro" in options if isinstance(options, list) else False,
        # The pod's namespace is joined by path; the idmapped volumes in it are the runtime's to make.
        user_namespaces="user" in _dig(document, ("linux", "namespaces"), [])
        and _dig(document, ("linux", "mountExtensions", "idmap", "enabled"), default=False) is True,
    )


def _dig(document: Any, path: Iterable[str], default: Any) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return default if document is None else document


def _reason(error: Exception) -> str:
    import subprocess

    if isinstance(error, subprocess.TimeoutExpired):
        return f"has not answered `features` after {_PATIENCE:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"knows no `features` (exit status {error.returncode})"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

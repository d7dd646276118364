"""What runtime handlers can do: our own runtime everything, another's binary what it says of itself.

A runtime is asked by ``BINARY features`` (OCI runtime specification, features.md), in a thread, and once for each
version of the file: a runtime that hangs holds up nobody who asks, and an old one that knows no such command is taken
for one that can do nothing special.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any

import msgspec

from sampan.engine.config import HandlerConfig

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
        threading.Thread(target=self._ask, args=(binary,), name="features", daemon=True).start()

    def _ask(self, binary: str) -> None:
        try:
            self.answer.set_result(_parse(_output(binary)))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.answer.set_result(Features(problem=_reason(error)))

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
                question = self._questions[path] = _Question(path, stamp)
        try:
            return question.answer.result(timeout=wait)
        except NotYet:
            return Features(problem=f"{path} has not said yet what it can do")


def _output(binary: str) -> bytes:
    done = subprocess.run(
        [binary, "features"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE,
        check=True,
        start_new_session=True,
    )
    return done.stdout[:_LARGEST]


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
    if isinstance(error, subprocess.TimeoutExpired):
        return f"has not answered `features` after {_PATIENCE:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"knows no `features` (exit status {error.returncode})"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

"""The pipes by which a container's first process has its streams, when it has no terminal."""

from __future__ import annotations

import os

from sampan.runtime.handler import Stdio


class Pipes:
    """The pipes between a monitor and a container; -1 for what is not wanted.

    Raises:
        OSError: There are no descriptors left; none is then taken.
    """

    __slots__ = ("_theirs", "stderr", "stdin", "stdout")

    def __init__(self, *, stdin: bool, outputs: bool) -> None:
        self._theirs = Stdio()
        self.stdin = self.stdout = self.stderr = -1
        try:
            if stdin and outputs:
                self._theirs.stdin, self.stdin = os.pipe2(os.O_CLOEXEC)
            if outputs:
                self.stdout, self._theirs.stdout = os.pipe2(os.O_CLOEXEC)
                self.stderr, self._theirs.stderr = os.pipe2(os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def container_side(self) -> Stdio:
        """The ends that the container gets."""
        return self._theirs

    def close_container_side(self) -> None:
        """Close the container's ends, which it has; a second call does nothing."""
        for fd in (self._theirs.stdin, self._theirs.stdout, self._theirs.stderr):
            if fd >= 0:
                os.close(fd)
        self._theirs = Stdio()

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        self.close_container_side()
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = -1

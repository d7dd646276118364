"""What other engines, and a runtime that they give no --root, make in places that no option of theirs moves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

PLACES = (
    "/dev/shm/libpod_lock",
    "/etc/cni/net.d/cni.lock",
    "/opt/containerd",
    "/run/containerd",
    "/run/containers",
    "/run/libpod",
    "/run/sampan-runtime",
    "/run/sampan-runtime.seccomp",
    "/run/xtables.lock",
    "/var/lib/cni",
    "/var/lib/containers",
)


@contextmanager
def swept() -> Iterator[None]:
    """Removes at the end those that were not there at the beginning."""
    new = [place for place in PLACES if not os.path.lexists(place)]
    yield
    for place in new:
        if os.path.isdir(place):
            shutil.rmtree(place)
        elif os.path.lexists(place):
            os.unlink(place)

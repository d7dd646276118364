"""What other engines, and a runtime that they give no --root, make in places that no option of theirs moves."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

#: Patterns; what stands in a place that another engine on the machine may have too has a line of its own.
PLACES = (
    "/dev/shm/libpod_lock",
    "/etc/cni/net.d/cni.lock",
    "/opt/containerd",
    "/opt/containerd/bin",
    "/opt/containerd/lib",
    "/run/containerd",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/runc/default",
    "/run/containerd/runc/engines-*",
    "/run/containerd/s",
    "/run/containers",
    "/run/criu.kdat",
    "/run/criu.kdat.tmp",
    "/run/libpod",
    "/run/sampan-runtime",
    "/run/sampan-runtime.seccomp",
    "/run/sampan-runtime.seccomp/*.bpf",
    "/run/xtables.lock",
    "/var/lib/cni",
    "/var/lib/cni/results",
    "/var/lib/containers",
    "/var/lib/containers/cache",
)


@contextmanager
def swept() -> Iterator[None]:
    """Removes at the end those that were not there at the beginning."""
    before = _there()
    yield
    for place in sorted(_there() - before, reverse=True):
        if os.path.isdir(place):
            shutil.rmtree(place)
        else:
            os.unlink(place)


def _there() -> set[str]:
    return {place for pattern in PLACES for place in glob.glob(pattern)}

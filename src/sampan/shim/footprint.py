"""What a monitor's work has mapped of the interpreter's program, and waiting has no use for, is given back.

The pages are the program's own, shared by all; but each monitor counts for its part of what it has mapped.
"""

from __future__ import annotations

from sampan.linux import memory

#: Bytes of a range that is worth a call.
_WORTH = 1 << 18

_ranges: list[tuple[int, int]] = []


def measure() -> None:
    """Find the ranges; for a process that forks monitors, which then have them too."""
    _ranges[:] = [(start, end) for start, end in memory.unchanged() if end - start >= _WORTH]


def give_back() -> None:
    """Let go of them; what is used again is mapped again, some twenty pages at a time."""
    for start, end in _ranges:
        memory.forget(start, end)

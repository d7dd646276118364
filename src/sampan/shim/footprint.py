"""What a monitor's work has mapped of the interpreter's program, and waiting has no use for, is given back.

The pages are the program's own, shared by all; but each monitor counts for its part of what it has mapped.
"""

from __future__ import annotations

from sampan.linux import memory

_start = _end = 0


def measure() -> None:
    """Find the longest range; for a process that forks monitors, which then have it too."""
    global _start, _end
    begin = last = 0
    for start, end in memory.unchanged():
        begin, last = (begin if start == last else start), end
        if last - begin > _end - _start:
            _start, _end = begin, last


def give_back() -> None:
    """Let go of it; what is used again is mapped again, sixteen pages at a time."""
    if _end:
        memory.forget(_start, _end)

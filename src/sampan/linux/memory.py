"""Giving pages of memory back: of mapped files, and only those that nobody has changed (madvise(2)).

A program's start-up code and its tables stay mapped after they were used. Their pages are the file's own: forgetting
them costs a minor fault for each run of pages that is used again.
"""

from __future__ import annotations

import ctypes

from sampan.linux.syscall import fail, libc

_MADV_DONTNEED = 4

_madvise = libc["madvise"]
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def unchanged() -> list[tuple[int, int]]:
    """Address ranges of mapped files that can't be written to and have no page that was ever changed.

    See proc_pid_smaps(5). A table that the loader has relocated is read-only too, but its pages are the process's own:
    it is not among them.
    """
    found = []
    area = (0, 0)
    with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            parts = line.split(maxsplit=5)
            if parts[0] == "Swap:" and area != (0, 0) and parts[1] == "0":
                found.append(area)
            elif parts[0] == "Anonymous:" and parts[1] != "0":
                area = (0, 0)
            elif not parts[0].endswith(":"):
                start, _, end = parts[0].partition("-")
                fixed = parts[1] in ("r-xp", "r--p") and len(parts) == 6 and parts[5].startswith("/")
                area = (int(start, 16), int(end, 16)) if fixed else (0, 0)
    return found


def forget(start: int, end: int) -> None:
    """Unmap the pages of one of :func:`unchanged`'s ranges until they are used again: it loses nothing."""
    if _madvise(start, end - start, _MADV_DONTNEED) != 0:
        raise fail()

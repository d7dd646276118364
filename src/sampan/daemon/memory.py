"""What only starting needed is given back: freed heap, and the pages of code that ran once.

A library's start-up code stays mapped after it ran. Its pages are the file's own, unchanged; forgetting them costs a
minor fault for each that is used again, and an idle daemon uses few.
"""

import ctypes
import gc

_MADV_DONTNEED = 4


def release() -> None:
    """Give back; to be called when the daemon has started and is about to wait."""
    gc.collect()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc_trim(ctypes.c_size_t(0))
    for start, end in _code():
        # Only text: such a mapping is never written to, so nothing is lost (madvise(2)).
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _code() -> list[tuple[int, int]]:
    """Address ranges of mapped files' text: private, executable, not writable (proc_pid_maps(5))."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[1] == "r-xp" and parts[5].startswith("/"):
                start, _, end = parts[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found

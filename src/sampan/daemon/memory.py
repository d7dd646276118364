"""What only starting needed is given back: freed heap, and the pages of files that were used once.

A library's start-up code and its tables stay mapped after they were used. Their pages are the file's own, unchanged;
forgetting them costs a minor fault for each that is used again, and an idle daemon uses few.
"""

import ctypes
import gc

_MADV_DONTNEED = 4


def release() -> None:
    """Give back; to be called when the daemon has started and is about to wait."""
    gc.collect()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc_trim(ctypes.c_size_t(0))
    for start, end in unchanged():
        # A mapping that is not written to and has no page of its own loses nothing (madvise(2)).
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


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

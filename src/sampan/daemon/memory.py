"""What only starting needed is given back: freed heap, and the pages of files that were used once.

And Python looks for cycles seldom from then on: next to nothing that a daemon makes is in one, but a list of 500 pods
makes thousands of objects for a moment, among which it would look a dozen times.
"""

import gc

from sampan.linux.memory import forget, unchanged
from sampan.linux.syscall import libc

#: Young objects at which Python looks for cycles among them.
_GC_THRESHOLD = 20_000


def release() -> None:
    """Give back; to be called when the daemon has started and is about to wait."""
    gc.collect()
    gc.set_threshold(_GC_THRESHOLD)
    libc.malloc_trim(0)
    for start, end in unchanged():
        forget(start, end)

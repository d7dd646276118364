"""What a spawned worker's interpreter runs; see worker.py. On the import diet: a layer's worker starts with it."""

from __future__ import annotations

import marshal
import os
import sys

from sampan.errors import SampanError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run() -> None:
    """Call the function that the command line names, and write what came of it to the first descriptor passed."""
    module, _, name = sys.argv[1].partition(":")
    base, count = map(int, sys.argv[2].split(":"))
    outcome: tuple[Any, ...]
    try:
        __import__(module)
        function = getattr(sys.modules[module], name)
        argument = marshal.loads(bytes.fromhex(sys.argv[3]))
        outcome = ("done", function(argument, list(range(base + 1, base + 1 + count))))
    except SampanError as error:
        outcome = ("failed", type(error).__name__, error.message, error.hint)
    except BaseException as error:  # noqa: BLE001 - it is to be told, not lost
        outcome = ("failed", "SampanError", f"worker: {type(error).__name__}: {error}", "")
    data = memoryview(marshal.dumps(outcome))
    while data:
        data = data[os.write(base, data) :]
    # Without waiting for the thread that may still be inflating.
    os._exit(0)

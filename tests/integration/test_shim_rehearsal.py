"""The rehearsal of a zygote: it is played to its end, and nothing of it stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.shim.zygote import Zygote

pytestmark = pytest.mark.root

SOURCE = Path(__file__).resolve().parents[2] / "src"
#: Played in an interpreter like a zygote's; prints what ran, and what is left.
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(SOURCE)!r})
from sampan.shim import seed, rehearsal
before = set(os.listdir("/proc/self/fd"))
seen = {{code.co_qualname for code in rehearsal._watch()}}
rehearsal.fill_holes()
old = rehearsal._play.__code__
rehearsal.regroup(dict.fromkeys([old]))
assert rehearsal._play.__code__ is not old
rehearsal._play()
print(*sorted(seen))
print(*(set(os.listdir("/proc/self/fd")) - before))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""


def scratch(pid: int) -> list[str]:
    """What a process has there; others may be at it beside us."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"sampan-{pid}-")]


def test_a_played_pod_runs_what_a_real_one_does_and_leaves_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    seen, descriptors, children = result.stdout.splitlines()
    wanted = {
        "Container.start",
        "Container.exec",
        "Container.delete",
        "NativeHandler.start",
        "write_exit",
        "Call.reply",
    }
    assert wanted <= set(seen.split())
    assert descriptors == ""
    assert children == "no child"


def test_a_zygote_leaves_nothing_of_its_rehearsal() -> None:
    with Zygote.start() as zygote:
        zygote.run_worker("sampan.shim.zygote:echo", {}).result(timeout=60)
        stats = [Path(f"/proc/{name}/stat") for name in os.listdir("/proc") if name.isdigit()]
        children = [path for path in stats if path.exists() and parent(path) == zygote.pid]
        assert children == []
        assert not scratch(zygote.pid)


def parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(") ")[2].split()[1])
    except (OSError, ValueError):
        return 0

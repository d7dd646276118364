"""The rehearsal of a zygote: it is played to its end, and nothing of it stays."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sampan.linux import process
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
old = [rehearsal._play, rehearsal._Scene._ask]
codes = [one.__code__ for one in old]
rehearsal.regroup(dict.fromkeys(codes))
for before_, after, code in zip(old, [rehearsal._play, rehearsal._Scene._ask], codes):
    assert after is not before_ and after.__code__ is not code
    assert (after.__qualname__, after.__doc__) == (before_.__qualname__, before_.__doc__)
rehearsal._play()
print(*sorted(seen))
print(*(set(os.listdir("/proc/self/fd")) - before))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""


#: Plays until it is killed; says when it begins.
ENDLESS = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from sampan.shim import seed, rehearsal
print(flush=True)
while True:
    rehearsal._play()
"""
#: A call of the play fails; the zygote goes on all the same, with no process left.
BROKEN = f"""
import os, sys
sys.path.insert(0, {str(SOURCE)!r})
from sampan.shim import seed, rehearsal

def fail(*_arguments, **_named):
    raise OSError(28, "no space is left")

setattr(rehearsal._Player, sys.argv[1], fail)
rehearsal.prepare()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""
#: Where a part of it could be forgotten.
PLACES = ("/dev/shm", "/run", "/tmp")


def files() -> set[str]:
    """What a player leaves there, by the process's number; others may be at it beside us."""
    return {f"{place}/{name}" for place in PLACES for name in os.listdir(place) if re.match(r"sampan-\d+-", name)}


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


@pytest.mark.parametrize("call", ["create", "start", "exec", "delete"])
def test_a_play_that_fails_holds_nothing_up(call: str) -> None:
    # The container would wait for a minute.
    command = [sys.executable, "-I", "-S", "-c", BROKEN, call]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=40)
    assert (result.stdout, result.stderr) == ("no child\n", "")


def test_a_zygote_leaves_nothing_of_its_rehearsal() -> None:
    with Zygote.start() as zygote:
        zygote.run_worker("sampan.shim.zygote:echo", {}).result(timeout=60)
        stats = [Path(f"/proc/{name}/stat") for name in os.listdir("/proc") if name.isdigit()]
        children = [path for path in stats if path.exists() and parent(path) == zygote.pid]
        assert children == []
        kept = [target for target in descriptors(zygote.pid) if "sampan" in target or target == "/"]
        assert set(kept) <= {"/sampan-init"}


@pytest.mark.parametrize("moment", range(12))
def test_a_player_that_is_killed_leaves_nothing(moment: int) -> None:
    before = files()
    process.become_subreaper()
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ENDLESS], stdout=subprocess.PIPE, start_new_session=True
        ) as player:
            assert player.stdout is not None
            player.stdout.readline()
            time.sleep(moment / 1000)
            player.kill()
        wait_for_orphans(seconds=20)
    finally:
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 0)
    assert files() <= before


def wait_for_orphans(seconds: float) -> None:
    """Reap what the player left running; it must end by itself, and before the minute after which it does anyway."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return
    pytest.fail("a process of the played pod outlives the player")


def descriptors(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    return [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]


def parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(") ")[2].split()[1])
    except (OSError, ValueError):
        return 0

"""The command line beside runc's own, on the same bundle: exit codes, documents, states."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_bundle import base_config, make_rootfs

from sampan.cgroup import mode

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
]

OURS = str(Path(sys.executable).parent / "sampan-runtime")
NAMES = {"runc": "runc", "ours": OURS}

#: Command lines without a container, after which both must have ended with the same code.
MISUSES = """
    |bogus|--nope|help|--help|--version|help run|run --help|--log-format xml list|list|list -q|list -f json|list -f xml
    |list extra|features|features extra|spec extra|state|state nobody|state a b|state a/b|start|start nobody|run|run a b
    |run --nope a|run a/b|run nobody|create|create nobody|kill|kill nobody|kill nobody NOPE|delete|delete nobody
    |delete -f nobody|delete --force=false nobody|pause nobody|resume nobody|ps|ps nobody|ps -f json nobody|events
    |events nobody|events --stats nobody|update|update nobody|update --memory 1m nobody|exec|exec nobody|exec nobody ls
    |exec --nope nobody ls|checkpoint nobody|checkpoint|restore|restore nobody|run --preserve-fds x a
"""


class Two:
    """Both runtimes, each with a root of its own, on bundles alike."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for who in NAMES:
            make_rootfs(path / who / "bundle" / "rootfs")
        self.configure("exec sleep 1000")

    def configure(self, script: str, **linux: Any) -> None:
        """Write the bundles' configuration."""
        for who in NAMES:
            config = base_config()
            config["ociVersion"] = "1.0.2"
            config["process"]["args"] = ["sh", "-c", script]
            config["linux"] |= {"cgroupsPath": f"/sampan-test-same-{os.getpid()}/{who}", **linux}
            (self.path / who / "bundle" / "config.json").write_text(json.dumps(config))

    def one(self, who: str, *args: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command of one."""
        command = [NAMES[who], "--root", str(self.path / who / "root"), *args]
        streams: dict[str, Any] = {"stdout": -3, "stderr": -3} if quiet else {"capture_output": True}
        return subprocess.run(
            command, check=False, text=True, stdin=-3, cwd=self.path / who / "bundle", timeout=60, **streams
        )

    def both(self, *args: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command of both, which must end alike; what ours said."""
        runc, ours = (self.one(who, *args, quiet=quiet) for who in ("runc", "ours"))
        assert ours.returncode == runc.returncode, (args, runc, ours)
        return ours

    def documents(self, *args: str) -> tuple[Any, Any]:
        """What both print as JSON."""
        runc, ours = (json.loads(self.one(who, *args).stdout) for who in ("runc", "ours"))
        return runc, ours


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    for who in NAMES:
        for name in ("c1", "c2"):
            made.one(who, "delete", "--force", name)
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        shared = hierarchy / f"sampan-test-same-{os.getpid()}"
        if shared.is_dir():
            shared.rmdir()


@pytest.mark.slow
def test_misuses_end_with_the_same_code(two: Two) -> None:
    for who in NAMES:
        (two.path / who / "bundle" / "config.json").unlink()
    for line in MISUSES.strip().split("|"):
        two.both(*line.split())


@pytest.mark.slow
def test_each_command_in_each_state_ends_with_the_same_code(two: Two) -> None:
    """The states of a container, and in each of them what may be asked of it."""
    asked = (
        "state c1",
        "ps c1",
        "events --stats c1",
        "exec c1 true",
        "exec c1 sh -c 'exit 7'",
        "exec c1 none",
        "exec c1",
    )
    assert two.both("create", "c1", quiet=True).returncode == 0
    for command in (*asked, "create c1", "resume c1", "pause c1", "resume c1", "update --pids-limit 50 c1", "start c1"):
        two.both(*_words(command))
    for command in (*asked, "start c1", "create c1", "run c1", "delete c1", "kill c1 0", "kill c1 USR1", "resume c1"):
        two.both(*_words(command))
    two.both("pause", "c1")
    for command in ("state c1", "ps c1", "pause c1", "exec c1 true", "start c1", "events --stats c1", "list -q"):
        two.both(*_words(command))
    two.both("resume", "c1")
    two.both("kill", "c1", "KILL")
    for who in NAMES:
        _await_stopped(two, who)
    for command in (*asked, "kill c1", "kill c1 0", "start c1", "pause c1", "resume c1", "update --pids-limit 5 c1"):
        two.both(*_words(command))
    assert two.both("delete", "c1").returncode == 0
    assert two.both("delete", "c1").returncode == 1


#: Command lines with values that are empty, or none of their kind.
_VALUES = """
    |exec -g x c1 true|exec -g 0x10 c1 true|exec -g 010 c1 true|exec -g -1 c1 true|exec -g '' c1 true
    |exec -g 5,6 c1 true|exec --preserve-fds x c1 true|exec -u '' c1 true|exec -u x c1 true|exec -u 1: c1 true
    |exec -u :1 c1 true
    |exec --cwd '' c1 true|exec --cwd here c1 true|exec --apparmor '' c1 true|exec -p '' c1 true|exec -e '' c1 true
    |exec -c '' c1 true|exec --cgroup '' c1 true|exec --pid-file '' c1 true|update --memory x c1|update --memory '' c1
    |update --kernel-memory x c1|update --kernel-memory '' c1|update --kernel-memory 5m c1|update --cpu-quota '' c1
    |update --cpu-quota x c1|update --kernel-memory-tcp x c1|update --cpuset-cpus '' c1|update --cpuset-cpus 4000 c1
    |update --pids-limit '' c1|update --pids-limit x c1|update -r '' c1|kill c1 ''|kill c1 x|kill c1 65|ps -f '' c1
    |list -f ''|events --interval '' --stats c1|events --interval 0 --stats c1|--log-format '' list|--rootless '' list
"""


@pytest.mark.slow
def test_values_are_taken_and_refused_alike(two: Two) -> None:
    two.configure("trap : TERM; while true; do sleep 0.1; done")
    assert two.both("run", "-d", "c1", quiet=True).returncode == 0
    assert two.both("exec", "c1", "true").returncode == 0
    for line in _VALUES.strip().split("|"):
        two.both(*_words(line))
    assert two.both("exec", "c1", "true").returncode == 0


def _words(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


def _await_stopped(two: Two, who: str) -> None:
    import time

    deadline = time.monotonic() + 10
    while json.loads(two.one(who, "state", "c1").stdout)["status"] != "stopped":
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_documents_have_the_same_fields(two: Two) -> None:
    if mode() == "v2":
        pytest.skip("runc's statistics of cgroup v2 are of another version here")
    assert two.documents("list", "-f", "json") == (None, None)
    two.both("create", "c1", quiet=True)
    for status in ("created", "running", "paused"):
        if status == "running":
            two.both("start", "c1")
        if status == "paused":
            two.both("pause", "c1")
        runc, ours = two.documents("state", "c1")
        assert list(ours) == list(runc)
        for key in ("id", "status", "owner"):
            assert ours[key] == runc[key], key
        assert ours["status"] == status
        runc, ours = two.documents("list", "-f", "json")
        assert [list(one) for one in ours] == [list(one) for one in runc]
        assert ours[0]["owner"] == runc[0]["owner"]
        runc, ours = two.documents("ps", "-f", "json", "c1")
        assert (len(ours), type(ours[0])) == (len(runc), int)
    two.both("resume", "c1")
    runc, ours = two.documents("events", "--stats", "c1")
    assert (list(ours), ours["type"], ours["id"]) == (list(runc), "stats", "c1")
    assert _shape(ours["data"]) >= _shape(runc["data"])
    header, *rows = two.both("list").stdout.splitlines()
    assert header.split() == two.one("runc", "list").stdout.splitlines()[0].split()
    assert len(rows) == 1
    header = two.both("ps", "c1").stdout.splitlines()[0]
    assert header.split() == two.one("runc", "ps", "c1").stdout.splitlines()[0].split()


def _shape(value: Any, path: str = "") -> set[str]:
    """Paths of the fields, with the type of each; a list's are those of its entries, and free keys stand for all."""
    if isinstance(value, dict):
        free = path.endswith(("raw", "hugetlb"))
        return {one for key, inner in value.items() for one in _shape(inner, f"{path}.{'*' if free else key}")}
    if isinstance(value, list):
        return {one for inner in value for one in _shape(inner, f"{path}[]")}
    return {f"{path}: {type(value).__name__}"}


def test_features_tell_at_least_what_runc_tells() -> None:
    runc, ours = (
        json.loads(subprocess.run([binary, "features"], check=True, capture_output=True).stdout)
        for binary in ("runc", OURS)
    )
    assert set(ours) >= set(runc)
    assert set(ours["hooks"]) == set(runc["hooks"])
    # The kernel has no flag for it any more that a new mount could be given: it is a file system's own option.
    assert set(ours["mountOptions"]) >= set(runc["mountOptions"]) - {"iversion", "acl", "noacl"}
    assert set(ours["linux"]) >= set(runc["linux"])
    for key in ("namespaces", "capabilities"):
        assert set(ours["linux"][key]) >= set(runc["linux"][key])
    for key in ("actions", "operators", "archs"):
        assert set(ours["linux"]["seccomp"][key]) >= set(runc["linux"]["seccomp"][key])
    assert ours["linux"]["netDevices"] == {"enabled": True}
    assert "MPOL_BIND" in ours["linux"]["memoryPolicy"]["modes"]
    assert ours["potentiallyUnsafeConfigAnnotations"] == []


def test_the_options_are_at_least_runcs() -> None:
    """Each that runc's help names is known; those of commands too."""
    help_ = subprocess.run(["runc", "--help"], check=True, capture_output=True, text=True).stdout
    commands = _first_words(help_.partition("COMMANDS:")[2].partition("GLOBAL OPTIONS:")[0])
    assert len(commands) > 15
    missing = _options(help_.partition("GLOBAL OPTIONS:")[2]) - _options(_ours("--help"))
    for name in commands - {"help,"}:
        help_ = subprocess.run(["runc", name, "--help"], check=True, capture_output=True, text=True).stdout
        missing |= {
            f"{name} {one}" for one in _options(help_.partition("OPTIONS:")[2]) - _options(_ours(name, "--help"))
        }
    assert missing == set()


def _ours(*args: str) -> str:
    return subprocess.run([OURS, *args], check=True, capture_output=True, text=True).stdout


def _first_words(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line.strip()}


def _options(text: str) -> set[str]:
    lines = [line.strip() for line in text.splitlines()]
    words = [line.split("  ")[0].replace(",", " ").split() for line in lines if line.startswith("-")]
    return {word.lstrip("-") for line in words for word in line if word.startswith("-")} - {"help", "h"}

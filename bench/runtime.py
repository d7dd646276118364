"""OCI runtimes: by fresh processes, as an engine calls them, and warm, as our monitors do it in process."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Budget, Clock, Row, medians, take_turns_in_parts

from sampan.linux import namespaces, process
from sampan.linux.mount import MNT_DETACH, MS_PRIVATE, MS_REC, mount, umount
from sampan.shim.client import MonitorClient
from sampan.shim.zygote import Zygote

if TYPE_CHECKING:
    from run import Options

_UNIFIED = "/sys/fs/cgroup/unified"
_TRUE = {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"]}


def rows(options: Options) -> list[Row]:
    """Every row, made in a process of its own: it leaves the machine's mount namespace."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(_rows(options.rounds), pipe)
        except BaseException as error:  # noqa: BLE001 -- a fork must not go on with its maker's work
            print(f"runtime: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    if not content:
        raise RuntimeError("the measurement failed")
    found: list[Row] = pickle.loads(content)
    return found


def _rows(rounds: int) -> list[Row]:
    _make_world()
    with tempfile.TemporaryDirectory(prefix="sampan-bench-", dir=_state_directory()) as name, ExitStack() as stack:
        folder = Path(name)
        short, long = make_bundle(folder / "short", "/bin/true"), make_bundle(folder / "long", "/bin/sleep", "1000000")
        contestants = {
            label: stack.enter_context(_commands(label, program, folder, short, long))
            for label, program in programs().items()
            if _usable(label, program, folder, short)
        }
        monitor = stack.enter_context(_monitor(folder, short, long))
        cold = take_turns_in_parts({label: each.cold for label, each in contestants.items()}, rounds)
        warm_peers = {label: each.life for label, each in contestants.items() if label != "sampan-runtime"}
        warm = take_turns_in_parts({"sampan": monitor, **warm_peers}, rounds)
    runc, crun = Budget("runc", 1.0), Budget("crun", 0.8)
    return [
        *_pair("run /bin/true, cold process", cold, "run", "sampan-runtime", runc),
        *_pair("exec /bin/true, cold process", cold, "exec", "sampan-runtime", runc),
        *_pair("state, cold process", cold, "state", "sampan-runtime", runc),
        *_pair("create + start + delete, warm", warm, "life", "sampan", crun),
        *_pair("exec /bin/true, warm", warm, "exec", "sampan", crun),
    ]


def _pair(work: str, times: Mapping[str, Mapping[str, list[float]]], part: str, ours: str, budget: Budget) -> list[Row]:
    """Wall time, which has the budget, and processor time, which a busy machine disturbs less."""
    walls = {name: parts[part] for name, parts in times.items()}
    least = ", ".join(f"{name} {min(values):.2f} ms" for name, values in walls.items())
    print(f"{work}: least {least}", file=sys.stderr)
    wall = medians(walls)
    # A mean: of a monitor the kernel tells hundredths of a second, in whole ones.
    processor = {name: statistics.fmean(parts[f"{part} cpu"]) for name, parts in times.items()}
    return [
        Row(work, "ms", wall.pop(ours), wall, budget),
        Row("  its processor time", "ms", processor.pop(ours), processor),
    ]


def _make_world() -> None:
    """A mount namespace without the unified hierarchy of a hybrid machine, for all alike: crun refuses to work beside
    one that has controllers. What else goes on here is kept off as far as may be. And orphans become ours, so that
    whoever measures a peer can wait for its container.
    """
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount(None, "/", None, MS_PRIVATE | MS_REC)
    if os.path.exists(f"{_UNIFIED}/cgroup.controllers"):
        umount(_UNIFIED, MNT_DETACH)
    process.become_subreaper()
    os.nice(-20)


def _state_directory() -> str:
    """Where state lies on machines that have a tmpfs for it."""
    return "/dev/shm" if os.path.ismount("/dev/shm") else tempfile.gettempdir()


def programs() -> dict[str, str]:
    """The contestants that are on this machine."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin"
    found = {name: shutil.which(name, path=path) for name in ("sampan-runtime", "runc", "crun")}
    return {name: program for name, program in found.items() if program}


def make_bundle(bundle: Path, *args: str) -> Path:
    """A bundle with a static busybox, by the configuration that runc itself proposes."""
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    for directory in ("proc", "dev", "sys", "tmp", "etc"):
        (bundle / "rootfs" / directory).mkdir()
    shutil.copy("/bin/busybox", bundle / "rootfs" / "bin" / "busybox")
    for applet in ("true", "sleep"):
        (bundle / "rootfs" / "bin" / applet).symlink_to("busybox")
    subprocess.run([programs()["runc"], "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=list(args))
    # Hard limits can't be raised by a root without CAP_SYS_RESOURCE.
    config["process"].pop("rlimits", None)
    path.write_text(json.dumps(config))
    return bundle


class Commands:
    """A runtime's command line.

    Args:
        command: With its global options.
        label: Tells its containers from the others'.
        bundle: Theirs.
    """

    def __init__(self, command: list[str], label: str, bundle: Path) -> None:
        self._command = command
        self._name = f"bench-{label}"
        self.long = f"bench-long-{label}"
        self._bundle = str(bundle)

    def call(self, *args: str) -> None:
        """One command, its output thrown away."""
        null = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1)]
        command = [*self._command, *args]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=null)
        if status := os.waitpid(pid, 0)[1]:
            raise RuntimeError(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")

    def cold(self) -> dict[str, float]:
        """run, exec and state."""
        clock = Clock()
        clock.time("run", lambda: self.call("run", "--bundle", self._bundle, self._name))
        clock.time("exec", lambda: self.call("exec", self.long, "/bin/true"))
        clock.time("state", lambda: self.call("state", self.long))
        return clock.times

    def life(self) -> dict[str, float]:
        """create, start and delete; and exec."""
        clock = Clock()
        pid_file = f"{self._bundle}/pid"
        clock.time("life", lambda: self.call("create", "--bundle", self._bundle, "--pid-file", pid_file, self._name))
        clock.time("life", lambda: self.call("start", self._name))
        with open(pid_file, encoding="ascii") as file:
            os.waitpid(int(file.read()), 0)
        clock.time("life", lambda: self.call("delete", self._name))
        clock.time("exec", lambda: self.call("exec", self.long, "/bin/true"))
        return clock.times


@contextmanager
def _commands(label: str, program: str, folder: Path, short: Path, long: Path) -> Iterator[Commands]:
    """A runtime with a container that stays."""
    made = Commands([program, "--root", str(folder / label)], label, short)
    pid_file = folder / f"{label}.pid"
    made.call("run", "--detach", "--bundle", str(long), "--pid-file", str(pid_file), made.long)
    try:
        yield made
    finally:
        made.call("kill", made.long, "KILL")
        os.waitpid(int(pid_file.read_text()), 0)
        made.call("delete", made.long)


def _usable(label: str, program: str, folder: Path, bundle: Path) -> bool:
    """Leaves out a peer that can't run at all here."""
    try:
        Commands([program, "--root", str(folder / label)], f"try-{label}", bundle).call(
            "run", "--bundle", str(bundle), "bench-try"
        )
    except RuntimeError as error:
        if label in ("sampan-runtime", "runc"):
            raise
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


@contextmanager
def _monitor(folder: Path, short: Path, long: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """The same life through a zygote's monitor."""
    options = {"handler": {"type": "native", "root": str(folder / "native")}}
    with Zygote.start() as zygote:
        pid = zygote.fork_monitor("bench", str(folder / "pod"), options)
        client = MonitorClient(str(folder / "pod" / "control.sock"))
        client.create("bench-long", str(long))
        client.start("bench-long")

        def life() -> dict[str, float]:
            clock = Clock(pid)
            clock.time("life", lambda: client.create("bench-short", str(short)))
            clock.time("life", lambda: client.start("bench-short"))
            client.wait("bench-short")
            clock.time("life", lambda: client.delete("bench-short"))
            clock.time("exec", lambda: client.exec_wait("bench-long", _TRUE))
            return clock.times

        try:
            yield life
        finally:
            client.shutdown(force=True)

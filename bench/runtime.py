"""OCI runtimes, as an engine calls them: ``run`` of /bin/true by a fresh process, the whole life of a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Budget, Row, take_turns

if TYPE_CHECKING:
    from run import Options


def rows(options: Options) -> list[Row]:
    """Cold ``run`` of /bin/true."""
    with tempfile.TemporaryDirectory(prefix="sampan-bench-") as name:
        bundle = make_bundle(Path(name))
        contestants = {
            label: _runner([program, "--root", f"{name}/{label}"], bundle, f"bench-{label}")
            for label, program in programs().items()
        }
        times = take_turns(_usable(contestants), options.rounds)
    ours = times.pop("sampan-runtime")
    return [Row("run /bin/true, cold process", "ms", ours, times, Budget("runc", 1.0))]


def programs() -> dict[str, str]:
    """The contestants that are on this machine."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin"
    found = {name: shutil.which(name, path=path) for name in ("sampan-runtime", "runc", "crun")}
    return {name: program for name, program in found.items() if program}


def make_bundle(folder: Path) -> Path:
    """A bundle with a static busybox, by the configuration that runc itself proposes."""
    bundle = folder / "bundle"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    for directory in ("proc", "dev", "sys", "tmp", "etc"):
        (bundle / "rootfs" / directory).mkdir()
    shutil.copy("/bin/busybox", bundle / "rootfs" / "bin" / "busybox")
    (bundle / "rootfs" / "bin" / "true").symlink_to("busybox")
    subprocess.run([programs()["runc"], "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=["/bin/true"])
    # Hard limits can't be raised by a root without CAP_SYS_RESOURCE.
    config["process"].pop("rlimits", None)
    path.write_text(json.dumps(config))
    return bundle


def _runner(command: list[str], bundle: Path, name: str) -> Callable[[], None]:
    def run() -> None:
        result = subprocess.run(
            [*command, "run", "--bundle", str(bundle), name], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{command[0]} run: {result.stderr.strip() or result.returncode}")

    return run


def _usable(contestants: dict[str, Callable[[], None]]) -> dict[str, Callable[[], None]]:
    """Leaves out a peer that can't run at all here (crun refuses a hybrid cgroup hierarchy)."""
    found = {}
    for name, call in contestants.items():
        try:
            call()
        except RuntimeError as error:
            if name in ("sampan-runtime", "runc"):
                raise
            print(f"left out: {error}", file=sys.stderr)
        else:
            found[name] = call
    return found

"""Runs the validation programs of opencontainers/runtime-tools and holds the result against a list of known failures.

The programs are as they come; what two of them take for granted of their root file system is so for them.

RUNTIME in the environment names the runtime; without it, it is this checkout's ``sampan-runtime``, and the list is
runtime-known-failures.txt. With another runtime every failure is printed and none is held against it: that shows
what the programs themselves get wrong.

A program passes when it exits with 0, says "not ok" nowhere, and tests something: several say what they find wrong
in a diagnostic only and count no test, which TAP takes for success. Both counts are printed, as other runtimes'
results are given in TAP's.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import go_programs
import known_failures
import own_hierarchies

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOGS = go_programs.WORK / "conformance-runtime"
KNOWN = HERE / "runtime-known-failures.txt"
#: What is beside the programs in their folder: what they run inside, and its root file system.
NOT_PROGRAMS = frozenset(("runtimetest", "rootfs-amd64.tar.gz", "rootfs-386.tar.gz", "rootfs-arm64.tar.gz"))
#: They share the names of their cgroups.
ONE_AT_A_TIME = re.compile("cgroup|delete|kill")
#: What programs take for granted of the root file system that they unpack, and is so for them, whatever the runtime:
#: file -> content, or None for the file of that name that is beside the programs.
TAKEN_FOR_GRANTED: dict[str, dict[str, bytes | None]] = {
    # It runs runtimetest without copying it into its bundle.
    "misc_props": {"runtimetest": None},
    # It wants to see `true` running, and to kill it.
    "pidfile": {"bin/true": b"#!/bin/sh\nexec sleep 2\n"},
}
#: The cgroups that programs make by name and runtimes leave the parents of.
CGROUPS = ("testdir", "cgrouptest")
PATIENCE = 600.0


@dataclass(frozen=True)
class Ran:
    """One program's run."""

    name: str
    status: int
    output: str
    errors: str

    @property
    def passed_as_tap(self) -> bool:
        """TAP's verdict: exit status 0 and no test that failed."""
        return self.status == 0 and not re.search("^not ok", self.output, re.MULTILINE)

    @property
    def passed(self) -> bool:
        """TAP's, and no complaint that counts as no test."""
        counted = re.search("^ok", self.output, re.MULTILINE)
        return self.passed_as_tap and (bool(counted) or '"error"' not in self.output)

    @property
    def why(self) -> str:
        """The first test that failed, and what was said on standard error."""
        wrong = re.findall('^not ok.*|^ *"error".*', self.output, re.MULTILINE)[:3]
        return "\n".join([*wrong, *self.errors.strip().splitlines()[-3:], f"exit status {self.status}"])

    def outcome(self) -> known_failures.Outcome:
        """The run as the list of known failures takes it."""
        return known_failures.Outcome(self.name, "passed" if self.passed else "failed", self.why)


@contextmanager
def private_runtime(binary: str) -> Iterator[tuple[str, Path]]:
    """A wrapper that gives the runtime a root of its own, and a directory for bundles; both go."""
    folder = Path(tempfile.mkdtemp(prefix="sampan-runtime-tools-"))
    folder.chmod(0o711)
    try:
        wrapper = folder / "runtime"
        wrapper.write_text(f'#!/bin/sh\nexec "{binary}" --root "{folder}/root" "$@"\n')
        wrapper.chmod(0o755)
        (folder / "tmp").mkdir()
        yield str(wrapper), folder / "tmp"
        _end_containers(str(wrapper))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_containers(wrapper: str) -> None:
    listed = subprocess.run([wrapper, "list", "-q"], capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        subprocess.run([wrapper, "delete", "--force", name], capture_output=True, check=False)


def with_files(folder: Path, name: str, scratch: Path) -> Path:
    """A folder with the root file systems of ``folder``, and in them what the program ``name`` takes for granted."""
    made = scratch.parent / f"for-{name}"
    made.mkdir(exist_ok=True)
    files = TAKEN_FOR_GRANTED[name]
    for archive in folder.glob("rootfs-*.tar.gz"):
        with tarfile.open(archive) as old, tarfile.open(made / archive.name, "w:gz", compresslevel=1) as new:
            for member in old:
                if member.name.removeprefix("./") not in files:
                    new.addfile(member, old.extractfile(member) if member.isreg() else None)
            for path, content in files.items():
                data = (folder / path).read_bytes() if content is None else content
                added = tarfile.TarInfo(path)
                added.mode, added.size = 0o755, len(data)
                new.addfile(added, io.BytesIO(data))
    return made


def run_one(folder: Path, name: str, runtime: str, scratch: Path) -> Ran:
    """Runs one program in a mount namespace of its own: some make the runtime mount in theirs."""
    command = ["unshare", "--mount", "--propagation", "private", str(folder / name)]
    if name in TAKEN_FOR_GRANTED:
        folder = with_files(folder, name, scratch)
    environment = {**os.environ, "RUNTIME": runtime, "TMPDIR": str(scratch)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
        ran = Ran(name, done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        ran = Ran(name, 124, "", f"did not end within {PATIENCE:.0f} s")
    (LOGS / f"{name}.log").write_text(f"{ran.output}\n--- standard error\n{ran.errors}\n--- {ran.status}\n")
    return ran


def run_all(folder: Path, names: list[str], runtime: str, scratch: Path) -> list[Ran]:
    """Runs the programs in two lanes: those that share names of cgroups, and the rest."""
    lanes = ([n for n in names if ONE_AT_A_TIME.search(n)], [n for n in names if not ONE_AT_A_TIME.search(n)])
    with ThreadPoolExecutor(len(lanes)) as pool:
        both = pool.map(lambda lane: [run_one(folder, name, runtime, scratch) for name in lane], lanes)
        return sorted((ran for lane in both for ran in lane), key=lambda ran: ran.name)


def remove_cgroups() -> None:
    """The empty cgroups that are left under the names that the programs choose."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for name in CGROUPS:
            for directory, _, _ in os.walk(hierarchy / name, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)


def report(runs: list[Ran], known: dict[str, str]) -> bool:
    """Prints what is not as the list says, and the counts; whether all is."""
    # What is listed as failing "at times" depends on who is faster: it is not asked for.
    at_times = {name for name, reason in known.items() if reason.startswith("at times: ")}
    held = [ran.outcome() for ran in runs if not (ran.name in at_times and ran.passed)]
    verdict = known_failures.judge(held, known)
    for outcome in verdict.unexpected:
        print(f"FAILED  {outcome.name}\n        " + outcome.message.replace("\n", "\n        ") + "\n")
    for name in verdict.mended:
        print(f"PASSES, though it is on the list of known failures: take it off\n        {name}\n")
    as_tap = sum(ran.passed_as_tap for ran in runs)
    passed = sum(ran.passed for ran in runs)
    print(f"runtime-tools: {passed} of {len(runs)} programs passed ({as_tap} as TAP counts)")
    print(
        f"{verdict.passed - len(verdict.mended)} passed, {len(verdict.unexpected) + len(verdict.mended)} failed, ",
        end="",
    )
    print(f"{verdict.failed - len(verdict.unexpected)} skipped")
    return verdict.good


def main() -> int:
    """Runs the suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these programs")
    names = parser.parse_args().names
    if not go_programs.have_go():
        print("runtime-tools: skipped: there is no Go on this machine, and the validation programs are made with it")
        return 0
    if os.geteuid() != 0:
        raise SystemExit("runtime-tools: needs root")
    chosen = os.environ.get("RUNTIME", "")
    binary = shutil.which(
        os.path.abspath(chosen) if "/" in chosen else chosen or str(ROOT / ".venv/bin/sampan-runtime")
    )
    if binary is None:
        raise SystemExit(f"runtime-tools: no such runtime: {chosen or 'sampan-runtime'}")
    folder = go_programs.build("runtime-tools")
    names = names or sorted({path.name for path in folder.iterdir()} - NOT_PROGRAMS)
    LOGS.mkdir(parents=True, exist_ok=True)
    return own_hierarchies.run_with(lambda: run_suite(folder, names, binary, held=not chosen))


def run_suite(folder: Path, names: list[str], binary: str, *, held: bool) -> int:
    """Runs the programs and reports; an exit status.

    Args:
        folder: Where the programs are.
        names: Those to run.
        binary: The runtime.
        held: Whether failures that are not on the list count.
    """
    began = time.monotonic()
    try:
        with private_runtime(binary) as (runtime, scratch):
            runs = run_all(folder, names, runtime, scratch)
    finally:
        remove_cgroups()
    known = known_failures.read_list(KNOWN.read_text()) if held else {}
    print(f"runtime-tools: {binary} took {time.monotonic() - began:.0f} s; {LOGS}/*.log")
    return 0 if report(runs, known) or not held else 1


if __name__ == "__main__":
    sys.exit(main())

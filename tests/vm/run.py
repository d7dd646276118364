"""Runs the integration tests, and critest's AppArmor specs, in virtual machines with cgroup v2 alone and AppArmor on.

Boots of four kinds: the tests under an init that does nothing, a boot for each of PARTS; the tests of the systemd
driver under systemd; those of SELinux, which then takes AppArmor's place; critest. An emulated machine uses one
processor, so that as many run at a time as there are. What their programs say is printed as it comes and kept under
.work/vm.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import debian
import go_programs
from virtual_machine import Machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTEGRATION = ROOT / "tests" / "integration"

#: Files of tests, or single tests, that are left to the real machine unless asked for (``--only rest``), each with the
#: reason: neither cgroups nor a security module have a part in them, and they would take the emulated processor hours.
NOT_HERE: dict[str, str] = {
    "test_cri_fuzz.py": "generated requests, which no kernel sees",
    "test_image_apply.py::test_a_real_root_is_as_umoci_unpacks_it": "the files of a whole Debian, unpacked twice",
    "test_image_command.py": "what commands print of images",
    "test_image_full_disk.py": "downloads and archives that find no room",
    "test_image_fuzz.py": "generated archives, which no kernel sees",
    "test_image_sameness.py": "files that umoci and tar unpack from the same archives",
    "test_network_sameness.py": "answers and packets, ours and those of the usual plugins",
    "test_registry_peers_both_ways.py": "other programs' protocol",
    "test_registry_pull_unpack.py": "our own protocol",
    "test_registry_push_peers.py": "other programs' protocol",
    "test_registry_specification.py": "our own protocol",
    "test_storage_crash.py": "the store's files after a kill at each step of a pull",
}
#: What is tested under an init that does nothing: a boot's name, and how the names of its files begin after "test_".
PARTS: dict[str, tuple[str, ...]] = {
    "cri": ("cri_",),
    "engine": ("engine_", "sampan_", "streaming_"),
    "runtime": (
        *("apparmor_", "cgroup_", "external_", "machine_", "runtime_", "runtimecli_", "seccomp_", "selinux_"),
        *("shim_", "systemd_", "under_"),
    ),
    "network": ("network_",),
    "images": ("image_", "registry_", "storage_"),
}
#: What is tested under systemd.
SYSTEMD = [
    "test_systemd_scopes.py",
    "test_systemd_unit.py",
    "test_runtime_failure_matrix.py::test_a_failure_at_any_step_leaves_nothing[under_systemd]",
]
#: What is tested where the kernel enforces the policy of selinux.cil.
SELINUX = ["test_selinux_enforced.py"]
#: Categories of the policy.
CATEGORIES = [f"c{number}" for number in range(1024)]
#: Units (systemd-NAME.service) that would only take time.
MASKED = ("udev-trigger", "timesyncd", "binfmt", "random-seed")
#: Each machine may take 4 GB of memory.
MOST_AT_ONCE = 4

#: A unit that stands for all the units of a usual boot; the machine ends with it.
UNIT = """\
[Unit]
Requires=dbus.socket
After=basic.target dbus.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Delegate=yes
TimeoutStartSec=infinity
ExecStart={guest} {folder}
WorkingDirectory={root}
Environment=PATH={path}
StandardOutput=file:/dev/ttyS0
StandardError=inherit
"""


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make test-vm VM=...", description=__doc__)
    kinds = (*PARTS, "systemd", "selinux", "critest", "rest")
    parser.add_argument("--only", choices=kinds, help="one of the boots; the last, what the others leave out")
    parser.add_argument("--timeout", type=float, default=3 * 3600, help="seconds for one boot")
    parser.add_argument("--shell", default="", help="one boot: run this command instead of tests")
    parser.add_argument("pytest", nargs="*", help="one boot: arguments for pytest instead of the whole list")
    return parser.parse_args()


def tests(part: str) -> list[str]:
    """Pytest's arguments for a part: its files, and which of their tests to leave out."""
    names = sorted(path.name for path in INTEGRATION.glob("test_*.py"))
    if unknown := {test.partition("::")[0] for test in NOT_HERE} - set(names):
        raise SystemExit(f"no such tests: {', '.join(sorted(unknown))}")
    for name in names:
        if sum(name.removeprefix("test_").startswith(begins) for begins in PARTS.values()) != 1:
            raise SystemExit(f"{name} must be of one of the parts: {', '.join(PARTS)}")
    ours = [name for name in names if name.removeprefix("test_").startswith(PARTS[part])]
    left_out = [test for test in NOT_HERE if "::" in test and test.partition("::")[0] in ours]
    return [
        *(f"tests/integration/{name}" for name in ours if name not in NOT_HERE),
        *(f"--deselect=tests/integration/{test}" for test in left_out),
    ]


def pytest(arguments: list[str]) -> str:
    """A command for the guest; deadlines are stretched as the guest is slower than what they are made for."""
    words = "python -m pytest -v -p no:cacheprovider -o timeout=600 -rfEs --tb=short --at-once --durations=10".split()
    return shlex.join([*words, *arguments])


@dataclass(frozen=True)
class Boot:
    """One machine's life.

    Attributes:
        name: Of its folder under .work/vm.
        command: For bash, in the guest.
        kind: ``systemd`` if that is its init, ``selinux`` if the kernel runs that; else empty.
    """

    name: str
    command: str
    kind: str = ""

    def run(self, timeout: float) -> int:
        """The command's exit status."""
        folder = debian.WORK / "vm" / self.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = self._prepare(folder)
        append = ""
        if self.kind == "systemd":
            append = " ".join(f"systemd.mask=systemd-{unit}.service" for unit in MASKED)
        elif self.kind == "selinux":
            append = "security=selinux"
        began = time.monotonic()
        with open(folder / "output", "w", encoding="utf-8") as output:

            def say(line: str) -> None:
                print(line, file=output, flush=True)
                print(f"{self.name}: {line}", flush=True)

            status = Machine(folder, str(start), append).run(timeout, say)
            say(f"{'passed' if status == 0 else f'FAILED ({status})'}, {time.monotonic() - began:.0f} s")
        return status

    def _prepare(self, folder: Path) -> Path:
        """Writes what the guest reads; its first program."""
        apparmor = debian.unpack("apparmor")
        path = os.pathsep.join([f"{ROOT}/.work/bin", f"{ROOT}/.venv/bin", os.environ["PATH"], "/usr/sbin", "/sbin"])
        (folder / "environment").write_text(f"export PATH={shlex.quote(path)}\nAPPARMOR={shlex.quote(str(apparmor))}\n")
        (folder / "command").write_text(f"{self.command}\n")
        guest = HERE / "guest"
        if self.kind == "selinux":
            compile_policy(folder)
        systemd = self.kind == "systemd"
        if systemd:
            (folder / "tests.service").write_text(UNIT.format(guest=guest, folder=folder, root=ROOT, path=path))
        start = folder / "start"
        init = "systemd" if systemd else ""
        start.write_text(f"#!/bin/bash\ncd {shlex.quote(str(ROOT))}\nexec {guest} {folder} {init}\n")
        start.chmod(0o755)
        return start


def compile_policy(folder: Path) -> None:
    """Writes the binary ``policy`` that the guest loads; secilc is unpacked and not installed."""
    categories = folder / "categories.cil"
    each = "\n".join(f"(category {name})" for name in CATEGORIES)
    categories.write_text(f"{each}\n(categoryorder ({' '.join(CATEGORIES)}))\n")
    secilc = debian.unpack("secilc") / "usr/bin/secilc"
    made = ["-o", str(folder / "policy"), "-f", os.devnull]
    subprocess.run([str(secilc), *made, str(HERE / "selinux.cil"), str(categories)], check=True)


def critest() -> list[Boot]:
    """critest's AppArmor specs, which other machines skip; critest and its images are made before, on this machine."""
    if not go_programs.have_go():
        print("critest: skipped: there is no Go on this machine, and critest is made with it")
        return []
    go_programs.build("cri-tools")
    # Its name is also this program's.
    images = "import sys; sys.path.insert(0, 'tests/conformance'); import run; run.registry_with_images()"
    subprocess.run([sys.executable, "-c", images], cwd=ROOT, check=True)
    command = ["python", "tests/conformance/run.py", "--focus", "AppArmor", "--leftovers", "off"]
    return [Boot("critest", shlex.join(command))]


def boots(wanted: argparse.Namespace) -> list[Boot]:
    """What the command line asks for; the longest first."""
    kind = wanted.only if wanted.only in ("systemd", "selinux") else ""
    if wanted.shell:
        return [Boot("shell", wanted.shell, kind)]
    if wanted.pytest:
        return [Boot("chosen", pytest(wanted.pytest), kind)]
    if wanted.only is None or wanted.only in PARTS:
        for name, reason in NOT_HERE.items():
            print(f"not here: {name}: {reason}")
    if wanted.only == "rest":
        return [Boot("rest", pytest([f"tests/integration/{name}" for name in NOT_HERE]))]
    found = [Boot(part, pytest(tests(part))) for part in PARTS if wanted.only in (None, part)]
    for kind, names in (("systemd", SYSTEMD), ("selinux", SELINUX)):
        if wanted.only in (None, kind):
            found.append(Boot(kind, pytest([f"tests/integration/{name}" for name in names]), kind))
    if wanted.only in (None, "critest"):
        found += critest()
    return found


def main() -> int:
    """Runs what the command line asks for; the number of boots that failed."""
    wanted = options()
    at_once = min(len(os.sched_getaffinity(0)), MOST_AT_ONCE)
    chosen = boots(wanted)
    with ThreadPoolExecutor(at_once) as pool:
        statuses = list(pool.map(lambda boot: boot.run(wanted.timeout), chosen))
    for boot, status in zip(chosen, statuses, strict=True):
        print(f"{boot.name}: {'passed' if status == 0 else 'FAILED'}")
    return sum(status != 0 for status in statuses)


if __name__ == "__main__":
    sys.exit(main())

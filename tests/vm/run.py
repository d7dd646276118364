"""Runs the integration tests, and critest's AppArmor specs, in a virtual machine with cgroup v2 alone and AppArmor on.

Three boots: the tests under an init that does nothing, as many at once as the machine has processors; the tests of the
systemd driver under systemd; critest. What the guest's programs say is printed as it comes and kept under .work/vm.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import debian
import go_programs
from virtual_machine import Machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTEGRATION = ROOT / "tests" / "integration"

#: Files of tests that are left to the real machine, each with the reason.
NOT_HERE: dict[str, str] = {
    "test_cri_fuzz.py": "generated requests, which no kernel sees; they would take the emulated processor an hour",
    "test_image_fuzz.py": "generated archives, likewise",
}
#: What is tested under systemd.
SYSTEMD = ["test_systemd_scopes.py"]

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
    parser.add_argument("--only", choices=("tests", "systemd", "critest"), help="one of the three boots")
    parser.add_argument("--timeout", type=float, default=3 * 3600, help="seconds for one boot")
    parser.add_argument("--shell", default="", help="one boot: run this command instead of tests")
    parser.add_argument("pytest", nargs="*", help="one boot: arguments for pytest instead of the whole list")
    return parser.parse_args()


def tests() -> list[str]:
    """The files of tests that run here."""
    names = sorted(path.name for path in INTEGRATION.glob("test_*.py"))
    if unknown := NOT_HERE.keys() - set(names):
        raise SystemExit(f"no such tests: {', '.join(sorted(unknown))}")
    return [f"tests/integration/{name}" for name in names if name not in NOT_HERE]


def pytest(arguments: list[str]) -> str:
    """A command for the guest. An emulated processor is some twenty times slower, so deadlines are stretched."""
    words = ["python", "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=1200", "-rfE", "--tb=short"]
    return shlex.join([*words, *arguments])


def side_by_side(files: list[str], parts: int) -> str:
    """Commands for the guest: pytest over the files in so many processes; each line says which it is from."""
    lines = ["set -o pipefail"]
    for part in range(parts):
        lines.append(f"{pytest(files[part::parts])} 2>&1 | sed -u 's/^/{part}: /' &")
        lines.append(f"part{part}=$!")
    lines.append("status=0")
    lines += [f"wait $part{part} || status=1" for part in range(parts)]
    return "\n".join([*lines, "exit $status"])


def boot(name: str, command: str, *, systemd: bool = False, timeout: float) -> int:
    """Boot a machine for a command; the command's exit status."""
    folder = debian.WORK / "vm" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    apparmor = debian.unpack("apparmor")
    path = os.pathsep.join([f"{ROOT}/.work/bin", f"{ROOT}/.venv/bin", os.environ["PATH"], "/usr/sbin", "/sbin"])
    (folder / "environment").write_text(f"export PATH={shlex.quote(path)}\nAPPARMOR={shlex.quote(str(apparmor))}\n")
    (folder / "command").write_text(f"{command}\n")
    guest = HERE / "guest"
    if systemd:
        (folder / "tests.service").write_text(UNIT.format(guest=guest, folder=folder, root=ROOT, path=path))
    start = folder / "start"
    start.write_text(
        f"#!/bin/bash\ncd {shlex.quote(str(ROOT))}\nexec {guest} {folder} {'systemd' if systemd else ''}\n"
    )
    start.chmod(0o755)
    began = time.monotonic()
    print(f"vm: {name}", flush=True)
    masked = ("udev-trigger", "timesyncd", "binfmt", "random-seed")
    append = " ".join(f"systemd.mask=systemd-{unit}.service" for unit in masked) if systemd else ""
    status = Machine(folder, str(start), append).run(timeout)
    print(
        f"vm: {name}: {'passed' if status == 0 else f'FAILED ({status})'}, {time.monotonic() - began:.0f} s", flush=True
    )
    return status


def critest(timeout: float) -> int:
    """critest's AppArmor specs, which other machines skip; critest and its images are made before, on this machine."""
    if not go_programs.have_go():
        print("vm: critest: skipped: there is no Go on this machine, and critest is made with it")
        return 0
    go_programs.build("cri-tools")
    # Its name is also this program's.
    images = "import sys; sys.path.insert(0, 'tests/conformance'); import run; run.registry_with_images()"
    subprocess.run([sys.executable, "-c", images], cwd=ROOT, check=True)
    command = ["python", "tests/conformance/run.py", "--focus", "AppArmor", "--leftovers", "off"]
    return boot("critest", shlex.join(command), timeout=timeout)


def main() -> int:
    """Runs what the command line asks for; the number of boots that failed."""
    wanted = options()
    if wanted.shell:
        return boot("shell", wanted.shell, systemd=wanted.only == "systemd", timeout=wanted.timeout)
    if wanted.pytest:
        return boot("chosen", pytest(wanted.pytest), systemd=wanted.only == "systemd", timeout=wanted.timeout)
    statuses = []
    if wanted.only in (None, "tests"):
        for name, reason in NOT_HERE.items():
            print(f"vm: not here: {name}: {reason}")
        statuses.append(boot("tests", side_by_side(tests(), 2), timeout=wanted.timeout))
    if wanted.only in (None, "systemd"):
        files = [f"tests/integration/{name}" for name in SYSTEMD]
        statuses.append(boot("systemd", pytest(files), systemd=True, timeout=wanted.timeout))
    if wanted.only in (None, "critest"):
        statuses.append(critest(wanted.timeout))
    return sum(status != 0 for status in statuses)


if __name__ == "__main__":
    sys.exit(main())

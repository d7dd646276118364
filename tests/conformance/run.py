"""Runs critest against a CRI server and holds the result against critest-known-failures.txt.

Without RUNTIME_ENDPOINT in the environment it starts ``sampan daemon`` on private directories and a registry with the
images; with it (``unix:///run/containerd/containerd.sock``), that server is tested and must reach the images itself,
unless ``--server containerd`` starts Debian's, which is how the suite and the images are tested themselves.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import cri_servers
import go_programs
import grpc
import known_failures
import oci_image
import test_images
from cri_client import CriClient
from local_registry import LocalRegistry, write_mirrors
from machine_state import MachineState, settled_since

HERE = Path(__file__).resolve().parent
WORK = go_programs.WORK
WEBSOCKET = ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]


@dataclass(frozen=True)
class Pass:
    """One run of critest: which specs, in how many processes, streaming over what."""

    name: str
    focus: str = ""
    skip: str = ""
    parallel: int = 1
    websocket: bool = False
    #: Specs that must have run, passed or failed: those that a machine without AppArmor can run.
    least: int = 0


#: What `make conformance` runs when it is told nothing: all, the streams once more, and all at once.
ALL = [
    Pass("serial", least=108),
    Pass("websocket", focus="Streaming", websocket=True, least=5),
    Pass("parallel", parallel=4, least=108),
]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make conformance CONFORMANCE=...", description=__doc__)
    parser.add_argument("--server", choices=("sampan", "containerd", "containerd-newest"), default="sampan")
    parser.add_argument("--focus", default="", help="one pass: the specs that match this regular expression")
    parser.add_argument("--skip", default="", help="one pass: leave out the specs that match this regular expression")
    parser.add_argument("--parallel", type=int, default=1, help="one pass: number of critest processes")
    parser.add_argument("--websocket", action="store_true", help="one pass: stream over WebSocket instead of SPDY")
    parser.add_argument("--serial", action="store_true", help="one pass: every spec, one after another")
    parser.add_argument("--seed", type=int, default=0, help="the random order of a former run, which it printed")
    parser.add_argument("--keep", action="store_true", help="leave the server's directory for a look")
    parser.add_argument("--leftovers", choices=("off", "report", "fail"), default="report")
    return parser.parse_args()


def passes(wanted: argparse.Namespace) -> list[Pass]:
    """The passes that the command line asks for."""
    if wanted.serial or wanted.focus or wanted.skip or wanted.websocket or wanted.parallel > 1:
        return [Pass("chosen", wanted.focus, wanted.skip, wanted.parallel, wanted.websocket)]
    return ALL


def registry_with_images() -> LocalRegistry:
    """The registry, with every image in it; images are made and pushed once for one text of their scripts."""
    sources = [Path(test_images.__file__), Path(oci_image.__file__)]
    stamp = oci_image.digest_of(b"".join(path.read_bytes() for path in sources))[7:19]
    folder = WORK / "registry" / f"conformance-{stamp}"
    if not folder.is_dir():
        print("making the images (once)", flush=True)
        images = test_images.conformance_images()
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        fresh = folder.with_name("incoming")
        with LocalRegistry(fresh) as registry:
            test_images.push_all(images, registry.address)
        fresh.rename(folder)
    return LocalRegistry(folder)


def start_server(name: str, folder: Path, mirrors: Path) -> cri_servers.Server:
    """One of the servers we know how to start."""
    bridge, subnet = cri_servers.own_network("spconf")
    if name == "sampan":
        return cri_servers.Sampan(folder, mirrors, bridge=bridge, subnet=subnet)
    server = cri_servers.Containerd(folder, mirrors, bridge=bridge, subnet=subnet)
    if name == "containerd-newest":
        server.use_programs(go_programs.build("containerd"), str(go_programs.build("runc") / "runc"))
    return server


def critest(programs: Path, endpoint: str, wanted: Pass, seed: int, scratch: Path) -> list[known_failures.Outcome]:
    """Runs critest once; what became of each spec. Its output and report are left under .work.

    The specs are shuffled one by one: ginkgo by itself shuffles groups of them only, and the setting of critest's that
    asks for more is of no effect in v1.36.0.
    """
    report = WORK / f"conformance-{wanted.name}.json"
    command = [str(programs / "critest"), f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}"]
    command += [f"-ginkgo.json-report={report}", "-ginkgo.no-color", "-ginkgo.succinct", "-ginkgo.timeout=40m"]
    command += ["-ginkgo.randomize-all", f"-ginkgo.seed={seed}"]
    command += [f"-ginkgo.focus={wanted.focus}"] if wanted.focus else []
    command += [f"-ginkgo.skip={wanted.skip}"] if wanted.skip else []
    command += [f"-parallel={wanted.parallel}"] if wanted.parallel > 1 else []
    command += WEBSOCKET if wanted.websocket else []
    report.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(scratch)}
    began = time.monotonic()
    log = report.with_suffix(".log")
    with open(log, "wb") as output:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=WORK, check=False
        )
    if not report.exists():
        sys.stderr.write(log.read_text(errors="replace")[-4000:])
        raise SystemExit("critest wrote no report")
    took = time.monotonic() - began
    print(f"{wanted.name}: critest took {took:.0f} s with --seed {seed}; {report} and its .log", flush=True)
    return known_failures.read_report(report)


def judge(outcomes: list[known_failures.Outcome], known: dict[str, str], least: int) -> known_failures.Verdict:
    """Prints what is not as the list says, and how many specs ran; too few are a fault of the machine's or ours."""
    verdict = known_failures.judge(outcomes, known, least)
    print(f"        {verdict.passed} passed, {verdict.failed} failed, {verdict.skipped} skipped", flush=True)
    for outcome in verdict.unexpected:
        print(f"FAILED  {outcome.name}\n        {outcome.message.strip()[:600]}\n")
    for name in verdict.mended:
        print(f"PASSES, though it is on the list of known failures: take it off\n        {name}\n")
    if verdict.ran < verdict.least:
        print(f"FAILED  only {verdict.ran} specs ran, not {verdict.least}: the report has the others' reasons\n")
    return verdict


def remove_shared_memory(before: MachineState) -> None:
    """The HostIPC spec makes a segment of 1 MiB on the machine and leaves it."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, number, _, size, _, _, attached, *_ = line.split()
        if f"shm {number}" not in before.things["System V object"] and (size, attached) == ("1048576", "0"):
            subprocess.run(["ipcrm", "-m", number], check=False)


def main() -> int:
    """Runs the suite."""
    wanted = options()
    if not go_programs.have_go():
        print("conformance: skipped: there is no Go on this machine, and critest is made with it")
        return 0
    if os.geteuid() != 0:
        raise SystemExit("conformance: needs root")
    WORK.mkdir(exist_ok=True)
    programs = go_programs.build("cri-tools")
    known = known_failures.read_list((HERE / "critest-known-failures.txt").read_text())
    before = MachineState.take()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sampan-conformance-"))
        # Pods in a user namespace must be able to search the parents of their root.
        folder.chmod(0o711)
        stack.callback(_remove, folder, wanted.keep)
        endpoint = os.environ.get("RUNTIME_ENDPOINT", "") or _serve(stack, folder, wanted)
        (folder / "tmp").mkdir()
        seed = wanted.seed or secrets.randbelow(1 << 31)
        verdicts = [
            judge(critest(programs, endpoint, item, seed, folder / "tmp"), known, _least(item, wanted))
            for item in passes(wanted)
        ]
    remove_shared_memory(before)
    left = [] if wanted.keep or wanted.leftovers == "off" else settled_since(before)
    if left:
        print("left on this machine:\n  " + "\n  ".join(left))
    passed = sum(verdict.passed for verdict in verdicts)
    failed = sum(len(verdict.unexpected) + len(verdict.mended) for verdict in verdicts)
    # Failures that the list explains count as skipped, specs that pass against the list as failed.
    ran = sum(verdict.passed + verdict.failed + verdict.skipped for verdict in verdicts)
    good = all(verdict.good for verdict in verdicts) and not (left and wanted.leftovers == "fail")
    mended = sum(len(verdict.mended) for verdict in verdicts)
    print(f"{passed - mended} passed, {failed} failed, {ran - passed + mended - failed} skipped")
    return 0 if good else 1


def _serve(stack: ExitStack, folder: Path, wanted: argparse.Namespace) -> str:
    """Starts a registry and the server; its endpoint. The stack ends both."""
    registry = stack.enter_context(registry_with_images())
    write_mirrors(folder / "certs.d", test_images.CONFORMANCE_HOSTS, registry.address)
    server = start_server(wanted.server, folder / "server", folder / "certs.d")
    if not wanted.keep:
        stack.callback(server.clean)
    stack.enter_context(server)
    stack.callback(shutil.copyfile, server.log, WORK / "conformance-server.log")
    stack.callback(_remove_pods, server.endpoint)
    return server.endpoint


def _least(item: Pass, wanted: argparse.Namespace) -> int:
    """How many specs must run: another server may have reasons to skip some."""
    return item.least if wanted.server == "sampan" and "RUNTIME_ENDPOINT" not in os.environ else 0


def _remove_pods(endpoint: str) -> None:
    """What specs that failed half-way have left."""
    client = CriClient(endpoint)
    with suppress(grpc.RpcError):
        for pod in client.pods():
            with suppress(grpc.RpcError):
                client.stop_pod(pod.id)
                client.remove_pod(pod.id)
    client.close()


def _remove(folder: Path, keep: bool) -> None:
    if keep:
        print(f"kept: {folder}")
    else:
        cri_servers.discard(folder)


if __name__ == "__main__":
    sys.exit(main())

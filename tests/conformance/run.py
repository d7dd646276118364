"""Runs critest against a CRI server and holds the result against critest-known-failures.txt.

Without RUNTIME_ENDPOINT in the environment it starts ``sampan daemon`` on private directories and a registry with the
images; with it (``unix:///run/containerd/containerd.sock``), that server is tested and must reach the images itself,
unless ``--server containerd`` starts Debian's, which is how the suite and the images are tested themselves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
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

HERE = Path(__file__).resolve().parent
WORK = go_programs.WORK
WEBSOCKET = ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make conformance CONFORMANCE=...", description=__doc__)
    parser.add_argument("--server", choices=("sampan", "containerd", "containerd-newest"), default="sampan")
    parser.add_argument("--focus", default="", help="run the specs that match this regular expression")
    parser.add_argument("--skip", default="", help="leave out the specs that match this regular expression")
    parser.add_argument("--parallel", type=int, default=1, help="number of critest processes")
    parser.add_argument("--websocket", action="store_true", help="stream over WebSocket instead of SPDY")
    parser.add_argument("--keep", action="store_true", help="leave the server's directory for a look")
    parser.add_argument("--report", type=Path, default=WORK / "conformance.json", help="where to write the report")
    return parser.parse_args()


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
    bridge, subnet = "sampanconf0", "10.89.77.0/24"
    if name == "sampan":
        return cri_servers.Sampan(folder, mirrors, bridge=bridge, subnet=subnet)
    server = cri_servers.Containerd(folder, mirrors, bridge=bridge, subnet=subnet)
    if name == "containerd-newest":
        server.use_programs(go_programs.build("containerd"), str(go_programs.build("runc") / "runc"))
    return server


def critest(programs: Path, endpoint: str, wanted: argparse.Namespace) -> float:
    """Runs critest, its output passed on; seconds it took."""
    command = [str(programs / "critest"), f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}"]
    command += [f"-ginkgo.json-report={wanted.report}", "-ginkgo.no-color", "-ginkgo.succinct", "-ginkgo.timeout=40m"]
    command += [f"-ginkgo.focus={wanted.focus}"] if wanted.focus else []
    command += [f"-ginkgo.skip={wanted.skip}"] if wanted.skip else []
    command += [f"-parallel={wanted.parallel}"] if wanted.parallel > 1 else []
    command += WEBSOCKET if wanted.websocket else []
    wanted.report.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    began = time.monotonic()
    log = wanted.report.with_suffix(".log")
    with open(log, "wb") as output:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=WORK, check=False
        )
    if not wanted.report.exists():
        sys.stderr.write(log.read_text(errors="replace")[-4000:])
        raise SystemExit("critest wrote no report")
    return time.monotonic() - began


def report(wanted: argparse.Namespace, seconds: float) -> int:
    """Prints what the run came to; the exit status."""
    known = known_failures.read_list((HERE / "critest-known-failures.txt").read_text())
    outcomes = known_failures.read_report(wanted.report)
    verdict = known_failures.judge(outcomes, known)
    for outcome in verdict.unexpected:
        print(f"FAILED  {outcome.name}\n        {outcome.message.strip()[:600]}\n")
    for name in verdict.mended:
        print(f"PASSES, though it is on the list of known failures: take it off\n        {name}\n")
    listed = [outcome.name for outcome in outcomes if outcome.state in known_failures.FAILED and outcome.name in known]
    for name in listed:
        print(f"known   {name}\n        {known[name]}")
    print(f"critest took {seconds:.0f} s; report in {wanted.report}, output beside it")
    failed = len(verdict.unexpected) + len(verdict.mended)
    print(f"{verdict.passed} passed, {failed} failed, {verdict.skipped + len(listed)} skipped")
    return 0 if verdict.good else 1


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
    endpoint = os.environ.get("RUNTIME_ENDPOINT", "")
    with ExitStack() as stack:
        if not endpoint:
            folder = Path(tempfile.mkdtemp(prefix="sampan-conformance-"))
            # Pods in a user namespace must be able to search the parents of their root.
            folder.chmod(0o711)
            stack.callback(_remove, folder, wanted.keep)
            registry = stack.enter_context(registry_with_images())
            write_mirrors(folder / "certs.d", test_images.CONFORMANCE_HOSTS, registry.address)
            server = start_server(wanted.server, folder / "server", folder / "certs.d")
            if not wanted.keep:
                stack.callback(server.clean)
            stack.callback(shutil.copyfile, server.log, wanted.report.with_name("conformance-server.log"))
            endpoint = stack.enter_context(server).endpoint
            stack.callback(_remove_pods, endpoint)
        seconds = critest(programs, endpoint, wanted)
    return report(wanted, seconds)


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

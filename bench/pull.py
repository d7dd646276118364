"""Pull and unpack side by side with Debian's containerd: one registry on loopback, one tmpfs, alternating runs.

    bench/pull.py [--layers 6] [--megabytes 560] [--files 16000] [--runs 3] [--root DIR]

Each run starts from an empty store and ends when the image is unpacked; the time is that of the whole command,
``ctr images pull`` against a fresh Python process that calls :func:`sampan.registry.pull`. Peak memory is the
containerd daemon's, and our process's with its workers'.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from isal import igzip
from measure import Budget, Row

if TYPE_CHECKING:
    from run import Options

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

_CHILD = """
import json, resource, sys, time
started = time.perf_counter()
from sampan.registry import Resolver, pull
from sampan.storage.store import Store
with Store(sys.argv[1]) as store:
    imported = time.perf_counter()
    pull(store, "default", sys.argv[2], Resolver((), ()))
done = time.perf_counter()
# Not ru_maxrss: that of the parent, before exec, is counted in it.
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
figures = {"imports": imported - started, "pull": done - imported, "rss": own, "worker_rss": workers, "cpu": cpu}
print(json.dumps(figures))
"""


def make_layout(folder: Path, layers: int, megabytes: int, files: int) -> None:
    """An OCI layout whose files compress to about half."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    chance = random.Random(1)
    size = megabytes * 1_000_000 // files
    words = b"".join(chance.randbytes(7) + b" the same words again and again; " for _ in range(2000))

    def add(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    parts, diff_ids = [], []
    for layer in range(layers):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(files // layers):
                length = max(1, int(size * chance.uniform(0.2, 1.8)))
                start = chance.randrange(len(words) // 2)
                data = (chance.randbytes(length // 2) + words[start:] * (length // len(words) + 2))[:length]
                info = tarfile.TarInfo(f"usr/share/l{layer}/d{number % 97}/file{number}")
                info.size, info.mtime, info.mode = length, 1_700_000_000, 0o644
                archive.addfile(info, io.BytesIO(data))
        raw = buffer.getvalue()
        diff_ids.append(f"sha256:{hashlib.sha256(raw).hexdigest()}")
        parts.append(add(igzip.compress(raw, 1), "application/vnd.oci.image.layer.v1.tar+gzip"))
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": add(config, "application/vnd.oci.image.config.v1+json"),
        "layers": parts,
    }
    target = add(json.dumps(manifest).encode(), media_type)
    target["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [target]}))


@contextmanager
def containerd(folder: Path) -> Iterator[tuple[str, int]]:
    """Debian's containerd on a root of its own; gives its address and process id."""
    folder.mkdir(parents=True)
    address = f"{folder}/c.sock"
    (folder / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    command = ["containerd", "-c", f"{folder}/config.toml", "--root", f"{folder}/root", "--state", f"{folder}/state"]
    with open(folder / "log", "wb") as log:
        child = subprocess.Popen([*command, "--address", address], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(500):
            ready = subprocess.run(["ctr", "-a", address, "version"], capture_output=True, check=False)
            if not ready.returncode:
                break
            time.sleep(0.02)
        yield address, child.pid
    finally:
        child.terminate()
        child.wait(20)


def peak(pid: int) -> int:
    """Most memory a process has had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def cpu(pid: int) -> float:
    """Processor seconds of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def run_containerd(folder: Path, image: str) -> dict[str, float]:
    with containerd(folder) as (address, pid):
        started = time.perf_counter()
        pull = ["ctr", "-a", address, "images", "pull", "--plain-http", image]
        subprocess.run(pull, check=True, capture_output=True)
        return {"seconds": time.perf_counter() - started, "rss": peak(pid), "cpu": cpu(pid)}


def run_sampan(folder: Path, image: str) -> dict[str, float]:
    started = time.perf_counter()
    child = [sys.executable, "-c", _CHILD, str(folder / "store"), image]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - started, **json.loads(done.stdout)}


def run_skopeo_umoci(folder: Path, image: str) -> dict[str, float]:
    folder.mkdir(parents=True)
    started = time.perf_counter()
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]
    subprocess.run([*copy, f"docker://{image}", f"oci:{folder}/layout:latest"], check=True, capture_output=True)
    unpack = ["umoci", "unpack", "--image", f"{folder}/layout:latest", f"{folder}/bundle"]
    subprocess.run(unpack, check=True, capture_output=True)
    return {"seconds": time.perf_counter() - started, "rss": 0, "cpu": 0}


def rows(options: Options) -> list[Row]:
    """For the table of all benchmarks: the figures of a few runs, against containerd alone."""
    results = measure(arguments(["--runs", str(max(1, options.rounds // 7)), "--peers", "containerd"]))
    middle = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    work = "pull and unpack 6 layers, 16,000 files"
    return [Row(work, "s", middle.pop("sampan"), middle, Budget("containerd", 1 / 3))]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--megabytes", type=int, default=560)
    parser.add_argument("--files", type=int, default=16_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--root", default="/dev/shm", help="where stores and registry are made: a tmpfs, or a new ext4")
    parser.add_argument("--peers", default="containerd,skopeo+umoci")
    return parser.parse_args(words)


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The figures of each run of each contestant."""
    from registry_peers import docker_registry

    runners = {"sampan": run_sampan, "containerd": run_containerd, "skopeo+umoci": run_skopeo_umoci}
    chosen = ["sampan", *(peer for peer in options.peers.split(",") if peer)]
    work = Path(tempfile.mkdtemp(prefix="sampan-bench-pull-", dir=options.root))
    try:
        make_layout(work / "layout", options.layers, options.megabytes, options.files)
        with docker_registry(work / "registry") as address:
            image = f"{address}/bench/image:1"
            push = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
            subprocess.run([*push, f"oci:{work}/layout:latest", f"docker://{image}"], check=True, capture_output=True)
            size = sum(file.stat().st_size for file in (work / "layout/blobs/sha256").iterdir())
            shutil.rmtree(work / "layout")
            print(
                f"{options.layers} layers, {options.files} files, "
                f"{options.megabytes} MB, {size / 1e6:.0f} MB compressed"
            )
            results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
            for number in range(options.runs):
                for name in chosen:
                    folder = work / f"{name}-{number}"
                    results[name].append(runners[name](folder, image))
                    shutil.rmtree(folder)
        return results
    finally:
        shutil.rmtree(work, ignore_errors=True)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """A line for each, with the ratio of the medians."""
    ours = statistics.median(run["seconds"] for run in results["sampan"])
    for name, runs in results.items():
        median = statistics.median(run["seconds"] for run in runs)
        rss = max(run["rss"] for run in runs) / 1024
        each = " ".join(f"{run['seconds']:.2f}" for run in runs)
        used = statistics.median(run["cpu"] for run in runs)
        memory = f"peak {rss:.0f} MiB, {used:.1f} s of processor" if rss else ""
        ratio = f"  sampan takes {ours / median:.2f} of it" if name != "sampan" else ""
        print(f"{name:14} {median:6.2f} s  (runs: {each})  {memory}{ratio}")
    for key in ("imports", "pull", "worker_rss"):
        median = statistics.median(run[key] for run in results["sampan"])
        print(
            f"  sampan {key}: {median:.3f}" if key != "worker_rss" else f"  sampan worker peak: {median / 1024:.0f} MiB"
        )


if __name__ == "__main__":
    os.umask(0o022)
    report(measure(arguments()))

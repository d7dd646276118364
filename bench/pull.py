"""Pull and unpack beside containerd and ``skopeo copy`` with ``umoci unpack``: wall time, processor time, memory.

    bench/pull.py [--runs 3] [--images large,many,single] [--on tmpfs,ext4] [--newest]

All pull from one registry on loopback whose data are in memory, and take turns. Each run starts from an empty store
and ends when the image is unpacked; the time is that of the whole command: ``ctr images pull`` against a fresh Python
process that calls :func:`sampan.registry.pull`. Everyone syncs what they sync by themselves: containerd and we the
blobs, we the unpacked files too. Ext4 lies on a loop device in memory and is made anew for each run, since it avoids
inodes that were deleted a moment ago: where the run before was cleaned up, each file would take thirty times as long.

Memory is the most that the process and its children had at one time, by proportional share: ctr's and the daemon's,
skopeo's or umoci's, ours with its workers'. It is taken in a run by itself, which warms up for the others.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from isal import igzip
from measure import Budget, Row, pss, table

if TYPE_CHECKING:
    from run import Options

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

_CHILD = """
import sys
from sampan.registry import Resolver, pull
from sampan.storage.store import Store
with Store(sys.argv[1]) as store:
    pull(store, "default", sys.argv[2], Resolver((), ()))
"""
_MEMORY = "/dev/shm"
_DEBIAN = "containerd"
_SLOW = "skopeo+umoci"


class Image(NamedTuple):
    """What is pulled. ``ratios``: the budgets beside containerd on tmpfs and on ext4."""

    title: str
    layers: int
    megabytes: int
    files: int
    ratios: tuple[float, float]


IMAGES = {
    "large": Image("6 layers, 560 MB, 16,000 files", 6, 560, 16_000, (1 / 3, 1 / 2)),
    "many": Image("6 layers, 240 MB, 60,000 files", 6, 240, 60_000, (1 / 3, 1 / 2)),
    "single": Image("1 layer, 280 MB, 8,000 files", 1, 280, 8_000, (0.6, 0.6)),
}


class Run(NamedTuple):
    """What one pull took."""

    seconds: float
    processor: float


#: Pulls an image into a folder; told of each process that it starts.
Contestant = Callable[[Path, str, Callable[[int], object]], Run]


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


# ---------------------------------------------------------------- contestants


def run_sampan(folder: Path, image: str, started: Callable[[int], object]) -> Run:
    # As it is installed: with its modules compiled.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _CHILD, str(folder / "store"), image]
    return _timed([command], started, environment)


def run_skopeo_umoci(folder: Path, image: str, started: Callable[[int], object]) -> Run:
    folder.mkdir(parents=True)
    source = ["--insecure-policy", "--src-tls-verify=false", f"docker://{image}"]
    copy = ["skopeo", "copy", "--quiet", *source, f"oci:{folder}/layout:latest"]
    unpack = ["umoci", "unpack", "--image", f"{folder}/layout:latest", f"{folder}/bundle"]
    return _timed([copy, unpack], started)


def containerd_from(programs: str) -> Contestant:
    """A containerd whose programs lie in a folder, or with an empty one are found by PATH."""

    def run(folder: Path, image: str, started: Callable[[int], object]) -> Run:
        with containerd(folder, programs) as (address, pid):
            started(pid)
            before = _processor(pid)
            ctr = [os.path.join(programs, "ctr"), "-a", address, "images", "pull", "--plain-http", image]
            spent = _timed([ctr], started)
            return Run(spent.seconds, spent.processor + _processor(pid) - before)

    return run


@contextmanager
def containerd(folder: Path, programs: str) -> Iterator[tuple[str, int]]:
    """A containerd on a root of its own; gives its address and process id."""
    folder.mkdir(parents=True)
    # In memory, since a socket's path must be short, and a file system is to be unmounted afterwards.
    with tempfile.TemporaryDirectory(dir=_MEMORY) as state:
        address = f"{state}/c.sock"
        (folder / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        command = [os.path.join(programs, "containerd"), "-c", f"{folder}/config.toml", "--address", address]
        with open(f"{state}/log", "wb") as log:
            command += ["--root", f"{folder}/root", "--state", f"{state}/state"]
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(500):
                version = [os.path.join(programs, "ctr"), "-a", address, "version"]
                if not subprocess.run(version, capture_output=True, check=False).returncode:
                    break
                time.sleep(0.02)
            yield address, child.pid
        finally:
            child.terminate()
            child.wait(20)


def _timed(
    commands: list[list[str]], started: Callable[[int], object], environment: dict[str, str] | None = None
) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    for command in commands:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:
            started(child.pid)
            _, said = child.communicate()
        if child.returncode:
            raise RuntimeError(f"{' '.join(command[:3])}: {said.decode(errors='replace')[-500:]}")
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def _processor(pid: int) -> float:
    """Processor seconds of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- memory


class Watcher(threading.Thread):
    """Adds up the memory of processes and their children again and again, and keeps the most there was."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self._roots: list[int] = []
        self._done = threading.Event()

    def add(self, pid: int) -> None:
        """Watch one more."""
        self._roots.append(pid)

    def run(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, sum(map(_memory_of_tree, list(self._roots))))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def _memory_of_tree(pid: int) -> float:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return pss(pid) + sum(map(_memory_of_tree, children))
    except (OSError, ValueError):  # it ends just now
        return 0.0


# ---------------------------------------------------------------- file systems


@contextmanager
def tmpfs() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="sampan-bench-pull-") as folder:
        yield Path(folder)


@contextmanager
def new_ext4() -> Iterator[Path]:
    """An ext4 that has just been made, on a loop device whose file is in memory."""
    with tmpfs() as folder:
        disk, target = folder / "disk", folder / "mounted"
        with open(disk, "wb") as file:
            file.truncate(6 << 30)
        target.mkdir()
        # Nothing is left to be initialized in the background.
        ready = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
        subprocess.run(["mkfs.ext4", "-q", *ready, str(disk)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(target)], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", str(target)], check=True)


PLACES = {"tmpfs": tmpfs, "ext4": new_ext4}


# ---------------------------------------------------------------- measuring


@contextmanager
def registry_with(images: list[str]) -> Iterator[dict[str, str]]:
    """A registry in memory; gives each image's reference."""
    from registry_peers import docker_registry

    with tmpfs() as work, docker_registry(work / "registry") as address:
        references = {}
        for name in images:
            image = IMAGES[name]
            layout = work / name
            make_layout(layout, image.layers, image.megabytes, image.files)
            references[name] = f"{address}/bench/{name}:1"
            push = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
            subprocess.run([*push, f"oci:{layout}:latest", f"docker://{references[name]}"], check=True)
            shutil.rmtree(layout)
        yield references


def measure(place: str, reference: str, contestants: dict[str, Contestant], runs: int) -> dict[str, list[Run]]:
    """The figures of each run of each contestant; the slowest, of which no budget speaks, has one."""
    results: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(runs):
        for name, pull in contestants.items():
            if number and name == _SLOW:
                continue
            with PLACES[place]() as folder:
                results[name].append(pull(folder / "store", reference, _unwatched))
    return results


def _unwatched(_: int) -> None:
    """For runs whose memory is not taken."""


def measure_memory(reference: str, contestants: dict[str, Contestant]) -> dict[str, float]:
    """Most megabytes that each contestant had at one time, in a run on tmpfs."""
    most = {}
    for name, pull in contestants.items():
        with tmpfs() as folder, Watcher() as watcher:
            pull(folder / "store", reference, watcher.add)
        most[name] = watcher.most
    return most


def rows(options: Options) -> list[Row]:
    """For the table of all benchmarks."""
    try:
        return compare(list(IMAGES), list(PLACES), max(1, options.rounds // 6), newest=options.newest)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(str(error)) from error


def compare(images: list[str], places: list[str], runs: int, *, newest: bool) -> list[Row]:
    """The table's rows: of each image its times on each file system, its processor time and its memory."""
    contestants = {"sampan": run_sampan, _DEBIAN: containerd_from(""), _SLOW: run_skopeo_umoci}
    if newest:
        import go_programs

        version = go_programs.versions()["CONTAINERD"].removeprefix("v")
        contestants[f"containerd {version}"] = containerd_from(str(go_programs.build("containerd")))
    table_rows = []
    with registry_with(images) as references:
        for name in images:
            image = IMAGES[name]
            memory = measure_memory(references[name], contestants)
            for place in places:
                results = measure(place, references[name], contestants, runs)
                _tell(name, place, results)
                seconds = {who: statistics.median(run.seconds for run in found) for who, found in results.items()}
                spent = {who: statistics.median(run.processor for run in found) for who, found in results.items()}
                budget = Budget(_DEBIAN, image.ratios[place != "tmpfs"])
                table_rows.append(_row(f"pull {image.title}, {place}", "s", seconds, budget))
                table_rows.append(_row("  processor time", "s", spent))
            table_rows.append(_row("  memory at its peak", "MB", memory))
    return table_rows


def _row(work: str, unit: str, figures: dict[str, float], budget: Budget | None = None) -> Row:
    peers = {name: figure for name, figure in figures.items() if name != "sampan"}
    return Row(work, unit, figures["sampan"], peers, budget or Budget())


def _tell(image: str, place: str, results: dict[str, list[Run]]) -> None:
    """Each run, as it was: the medians alone don't say how quiet the machine is."""
    for name, found in results.items():
        each = " ".join(f"{run.seconds:.2f}" for run in found)
        spent = " ".join(f"{run.processor:.2f}" for run in found)
        load = os.getloadavg()[0]
        print(f"  {image} {place} {name}: {each} s, processor {spent} s (load {load:.1f})", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", default=",".join(IMAGES))
    parser.add_argument("--on", default=",".join(PLACES), help="file systems")
    parser.add_argument("--newest", action="store_true", help="against containerd from the Go proxy too (needs Go)")
    given = parser.parse_args()
    print(table(compare(given.images.split(","), given.on.split(","), given.runs, newest=given.newest)))


if __name__ == "__main__":
    os.umask(0o022)
    main()

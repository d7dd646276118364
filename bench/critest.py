"""critest's own benchmarks, as it measures them: pods, containers and images, with one client and with five."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import go_programs
import known_failures
from cri import IMAGE, Contestant, contestants
from measure import Row, medians

if TYPE_CHECKING:
    from run import Options

#: critest's file of results -> what the times in it are of.
RESULTS = {
    "pod_benchmark_data.json": "pod",
    "container_benchmark_data.json": "container",
    "image_lifecycle_benchmark_data.json": "image",
    "image_listing_benchmark_data.json": "image list",
}
#: Its benchmarks; the fifth starts a pod from nothing and only has to be done in time.
_SPECS = 5
#: Seconds after which critest gives up on one sample.
_PATIENCE = 60


@dataclass(frozen=True)
class Load:
    """How many samples critest takes, and how many of them at once."""

    samples: int
    clients: int = 1

    def parameters(self) -> str:
        """The text of a -benchmarking-params-file."""
        values: dict[str, object] = {
            "containerBenchmarkTimeoutSeconds": _PATIENCE,
            "podBenchmarkTimeoutSeconds": _PATIENCE,
            "imageBenchmarkTimeoutSeconds": _PATIENCE,
            "podContainerStartBenchmarkTimeoutSeconds": 5,
            "imagePullingBenchmarkImage": IMAGE,
        }
        for kind in ("containers", "pods", "images"):
            values[f"{kind}Number"] = self.samples
            # Images by one client: pulls of one image at once would be one pull.
            values[f"{kind}NumberParallel"] = 1 if kind == "images" else self.clients
        return "".join(f"{name}: {value}\n" for name, value in values.items())


def rows(options: Options) -> list[Row]:
    """A row for each call that critest times."""
    if not go_programs.have_go():
        print("critest: left out: there is no Go to build it with", file=sys.stderr)
        return []
    try:
        programs = go_programs.build("cri-tools")
    except SystemExit as error:
        raise RuntimeError(f"critest can't be built: {error}") from None
    found = []
    with contestants(options) as servers:
        for load in (Load(options.rounds), Load(options.rounds, clients=5)):
            times = {name: measure(programs, server, load) for name, server in servers.items()}
            found += _rows(times, load)
    return found


def measure(programs: Path, server: Contestant, load: Load) -> dict[str, float]:
    """Has critest measure one server; median milliseconds by what was measured."""
    folder = server.server.folder / f"critest-{load.clients}"
    folder.mkdir()
    (folder / "parameters.yaml").write_text(load.parameters())
    (folder / "images.yaml").write_text(f"defaultTestContainerImage: {IMAGE}\n")
    report = folder / "report.json"
    endpoint = server.server.endpoint
    command = [str(programs / "critest"), "-benchmark", f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}"]
    command += [f"-benchmarking-params-file={folder}/parameters.yaml", f"-benchmarking-output-dir={folder}"]
    command += [f"-test-images-file={folder}/images.yaml", f"-ginkgo.json-report={report}", "-ginkgo.no-color"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    passed = [outcome for outcome in _outcomes(report) if outcome.state == "passed"]
    if done.returncode or len(passed) != _SPECS:
        raise RuntimeError(
            f"{server.server.name}: {len(passed)} of critest's {_SPECS} benchmarks passed:\n{done.stdout[-3000:]}"
        )
    found: dict[str, float] = {}
    for file, kind in RESULTS.items():
        found |= read_results((folder / file).read_text(), kind)
    return found


def _outcomes(report: Path) -> list[known_failures.Outcome]:
    return known_failures.read_report(report) if report.exists() else []


def read_results(text: str, kind: str) -> dict[str, float]:
    """Median milliseconds of each call in one of critest's files of results."""
    document = json.loads(text)
    times: dict[str, list[float]] = {}
    for sample in document["datapoints"]:
        for name, duration in zip(document["operationsNames"], sample["operationsDurationsNs"], strict=True):
            times.setdefault(f"{kind}: {name}", []).append(duration / 1e6)
    return medians(times)


def _rows(times: dict[str, dict[str, float]], load: Load) -> list[Row]:
    found = []
    ours = times["sampan"]
    for work, value in ours.items():
        if load.clients > 1 and work.startswith("image"):
            continue
        peers = {name: values[work] for name, values in times.items() if name != "sampan"}
        clients = f", {load.clients} clients" if load.clients > 1 else ""
        found.append(Row(f"critest {work}{clients}", "ms", value, peers))
    return found

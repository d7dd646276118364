#!/usr/bin/env python3
"""Programs written in Go that the conformance suite and the benchmarks use, built from the Go module proxy.

``go install`` refuses modules with replace directives, and a test binary can't be installed at all: so a module's
source is copied out of the module cache and built there, with the module's own go.sum. Versions are in versions.env.

Command line: ``scripts/go_programs.py cri-tools|containerd|runc|runtime-tools`` prints the folder with the programs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".work"


@dataclass(frozen=True)
class Program:
    """One program of a module: ``go build`` or ``go test -c`` of a package, under a file name."""

    name: str
    package: str
    test: bool = False
    tags: str = ""
    static: bool = False


MODULES: dict[str, tuple[str, str, tuple[Program, ...]]] = {
    "cri-tools": (
        "sigs.k8s.io/cri-tools",
        "CRI_TOOLS",
        (
            Program("crictl", "./cmd/crictl"),
            Program("critest", "./cmd/critest", test=True),
            Program("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
        ),
    ),
    "containerd": (
        "github.com/containerd/containerd/v2",
        "CONTAINERD",
        (
            Program("containerd", "./cmd/containerd"),
            Program("ctr", "./cmd/ctr"),
            Program("containerd-shim-runc-v2", "./cmd/containerd-shim-runc-v2"),
        ),
    ),
    "runc": ("github.com/opencontainers/runc", "RUNC", (Program("runc", ".", tags="seccomp"),)),
    # It runs inside containers, beside a root file system of musl or none.
    "runtime-tools": (
        "github.com/opencontainers/runtime-tools",
        "RUNTIME_TOOLS",
        (Program("runtimetest", "./cmd/runtimetest", static=True),),
    ),
}

#: Module -> folder of which each package is a program too, and what else of the module its programs need beside them.
WHOLE_FOLDERS: dict[str, tuple[str, str]] = {"runtime-tools": ("validation", "rootfs-*.tar.gz")}


def have_go() -> bool:
    """Whether there is a Go to build with."""
    return shutil.which("go") is not None


def versions() -> dict[str, str]:
    """The names and versions of versions.env."""
    lines = (ROOT / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def build(name: str) -> Path:
    """The folder that holds the programs of one module; built at most once for a version."""
    module, key, programs = MODULES[name]
    version = versions()[key]
    folder = WORK / "go" / f"{name}-{version}"
    if all((folder / program.name).exists() for program in programs):
        return folder
    print(f"building {name} {version} (once)", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(_download(f"{module}@{version}"), source)
        _run(["chmod", "-R", "u+w", str(source)])
        built = Path(scratch) / "built"
        built.mkdir()
        for program in (*programs, *_more_programs(name, source)):
            verb = ["test", "-c"] if program.test else ["build"]
            # The version that `crictl --version` and critest print is set by the linker.
            flags = f"-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={version}"
            command = ["go", *verb, "-trimpath", "-buildvcs=false", "-ldflags", flags, "-tags", program.tags]
            _run([*command, "-o", str(built / program.name), program.package], cwd=source, static=program.static)
        for file in source.glob(WHOLE_FOLDERS[name][1]) if name in WHOLE_FOLDERS else ():
            shutil.copy(file, built)
        shutil.rmtree(folder, ignore_errors=True)  # of when fewer programs were wanted
        built.rename(folder)
    return folder


def _more_programs(name: str, source: Path) -> list[Program]:
    if name not in WHOLE_FOLDERS:
        return []
    folder = source / WHOLE_FOLDERS[name][0]
    packages = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "util")
    return [Program(path.name, f"./{path.relative_to(source)}") for path in packages]


def _download(module: str) -> str:
    """Has the Go command fetch and verify a module; its folder in the module cache."""
    result = _run(["go", "mod", "download", "-json", module])
    return str(json.loads(result)["Dir"])


def _run(command: list[str], cwd: Path | None = None, *, static: bool = False) -> str:
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    if static:
        environment["CGO_ENABLED"] = "0"
    result = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.stderr.write(result.stderr[-4000:])
        raise SystemExit(f"{' '.join(command)}: exit status {result.returncode}")
    return result.stdout


def main() -> None:
    """Runs the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in MODULES:
        raise SystemExit(__doc__)
    if not have_go():
        raise SystemExit("there is no Go on this machine")
    print(build(sys.argv[1]))


if __name__ == "__main__":
    main()

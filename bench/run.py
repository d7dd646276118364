"""Runs the benchmarks, each side by side with its peers, and prints figures, ratios and the budgets.

    make bench                           all of them
    make bench BENCH="runtime cri"       some
    make bench BENCH="--rounds 100 runtime"

A benchmark is a module of this folder with ``rows(options) -> list[Row]``; it leaves nothing on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from measure import Row, table

ALL = ("runtime", "cri", "critest", "lists", "logs", "pull", "network")


@dataclass(frozen=True)
class Options:
    """What a benchmark is told."""

    rounds: int
    newest: bool


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench BENCH=...", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("names", nargs="*", help=f"benchmarks: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each figure")
    parser.add_argument(
        "--newest", action="store_true", help="against containerd and runc from the Go proxy (needs Go)"
    )
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmarks need root")
    options = Options(rounds=given.rounds, newest=given.newest)
    rows: list[Row] = []
    failed = []
    for name in given.names or ALL:
        if not (Path(__file__).parent / f"{name}.py").exists():
            print(f"{name}: there is no such benchmark yet", file=sys.stderr)
            continue
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(name).rows(options)
        except (OSError, RuntimeError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    print(
        f"\nLinux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs; "
        f"medians of {given.rounds}\n"
    )
    print(table(rows))
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

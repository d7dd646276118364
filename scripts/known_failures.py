"""A list of conformance specs that are known to fail, each with its reason, and the comparison of a run with it.

The list may only shrink: a spec that fails and is not listed fails the run, and so does one that is listed and passes.

A line is ``SPEC :: REASON``; empty lines and lines that start with ``#`` are skipped. SPEC is the spec's full name,
as ginkgo joins it: the texts of its containers and its own, with spaces between.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Ginkgo's states of a spec that has run and did not pass.
FAILED = frozenset({"failed", "timedout", "panicked", "interrupted", "aborted"})


@dataclass(frozen=True)
class Outcome:
    """One spec of one run."""

    name: str
    state: str
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What a run says when it is held against the list."""

    passed: int
    failed: int
    skipped: int
    unexpected: list[Outcome]
    mended: list[str]
    least: int = 1

    @property
    def ran(self) -> int:
        """How many were not skipped."""
        return self.passed + self.failed

    @property
    def good(self) -> bool:
        """Whether all is as the list says, and enough ran, some of it well."""
        return not self.unexpected and not self.mended and self.passed > 0 and self.ran >= self.least


def read_list(text: str) -> dict[str, str]:
    """Spec -> reason. Raises ValueError naming the first line without a reason."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, reason = line.partition(" :: ")
        if not separator or not reason.strip():
            raise ValueError(f"line {number}: a spec needs ' :: ' and the reason why it fails")
        found[name.strip()] = reason.strip()
    return found


def read_report(path: Path) -> list[Outcome]:
    """The specs of a ginkgo JSON report (one suite or several), without set-up and tear-down nodes."""
    suites = json.loads(path.read_text())
    specs = [spec for suite in suites for spec in suite.get("SpecReports") or []]
    return [_outcome(spec) for spec in specs if spec.get("LeafNodeType") == "It"]


def judge(outcomes: list[Outcome], known: dict[str, str], least: int = 1) -> Verdict:
    """Holds a run against the list. A listed spec that was skipped or not selected is no fault.

    Args:
        outcomes: What became of each spec.
        known: What :func:`read_list` gave.
        least: How many specs must have run, that none is skipped unnoticed.
    """
    failed = [outcome for outcome in outcomes if outcome.state in FAILED]
    passed = [outcome for outcome in outcomes if outcome.state == "passed"]
    return Verdict(
        passed=len(passed),
        failed=len(failed),
        skipped=len(outcomes) - len(failed) - len(passed),
        unexpected=[outcome for outcome in failed if outcome.name not in known],
        mended=sorted(outcome.name for outcome in passed if outcome.name in known),
        least=least,
    )


def _outcome(spec: dict[str, Any]) -> Outcome:
    texts = [*(spec.get("ContainerHierarchyTexts") or []), spec.get("LeafNodeText", "")]
    message = str((spec.get("Failure") or {}).get("Message", ""))
    return Outcome(
        name=" ".join(text.strip() for text in texts if text.strip()),
        state=str(spec.get("State", "")),
        message=message,
        seconds=float(spec.get("RunTime", 0)) / 1e9,
    )

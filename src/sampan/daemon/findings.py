"""What an examination finds: one line each, and the mend where something is wrong."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Verdict = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    #: What kind of thing: ``kernel``, ``cgroups``, ``modules``, ``sysctls``, …
    area: str
    #: Which one.
    name: str
    verdict: Verdict
    #: What was found.
    message: str
    #: What to do about it; empty where nothing is to be done.
    mend: str = ""


class Area:
    """Makes the findings of one area.

    Args:
        name: The area.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def ok(self, name: str, message: str) -> Finding:
        """All is well."""
        return Finding(self._name, name, "ok", message)

    def warning(self, name: str, message: str, mend: str) -> Finding:
        """Something will not work, or not well, for some."""
        return Finding(self._name, name, "warning", message, mend)

    def error(self, name: str, message: str, mend: str) -> Finding:
        """Pods will not run."""
        return Finding(self._name, name, "error", message, mend)


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict of all."""
    found = {finding.verdict for finding in findings}
    return "error" if "error" in found else "warning" if "warning" in found else "ok"


def read(path: str) -> str:
    """A file of the kernel's, stripped; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""

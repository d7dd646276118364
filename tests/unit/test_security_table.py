"""docs/security.md names a test for each attack: the tests are there, and no attack class is missing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")]

ATTACKS = (
    "CVE-2016-9962", "CVE-2019-5736", "CVE-2019-16884", "CVE-2019-19921", "CVE-2021-30465", "CVE-2021-43784",
    "CVE-2022-29162", "CVE-2023-25173", "CVE-2023-25809", "CVE-2023-27561", "CVE-2023-28642", "CVE-2024-21626",
    "CVE-2024-40635", "CVE-2024-45310", "CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881",
)  # fmt: skip


def _defined() -> set[str]:
    names: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        names.update(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
    return names


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_has_a_row_with_a_defence_and_a_test(attack: str) -> None:
    rows = [line.strip("|").split("|") for line in TABLE if attack in line]
    assert rows, f"docs/security.md does not speak of {attack}"
    for _, defence, tests in rows:
        assert len(defence.strip()) > 20
        assert re.search(r"`(test_\w+|tests/[\w/.]+)", tests)


def test_each_named_test_exists() -> None:
    defined = _defined()
    for line in TABLE:
        for name in re.findall(r"`(test_\w+)`", line.split("|")[-2]):
            assert name in defined, f"{name}: there is no such test"
        for path in re.findall(r"`((?:tests/[\w/]+|test_\w+\.py)(?:\.py)?)`", line.split("|")[-2]):
            found = (ROOT / path).exists() or list((ROOT / "tests").rglob(path))
            assert found, f"{path}: there is no such file"

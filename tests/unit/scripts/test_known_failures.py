"""The list of known conformance failures may only shrink, and the comparison holds it to that."""

import json
from pathlib import Path

import pytest
from known_failures import Outcome, judge, read_list, read_report

LIST = "# a remark\n\nsuite a fails :: the reason\n"


def test_unlisted_failure_is_bad() -> None:
    verdict = judge([Outcome("suite b", "failed", "no"), Outcome("suite c", "passed")], read_list(LIST))
    assert [outcome.name for outcome in verdict.unexpected] == ["suite b"]
    assert not verdict.good


def test_listed_failure_is_good_and_counted() -> None:
    verdict = judge([Outcome("suite a fails", "timedout"), Outcome("suite c", "passed")], read_list(LIST))
    assert verdict.good
    assert (verdict.passed, verdict.failed, verdict.skipped) == (1, 1, 0)


def test_listed_spec_that_passes_is_bad() -> None:
    verdict = judge([Outcome("suite a fails", "passed")], read_list(LIST))
    assert verdict.mended == ["suite a fails"]
    assert not verdict.good


def test_listed_spec_that_was_not_selected_is_no_fault() -> None:
    verdict = judge([Outcome("suite a fails", "skipped"), Outcome("suite c", "passed")], read_list(LIST))
    assert verdict.good


def test_run_in_which_nothing_passed_is_bad() -> None:
    assert not judge([], {}).good


def test_run_in_which_too_few_ran_is_bad() -> None:
    outcomes = [Outcome("suite a fails", "failed"), Outcome("suite c", "passed"), Outcome("suite d", "skipped")]
    assert judge(outcomes, read_list(LIST), least=2).good
    assert not judge(outcomes, read_list(LIST), least=3).good


@pytest.mark.parametrize("line", ["suite a", "suite a :: ", "suite a: reason"])
def test_spec_needs_a_reason(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_list(line)


def test_reads_ginkgo_reports(tmp_path: Path) -> None:
    spec = {
        "ContainerHierarchyTexts": ["[k8s.io] Pods", "run"],
        "LeafNodeText": "[Conformance] at once",
        "LeafNodeType": "It",
        "State": "failed",
        "RunTime": 1_500_000_000,
        "Failure": {"Message": "it did not"},
    }
    before = {"LeafNodeType": "BeforeSuite", "State": "passed"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps([{"SpecReports": [before, spec]}, {"SpecReports": None}]))
    assert read_report(path) == [Outcome("[k8s.io] Pods run [Conformance] at once", "failed", "it did not", 1.5)]

"""What every test run shares: the root marker's meaning, and the proof that the run left nothing on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from machine_state import MachineState, settled_since

import engine_places

TESTS = Path(__file__).parent
LEFT = pytest.StashKey[str]()

# A slow machine is no fault of the code; and a change is judged by the same examples at each try.
hypothesis.settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--leftovers",
        choices=("off", "report", "fail"),
        default="off",
        help="compare mounts, links, namespaces, cgroups, nft rules, processes and files before and after the run",
    )
    parser.addoption("--at-once", action="store_true", help="print each failure when it happens as well")
    parser.addoption("--big", action="store_true", help="run the tests marked big, and no others")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--at-once"):
        config.pluginmanager.register(_AtOnce(config))


class _AtOnce:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid}: {report.when}\n{report.longreprtext}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests below integration/ need root, marked or not; without root they are skipped. Big ones run by themselves."""
    big = bool(config.getoption("--big"))
    chosen = [item for item in items if (item.get_closest_marker("big") is not None) is big]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items:
        if TESTS / "integration" in item.path.parents and item.get_closest_marker("root") is None:
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    mode = request.config.getoption("--leftovers")
    if mode == "off":
        yield
        return
    before = MachineState.take()
    yield
    left = settled_since(before)
    if left:
        text = "the tests left on this machine:\n  " + "\n  ".join(left)
        if mode == "fail":
            pytest.fail(text, pytrace=False)
        request.config.stash[LEFT] = text


@pytest.fixture(scope="session", autouse=True)
def _engine_places(_nothing_left: None) -> Iterator[None]:
    with engine_places.swept():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With ``--leftovers=report``: says what is left."""
    text = config.stash.get(LEFT, "")
    if text:
        terminalreporter.write_line(text)

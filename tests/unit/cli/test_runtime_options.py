"""The option parser of sampan-runtime, and the values its commands take."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.cli.runtime_exec import _capabilities, cgroups
from sampan.cli.runtime_options import FLAG, LIST, NUMBER, NUMBERS, VALUE, Option, parse
from sampan.cli.runtime_output import indented, table
from sampan.cli.runtime_resources import OPTIONS, duration, limits, size
from sampan.cli.runtime_spec import example
from sampan.cli.runtime_state import signal_number
from sampan.errors import InvalidInput

KNOWN = (
    Option("bundle,b", VALUE, ""),
    Option("detach,d", FLAG, ""),
    Option("tty,t", FLAG, ""),
    Option("env,e", LIST, ""),
    Option("count", NUMBER, ""),
)


@pytest.mark.parametrize(
    "line",
    ["--bundle /x -d one", "-b=/x --detach=true one", "-bundle /x one -d", "one -d -b /x", "-td -b /x one"],
)
def test_forms_of_options(line: str) -> None:
    parsed = parse(KNOWN, line.split())
    assert parsed.value("bundle") == "/x"
    assert parsed.flag("detach")
    assert parsed.operands == ["one"]


def test_lists_numbers_and_defaults() -> None:
    parsed = parse(KNOWN, ["-e", "A=1", "--env=B=2=3", "--count", "0x10"])
    assert parsed.list("env") == ["A=1", "B=2=3"]
    assert parsed.number("count") == 16
    assert parsed.value("bundle", "here") == "here"
    assert not parsed.given("bundle")
    assert not parse(KNOWN, ["--detach=false"]).flag("detach")


def test_another_programs_options_are_left_alone() -> None:
    assert parse(KNOWN, ["-d", "one", "ls", "-d", "--", "x"], interspersed=False).operands == [
        "one",
        "ls",
        "-d",
        "--",
        "x",
    ]
    assert parse(KNOWN, ["one", "--", "-d"]).operands == ["one", "-d"]


@pytest.mark.parametrize("line", ["--none", "-x", "--bundle", "--count=many", "--detach=perhaps", "-dx", "--td"])
def test_faults(line: str) -> None:
    with pytest.raises(InvalidInput):
        parse(KNOWN, [line])


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_arguments_are_read_or_refused(arguments: list[str]) -> None:
    try:
        parse(KNOWN, arguments)
    except InvalidInput:
        pass


@pytest.mark.parametrize(
    ("text", "number"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("RTMIN+1", 35), ("RTMAX-1", 63)]
)
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "FOO", "99", "-9", "SIG_BLOCK", "KILL+x", "_DFL"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(InvalidInput):
        signal_number(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("512", 512), ("-1", -1), ("64m", 64 << 20), ("1.5G", 3 << 29), ("2KiB", 2048), ("3kb", 3072), ("4b", 4)],
)
def test_sizes(text: str, number: int) -> None:
    assert size(text, "memory") == number


@pytest.mark.parametrize("text", ["", "m", "1x", "1.2.3m", "k1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidInput):
        size(text, "memory")


def test_durations() -> None:
    assert [duration(text) for text in ("5s", "500ms", "1m30s", "1.5h")] == [5, 0.5, 90, 5400]
    for text in ("", "5", "s", "0s", "1d"):
        with pytest.raises(InvalidInput):
            duration(text)


def test_limits_of_update() -> None:
    given = ["c", "--memory", "64m", "--cpu-quota=-1", "--pids-limit", "5", "--cpuset-cpus", "0-1"]
    parsed = parse(OPTIONS["update"], given)
    assert limits(parsed) == {
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": -1, "cpus": "0-1"},
        "pids": {"limit": 5},
    }


def test_an_empty_value_is_none() -> None:
    parsed = parse(OPTIONS["update"], ["c", "--memory", "", "--cpu-quota=", "--cpuset-cpus", "", "--pids-limit", "0"])
    assert limits(parsed) == {"pids": {"limit": 0}}
    assert (parsed.given("memory"), parsed.number("cpu-quota", 7)) == (False, 7)


@pytest.mark.parametrize(("text", "taken"), [("10", True), ("010", True), ("-1", True), ("x", False), ("0x1", False)])
def test_a_list_of_numbers_is_of_decimal_ones(text: str, taken: bool) -> None:
    options = [Option("group,g", NUMBERS, "")]
    if taken:
        assert parse(options, ["-g", "1", "-g", text]).list("group") == ["1", text]
        return
    with pytest.raises(InvalidInput, match="--group"):
        parse(options, ["-g", text])


def test_added_capabilities_are_ambient_only_if_inheritable() -> None:
    sets = {"bounding": ["CAP_KILL"], "inheritable": ["CAP_CHOWN"]}
    assert _capabilities(sets, ["chown", "CAP_SYS_ADMIN"]) == {
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"],
        "inheritable": ["CAP_CHOWN"],
        "effective": ["CAP_CHOWN", "CAP_SYS_ADMIN"],
        "permitted": ["CAP_CHOWN", "CAP_SYS_ADMIN"],
        "ambient": ["CAP_CHOWN"],
    }


def test_groups_of_an_exec() -> None:
    assert cgroups([]) == {}
    assert cgroups(["/a//b/"]) == {"": "a/b"}
    assert cgroups(["cpu,cpuacct:x", "memory:y"]) == {"cpu": "x", "cpuacct": "x", "memory": "y"}
    for wrong in (["../x"], ["cpu:a/../.."], ["a", "b"], ["cpu:a", "b"], ["cpu:a", "cpu:b"], ["a:b:c"], [":a"]):
        with pytest.raises(InvalidInput, match="--cgroup"):
            cgroups(wrong)


def test_output() -> None:
    import json

    document = example(rootless=True)
    assert json.loads(indented(document, "\t")) == document
    assert indented({"a": [], "b": {"c": [1]}}) == '{\n  "a": [],\n  "b": {\n    "c": [\n      1\n    ]\n  }\n}'
    assert table([["ID", "PID"], ["a-rather-long-name", "1"]]).splitlines()[0] == "ID                   PID         "


def test_the_runtime_keeps_its_import_diet() -> None:
    """What `state` and `run` load; each of these costs more than a system call, most more than a millisecond."""
    forbidden = "json re enum typing dataclasses logging argparse subprocess contextlib inspect asyncio signal socket"
    script = (
        "import sys; sys.path.insert(0, 'src'); import sampan.cli.runtime, sampan.cli.runtime_create, "
        "sampan.cli.runtime_exec, sampan.cli.runtime_state, sampan.cli.runtime_foreground, sampan.runtime.native, "
        "sampan.runtime.execute, sampan.runtime.external, sampan.cgroup.v1, sampan.runtime.seccomp; "
        f"print([name for name in '{forbidden} msgspec pathlib'.split() if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

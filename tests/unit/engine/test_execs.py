"""The process of a command in a container: the container's own, with what was asked for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sampan.engine.execs import process_for
from sampan.engine.layout import Layout


def process(folder: Path, env: list[str], *more: str, tty: bool = False) -> dict[str, Any]:
    layout = Layout(str(folder))
    bundle = Path(layout.bundle("p", "c"))
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps({"process": {"args": ["sh"], "cwd": "/", "env": env}}))
    engine, record = cast("Any", SimpleNamespace(layout=layout)), cast("Any", SimpleNamespace(pod_id="p", id="c"))
    return process_for(engine, record, ["true"], tty=tty, env=more)


def test_a_variable_of_the_commands_replaces_the_containers(tmp_path: Path) -> None:
    assert process(tmp_path, ["A=1", "B=2"], "A=3=4", "C=5")["env"] == ["A=3=4", "B=2", "C=5"]


def test_a_terminals_name_is_the_containers_if_it_has_one(tmp_path: Path) -> None:
    assert process(tmp_path / "1", ["A=1"], tty=True)["env"] == ["TERM=xterm", "A=1"]
    assert process(tmp_path / "2", ["TERM=linux"], tty=True)["env"] == ["TERM=linux"]
    assert process(tmp_path / "3", ["TERM=linux"], "TERM=vt100", tty=True)["env"] == ["TERM=vt100"]

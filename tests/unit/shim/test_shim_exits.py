"""Records of ends, the diet of imports, and what a zygote is told of the world."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.errors import Corrupt
from sampan.shim import interpreter
from sampan.shim.exits import Exit, read_exit, write_exit


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    assert read_exit(str(tmp_path), "one") is None
    ended = Exit.of_status(9, 123)
    assert (ended.exit_code, ended.signal) == (137, 9)
    ended.oom_killed = True
    write_exit(str(tmp_path), "one", ended)
    read = read_exit(str(tmp_path), "one")
    assert read is not None
    assert read.as_dict() == ended.as_dict()
    assert os.listdir(tmp_path / "one") == ["exit.json"]
    (tmp_path / "one/exit.json").write_text("{")
    with pytest.raises(Corrupt):
        read_exit(str(tmp_path), "one")


def test_a_zygote_learns_little_of_the_environment() -> None:
    kept = interpreter.environment({"PATH": "/x", "SECRET": "s", "LD_PRELOAD": "l", "PYTHONPATH": "p"})
    assert kept["PATH"] == "/x"
    assert not {"SECRET", "LD_PRELOAD", "PYTHONPATH"} & set(kept)
    assert "/usr/bin" in interpreter.environment({})["PATH"]


def test_the_real_interpreter_is_found_behind_a_virtual_environment() -> None:
    assert not os.path.islink(interpreter.real_executable())
    assert os.path.exists(interpreter.real_executable())


@pytest.mark.parametrize("module", ["sampan.shim.zygote", "sampan.shim.client", "sampan.shim.seed"])
def test_the_diet_of_imports(module: str) -> None:
    source = str(Path(interpreter.__file__).parents[2])
    code = f"import sys; sys.path.append({source!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    forbidden = {"enum", "re", "typing", "json", "dataclasses", "msgspec", "logging", "socket", "subprocess", "signal"}
    assert not forbidden & set(done.stdout.split())

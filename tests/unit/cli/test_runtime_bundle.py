"""The file of compiled modules that a cold start reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.path.insert(0, {package!r})
from sampan.cli.runtime_bundle import Bundle
bundle = Bundle({path!r})
sys.meta_path.insert(0, bundle)
import sampan.one
print(sampan.one.VALUE, type(sampan.one.__loader__).__name__)
bundle.refresh()
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the same name with the real bundle module and one module to be changed."""
    source = Path(__file__).parents[3] / "src/sampan/cli/runtime_bundle.py"
    (tmp_path / "sampan/cli").mkdir(parents=True)
    (tmp_path / "sampan/cli/runtime_bundle.py").write_bytes(source.read_bytes())
    (tmp_path / "sampan/one.py").write_text("VALUE = 1\n")
    return tmp_path


def run(package: Path) -> str:
    script = SCRIPT.format(package=str(package), path=str(package / "bundle"))
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_modules_come_from_the_bundle_until_their_source_changes(package: Path) -> None:
    assert run(package) == "1 SourceFileLoader"
    assert run(package) == "1 Bundle"
    (package / "sampan/one.py").write_text("VALUE = 22\n")
    assert run(package) == "22 SourceFileLoader"
    assert run(package) == "22 Bundle"
    assert os.listdir(package).count("bundle") == 1
    assert len(os.listdir(package)) == 2


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x05" + b"\0" * 7 + b"(\0\0\0\0"])
def test_a_broken_bundle_is_written_anew(package: Path, content: bytes) -> None:
    (package / "bundle").write_bytes(content)
    assert run(package) == "1 SourceFileLoader"
    assert run(package) == "1 Bundle"

"""The package's front: what it promises is there, and costs nothing until used."""

import subprocess
import sys

import sampan


def test_every_public_name_is_there() -> None:
    assert {name for name in sampan.__all__ if getattr(sampan, name) is not None} == set(sampan.__all__)
    assert set(sampan._API) == set(sampan.__all__) - {"__version__"}


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import sampan, sys; print([m for m in sys.modules if m.startswith('sampan.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""What a container's start imports: every millisecond of it is paid by each cold start, every page by each monitor."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"
FORBIDDEN = (
    "argparse asyncio contextlib dataclasses email enum inspect json logging msgspec pathlib re signal socket "
    "subprocess tempfile threading typing"
)


def test_the_runtime_imports_nothing_heavy() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r});"
        "import sampan.runtime.native, sampan.runtime.execute, sampan.runtime.sandbox;"
        "import sampan.runtime.cgroup_mount, sampan.runtime.copy_up, sampan.runtime.notify;"
        f"print(*(set(sys.modules) & set({FORBIDDEN.split()!r})))"
    )
    said = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []

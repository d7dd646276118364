"""Where the `sampan-runtime` script starts Python: `python -I -S .../runtime_launch.py`.

Run as a file, without `site`, so the package's directory is not on the path yet.
"""

import gc
import posix
import sys

# What is opened next would be a closed standard stream's number, and go on to the container as that.
for number in (0, 1, 2):
    try:
        posix.fstat(number)
    except OSError:
        posix.open("/dev/null", posix.O_RDWR)

# A few thousand objects are made, and nothing is kept: collecting would be time lost.
gc.disable()
sys.path.insert(0, __file__.rpartition("/sampan/cli/")[0])
# Where dependencies are, should one be wanted (jeepney): beside the interpreter, when this is a development install.
sys.path.append(
    f"{sys.executable.rpartition('/')[0]}/../lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
)

from sampan.cli import runtime_bundle  # noqa: E402

if __name__ == "__main__":
    bundle = runtime_bundle.install()
    from sampan.cli.runtime import main

    main(bundle.refresh)

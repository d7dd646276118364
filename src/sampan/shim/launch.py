"""The script that a zygote is started with: finds the package that it is part of, and becomes the zygote.

It stands alone, since nothing of the package can be imported before the path is set, and is never imported.
"""

import os
import sys

if __name__ == "__main__":
    # After the standard library, so that its modules are found at the first look.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from sampan.shim import seed

    seed.main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])

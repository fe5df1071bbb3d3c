"""`python -m anytime`, for `torchrun -m -- anytime train ...`."""

import os
import sys

from anytime.cli import main

if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # files of the working directory must not shadow what is imported later
sys.exit(main())

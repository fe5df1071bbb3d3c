"""`python -m anytime`, for `torchrun -m -- anytime train ...`."""

import sys

from anytime.cli import main

sys.exit(main())

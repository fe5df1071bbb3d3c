"""`python -m anytime`, for `torchrun -m anytime`."""

import sys

from anytime.cli import main

sys.exit(main())

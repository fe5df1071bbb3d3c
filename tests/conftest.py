"""Tests use one thread a process: their kernels are too small to gain from more, and lose much to whatever else is running."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

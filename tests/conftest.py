"""What all tests share.

They use one thread a process: their kernels are too small to gain from more, and lose much to whatever else is running. And
Ctrl-C works in them, also where a shell has started them in the background and turned it off: some interrupt themselves.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

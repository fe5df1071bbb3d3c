"""glibc's allocator, set to keep the memory that it frees."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory instead of returning large buffers to the system on every call.

    Otherwise page faults at large batches on a CPU cost time and make timings untrustworthy. Memory use stays at its peak.
    Same as the environment variables `MALLOC_TRIM_THRESHOLD_`, `MALLOC_TOP_PAD_`, `MALLOC_MMAP_THRESHOLD_`.

    Returns:
        Whether the settings took effect; False if the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28, _MMAP_THRESHOLD: 2**30}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())

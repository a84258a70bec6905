"""The C library's allocator, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the system; whether that could be arranged.

    A training step frees and allocates the same gigabytes again and again. By default glibc returns each large block
    at once, and the system clears its pages before it hands them out again: some percents of a step on a CPU
    (docs/performance.md). The numbers are the same. Only with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    # No block is mapped by itself, and no free end of the heap, however long, is cut off.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

"""The C library's allocator, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGE = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the system; whether that could be arranged.

    A training step frees and allocates the same gigabytes again and again. By default glibc returns each large block
    at once, and the system clears its pages before it hands them out again: a tenth of a step on a CPU. The numbers
    are the same, and so is the peak of memory. Only with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))

"""What a process does with memory that it has freed."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Has this process keep what it frees, for what it needs next, and not hand it back to the kernel.

    Otherwise each tensor of 32 MiB and more is new to the process, and the kernel clears it page by page: a quarter of
    the time of tokenizing a clip on a CPU. The process then holds about a tenth more.

    Returns:
        Whether the C library does so: glibc.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))

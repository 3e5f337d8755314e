"""A file as an array that holds no descriptor. No torch.

Python's mmap, and with it numpy's memmap, keeps a copy of the descriptor for as long as the mapping lives (until Python
3.13's `trackfd=False`): ten thousand files would not open where a process begins with 1,024 descriptors.
"""

import ctypes
import mmap
import os
import weakref
from typing import IO

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_SYSTEM = ctypes.CDLL(None, use_errno=True)
_SYSTEM.mmap.restype = ctypes.c_void_p
_SYSTEM.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_SYSTEM.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """Lives as long as an array of it does, and takes the mapping with it; not at exit, when threads may still read."""

    def __init__(self, address: int, num_bytes: int) -> None:
        shape, data = (num_bytes,), (address, True)  # True: the array cannot be written
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": shape, "data": data}
        weakref.finalize(self, _SYSTEM.munmap, address, num_bytes).atexit = False


def map_file(file: IO[bytes]) -> Bytes:
    """Maps a whole file, which may be closed afterwards.

    Args:
        file: open for reading, not empty.

    Returns:
        uint8 '(n)', read-only: what is looked at is read.

    Raises:
        OSError: the system does not map it; ENOMEM where the process has too many mappings or too large ones.
    """
    num_bytes = os.fstat(file.fileno()).st_size
    address = _SYSTEM.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), file.name)
    return np.asarray(_Mapping(address, num_bytes))

"""The two ends of a process's life, kept short: its imports, and its end after a program that has done its work.

Python looks for garbage again and again while torch and DeepSpeed are imported, finds none, and at the end takes apart
all that they have made: a second of processor time of every rank of every stage. And a rank that has done its work may
die of that end, with status 134: DeepSpeed's engines keep their gloo group for ever, whose threads let go of the last
tensors when they get to it, and for that ask for the interpreter; torch aborts where Python is ending just then.
"""

import atexit
import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def imported(program: str) -> Iterator[ModuleType]:
    """A module; what its import has made is left out of every search for garbage until the block ends (`gc.freeze`)."""
    gc.disable()
    try:
        module = importlib.import_module(program)
        gc.freeze()
    finally:
        gc.enable()
    try:
        yield module
    finally:
        gc.collect()  # what the program has made: engines are cycles, and another may want their memory
        gc.unfreeze()  # or triton reports, at an end that is not ours, what it has not got back


@contextmanager
def leaves_at_once() -> Iterator[None]:
    """Around all of a process's work: where it ends well, the process ends with status 0 as soon as Python sets about
    it, after what was registered with `atexit` meanwhile. After an exception it ends as ever.
    """
    atexit.register(_leave)
    try:
        yield
    except BaseException:
        atexit.unregister(_leave)
        raise


def _leave() -> None:
    logging.shutdown()  # which was registered earlier, and so would come later
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Freed memory that stays in the process: the kernel has nothing to clear when it is needed again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from magvit_scale.freed_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")
for _ in range(16):  # until the pieces that are free have the sizes that are asked for
    before = faults()
    torch.ones(2**24).add(1)
print(faults() - before)
"""


def faults(what: str) -> int:
    """Page faults of two tensors of 64 MiB, made for the sixteenth time."""
    answer = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True)
    if "no glibc" in answer.stderr:
        pytest.skip("the C library is not glibc")
    return int(answer.stdout)


def test_a_large_tensor_is_not_new_to_the_process_each_time() -> None:
    assert faults("hand back") >= 2 * 2**26 // 2**21  # the kernel may clear 2 MiB at once
    assert faults("keep") < 10

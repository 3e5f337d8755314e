"""Fast paths compiled before anything is measured, each by a process of its own, into torch's cache on the disk: most
of a compiler's time is one core's. Not beside the measuring: it tries kernels on the GPU, and on an H100 doubled
others' times.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from benchmarks.speed.figures import Workload
from benchmarks.speed.plan import PLANS, Setting, rounding_as
from benchmarks.speed.training_steps import training
from benchmarks.speed.workloads import inference

LONGEST_S = 180
"""What is not compiled by then is compiled in its turn."""


def ours(setting: Setting) -> list[Workload]:
    """All workloads of one arithmetic but the peers'."""
    return [*inference(setting), *training(setting)]


def compile_ahead(names: Sequence[str], longest_s: float = LONGEST_S) -> None:
    """Compiles the workloads of these names, and gives up what takes longer. Says nothing of what fails: the same will
    fail in its turn.
    """
    command, end = [sys.executable, "-m", "benchmarks.speed.ahead"], time.monotonic() + longest_s
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    compilers = [subprocess.Popen([*command, name], **quiet) for name in names]
    for compiler in compilers:
        with suppress(subprocess.TimeoutExpired):
            compiler.wait(max(0.0, end - time.monotonic()))
        compiler.kill()
        compiler.wait()


def main(name: str) -> None:
    """Compiles by running: forward and backward, which are compiled when they are first called."""
    setting = Setting(PLANS["cuda"], "bf16", torch.device("cuda"))
    (workload,) = (each for each in ours(setting) if each.name == name)
    with rounding_as("bf16"):
        fast = workload.build().paths["fast"]
        fast()
        fast()


if __name__ == "__main__":
    main(sys.argv[1])

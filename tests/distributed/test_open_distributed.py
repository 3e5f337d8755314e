"""OPEN: a defect, shown."""

import subprocess
import sys

import pytest

from tests.distributed.launching import REPOSITORY

pytestmark = pytest.mark.distributed


TWICE = """
import sys
from torch import nn, ones
from magvit_scale.config import OptimConfig, RunConfig
from magvit_scale.training import distributed
for _ in range(2):
    ranks = distributed.start()
    model = nn.Linear(3, 1)
    run = RunConfig(folder="", steps=1, global_batch_size=1)
    engine = distributed.build_engine(model, ([], list(model.parameters())), run, OptimConfig(), ranks)
    engine.backward(engine(ones(1, 3)).sum())
    engine.step()
    distributed.stop()
print("twice")
"""


def test_two_programs_can_train_one_after_the_other_in_a_process() -> None:
    """Now, often: EADDRINUSE; the store of the first group still listens at the MASTER_PORT that start() set."""
    ended = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.splitlines()[-1:] == ["twice"], ended.stderr[-2000:]

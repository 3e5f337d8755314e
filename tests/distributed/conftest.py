"""Both worlds at once, one launch each: they read each other's checkpoints."""

import json
from pathlib import Path

import pytest

from tests.distributed.cases import STAGES, ds_file
from tests.distributed.launching import Launch, run_distributed


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the worlds of one and of two processes have filled."""
    folder = tmp_path_factory.mktemp("worlds")
    for stage in STAGES:
        Path(ds_file(folder, stage)).write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    run_distributed(
        [Launch("tests.distributed.cases:alone", 1, folder), Launch("tests.distributed.cases:together", 2, folder)]
    )
    return folder

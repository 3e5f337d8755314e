"""The worlds, each launched once per session: those that read each other's checkpoints, and those of the table."""

import json
from pathlib import Path

import pytest

from tests.distributed.elastic import STAGES, ds_file
from tests.distributed.elastic import WORLDS as ELASTIC_WORLDS
from tests.distributed.launching import Launch, run_distributed
from tests.distributed.table import WORLDS


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the elastic worlds of one and of two processes have filled."""
    folder = tmp_path_factory.mktemp("worlds")
    for stage in STAGES:
        zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
        Path(ds_file(folder, stage)).write_text(json.dumps({"zero_optimization": zero}))
    run_distributed([Launch("tests.distributed.elastic:run_world", world, folder) for world in ELASTIC_WORLDS], 300)
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all runs of the table have filled."""
    folder = tmp_path_factory.mktemp("table")
    run_distributed([Launch("tests.distributed.table_runs:run_table", world, folder) for world in WORLDS], 900)
    return folder

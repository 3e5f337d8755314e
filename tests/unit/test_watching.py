"""What the watcher of a run refuses before it waits for anything."""

from pathlib import Path
from typing import Any

import pytest
import torch

from magvit_scale.config import EvaluateConfig, Refusal
from magvit_scale.training.ranks import Ranks
from magvit_scale.watching import watch


def never(*_: Any) -> Any:
    raise AssertionError("nothing is to be evaluated")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.yaml, expected the folder of a training run"),
        ({"config.yaml": "samples_per_task: 8\n"}, "samples"),
    ],
)
def test_a_folder_that_is_no_training_run_is_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    config = EvaluateConfig(protocol="magvit-recon", shards="none", watch=str(tmp_path))
    with pytest.raises(Refusal, match=words):
        watch(config, Ranks(0, 1, torch.device("cpu")), never)

from pathlib import Path

import pytest

from benchmarks.claims.demo import ClaimsConfig, open_demo
from magvit_scale.config import Refusal


def test_a_demo_that_is_not_there_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=rf"vqgan_2d/export/config.json: not there.*make demo ROOT={tmp_path}"):
        open_demo(str(tmp_path))


def test_one_seed_gives_no_spread() -> None:
    with pytest.raises(Refusal, match=r"seeds=\[1, 1\]"):
        ClaimsConfig(seeds=(1, 1))

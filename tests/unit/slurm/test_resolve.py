"""Whether programs would take their arguments, asked before anything runs."""

from pathlib import Path

import pytest
import yaml

from magvit_scale.config import LaunchConfig, Refusal, WriteShardsConfig, load
from slurm import resolve as module
from slurm.plan import plan
from slurm.resolve import resolve
from slurm.stages import Stage
from tests.unit.slurm.conftest import Chain


def stages(chain: Chain, *overrides: str) -> list[Stage]:
    chain.add("foreign", "no_such_key=1")
    # Other modules of ours would import torch.
    chain.stages["shards"] = {"program": "data_prep.write_shards", "overrides": ["manifest=m", "output=o", *overrides]}
    table = {"program": "slurm.compare_runs", "overrides": ["runs=[a,b]", "output=t"]}
    chain.stages["shards"]["then"] = [table]
    chain.write()
    return plan(load(LaunchConfig, [chain.config]))


def test_a_good_stage_answers_with_its_whole_configuration_and_foreign_ones_are_left_alone(
    chain: Chain, tmp_path: Path
) -> None:
    resolved = resolve(stages(chain, "size_px=32"))
    assert [(stage, call.program) for stage, call in resolved] == [
        ("shards", "data_prep.write_shards"), ("shards", "slurm.compare_runs")
    ]  # fmt: skip
    shards, table = resolved.values()
    path = tmp_path / "resolved.yaml"
    path.write_text(shards)
    assert load(WriteShardsConfig, [path]) == WriteShardsConfig(manifest="m", output="o", size_px=32)
    assert yaml.safe_load(table) == {"runs": ["a", "b"], "output": "t"}
    assert not chain.root.exists()


def test_an_unknown_key_is_refused_with_the_stages_name(chain: Chain) -> None:
    with pytest.raises(Refusal) as refusal:
        resolve(stages(chain, "size_pix=32"))
    assert str(refusal.value).startswith("stage shards: data_prep.write_shards: size_pix=32: Key 'size_pix' not in")
    assert "\n" not in str(refusal.value)


def test_foreign_programs_alone_start_no_process(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", None)
    assert resolve(stages(chain)[:1]) == {}


def test_a_program_that_ends_with_a_message_has_a_problem_and_one_that_goes_on_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ends_badly.py").write_text("def main(argv): raise SystemExit('found a, expected b')")
    (tmp_path / "goes_on.py").write_text("def main(argv): return None")
    monkeypatch.syspath_prepend(tmp_path)
    assert module._ask("ends_badly", []) == ("", "found a, expected b")
    with pytest.raises(AssertionError, match="goes_on does not end at --show-config"):
        module._ask("goes_on", [])

"""Training runs of a RUN folder: curves, settings, and what is refused."""

import json
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.page.inputs import read_run
from tests.toy_record import write_run


def test_resumed_run_keeps_the_last_value_of_a_step_and_survives_half_a_line(tmp_path: Path) -> None:
    records = [{"step": 2, "loss/mask": 2.0}, {"step": 1, "loss/mask": 9.0}, {"step": 2, "loss/mask": 1.0, "time": 5}]
    write_run(tmp_path / "run", [*map(json.dumps, records), '{"step": 3, "loss'])
    assert read_run(tmp_path / "run").curves == {"loss/mask": ([1, 2], [9.0, 1.0])}
    write_run(tmp_path / "run", ["{torn", '{"step": 3}'])
    with pytest.raises(Refusal, match=r"metrics\.jsonl, line 1: not a JSON object with a step"):
        read_run(tmp_path / "run")


def test_settings_are_flat_and_know_their_own_folder(tmp_path: Path) -> None:
    config = "run: {folder: runs/a/commit, steps: 3}\ntokens: runs/a/tokens\nclips: {shards: runs/ab}\nempty: {}\n"
    write_run(tmp_path / "run", ['{"step": 1, "time": 5.5}'], config)
    run = read_run(tmp_path / "run")
    assert run.settings == {
        "run.folder": "RUN/commit", "run.steps": 3, "tokens": "RUN/tokens", "clips.shards": "runs/ab", "empty": {}
    }  # fmt: skip
    assert (run.kind, run.started, run.name) == ("Transformer", 5.5, "run")
    write_run(tmp_path / "run", ['{"step": 1}'], "model: {ndim: 3}\n")
    assert read_run(tmp_path / "run").kind == "3D VQGAN"


def test_a_run_without_configuration_is_read_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ['{"step": 1}'])
    (tmp_path / "run" / "config.yaml").unlink()
    assert read_run(tmp_path / "run").kind == "Training run"
    for text, message in (("a: [", "not YAML"), ("- 1", "expected a YAML mapping")):
        (tmp_path / "run" / "config.yaml").write_text(text)
        with pytest.raises(Refusal, match=rf"config\.yaml: {message}") as refusal:
            read_run(tmp_path / "run")
        assert "\n" not in str(refusal.value)
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "env.json").write_text(json.dumps([1]))
    with pytest.raises(Refusal, match=r"env\.json: expected a JSON object"):
        read_run(tmp_path / "run")

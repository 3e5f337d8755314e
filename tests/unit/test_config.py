"""Reading, writing and explaining configurations."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from magvit_scale.config import (
    MAY_CHANGE,
    LaunchConfig,
    OptimConfig,
    Refusal,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    VQGANConfig,
    VQGANLossConfig,
    WriteShardsConfig,
    describe,
    dump,
    load,
    parse,
    refusals_end_the_program,
)

COMPLETE = ["manifest=m.jsonl", "output=out"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_files_are_merged_left_to_right_then_overrides(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", "manifest: a\noutput: a\nsize_px: 1\nmax_frames: 1\n")
    second = write(tmp_path / "second.yaml", "output: b\nsize_px: 2\n")
    config = load(WriteShardsConfig, [first, second], ["size_px=3"])
    assert (config.manifest, config.output, config.size_px, config.max_frames) == ("a", "b", 3, 1)
    assert load(WriteShardsConfig, [second, first], ["size_px=3"]).output == "a"
    assert config.videos_per_shard == WriteShardsConfig(manifest="", output="").videos_per_shard


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("size_pix=64", ["size_pix"]),
        ("size_px=large", ["size_px", "large"]),
        ("size_px=1.5", ["size_px", "1.5"]),
        ("encoding=h265", ["encoding", "h265"]),
        ("output=[a,b]", ["output"]),
    ],
)
def test_an_unknown_key_a_wrong_type_and_a_bad_literal_are_named_in_one_line(override: str, parts: list[str]) -> None:
    with pytest.raises(Refusal) as refusal:
        load(WriteShardsConfig, [], [*COMPLETE, override])
    message = str(refusal.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_an_unknown_key_in_a_file_names_the_file_and_the_whole_key(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "run: {folder: r, stepz: 3}\n")
    with pytest.raises(Refusal) as refusal:
        load(TrainVQGANConfig, [path])
    assert str(path) in str(refusal.value)
    assert "run.stepz" in str(refusal.value)


def test_missing_values_missing_files_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no value for manifest, output; give a YAML file or KEY=VALUE"):
        load(WriteShardsConfig, [])
    with pytest.raises(Refusal, match=r"missing\.yaml"):
        load(WriteShardsConfig, [tmp_path / "missing.yaml"])
    with pytest.raises(Refusal, match=r"broken\.yaml"):
        load(WriteShardsConfig, [write(tmp_path / "broken.yaml", "manifest: [a\n")])


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_scientific_notation_is_a_number_in_files_and_overrides(text: str, tmp_path: Path) -> None:
    assert load(OptimConfig, [write(tmp_path / "a.yaml", f"learning_rate: {text}\n")]).learning_rate == 1e-4
    assert load(OptimConfig, [], [f"learning_rate={text}"]).learning_rate == 1e-4


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    overrides = ["run.folder=r", "run.steps=10", "run.global_batch_size=4", "tokens=t", "tokenizer=k"]
    overrides += ["tasks=[FP,CG]", "model.latent_shape=[4,8,8]", "optim.betas=[0.5,0.75]"]
    config = load(TrainCommitConfig, [], overrides)
    assert config.tasks == ("FP", "CG")
    assert config.model.latent_shape == (4, 8, 8)
    assert config.optim.betas == (0.5, 0.75)
    assert config.optim.weight_decay == 0.045
    dump(config, tmp_path / "config.yaml")
    assert load(TrainCommitConfig, [tmp_path / "config.yaml"]) == config


def test_named_entries_are_closed_and_addressable(tmp_path: Path) -> None:
    path = write(tmp_path / "chain.yaml", "root: r\nstages:\n  b: {program: p, steps: 1}\n  a: {program: q}\n")
    config = load(LaunchConfig, [path], ["stages.b.steps=5", "resources.additional.mail=me"])
    assert list(config.stages) == ["b", "a"]
    assert (config.stages["b"].steps, config.stages["a"].steps) == (5, None)
    assert config.resources.additional == {"mail": "me"}
    dump(config, tmp_path / "config.yaml")
    assert load(LaunchConfig, [tmp_path / "config.yaml"]) == config
    with pytest.raises(Refusal, match=r"stages\.b\.stepz"):
        load(LaunchConfig, [path], ["stages.b.stepz=5"])
    with pytest.raises(Refusal, match=r"no value for stages\.c\.program"):
        load(LaunchConfig, [path], ["stages.c.steps=5"])


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_what_may_change_between_starts_is_named_by_its_key(key: str) -> None:
    lines = (describe(TrainVQGANConfig) + describe(TrainCommitConfig)).splitlines()
    assert any(line.startswith(f"  {key}") for line in lines), "no such key"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gradient_accumulation=0", r"run\.gradient_accumulation=0: expected at least 1"),
        ("keep_checkpoints=0", r"run\.keep_checkpoints=0: expected at least 1"),
        ("profile_steps=[0,3]", r"run\.profile_steps=\[0,3\]: expected the first and the last step, from 1 on"),
        ("profile_steps=[4,3]", r"run\.profile_steps=\[4,3\]: expected the first and the last step, from 1 on"),
        ("hang_after_s=10001", r"run\.hang_after_s=10001.*: expected 0 to 10,000 seconds"),
        ("dead_after_s=0", r"run\.dead_after_s=0.*: expected 0 to 10,000 seconds, and more than 0"),
        ("precision=fp8", "precision"),
    ],
)
def test_runs_that_cannot_be_are_refused(override: str, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        load(RunConfig, [{"folder": "r", "steps": 1, "global_batch_size": 1}], [override])


def test_r1_comes_every_step_or_every_so_many() -> None:
    assert load(VQGANLossConfig, []).r1_every == 1
    with pytest.raises(Refusal, match=r"^loss\.r1_every=0: expected at least 1"):
        load(VQGANLossConfig, [], ["r1_every=0"])


@pytest.mark.parametrize("name", ["base_channels", "num_res_blocks", "embedding_dim", "codebook_size", "num_groups"])
def test_sizes_that_no_network_can_have_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match=rf"^model\.{name}=0: expected at least 1"):
        VQGANConfig(**{name: 0})


def test_configurations_are_frozen() -> None:
    config = load(WriteShardsConfig, [], COMPLETE)
    with pytest.raises(FrozenInstanceError):
        config.size_px = 3  # type: ignore[misc]


def test_describe_names_every_key_with_type_default_and_meaning() -> None:
    text = describe(TrainVQGANConfig)
    assert "run.steps  (int; required)\n      Optimiser steps from start to end." in text
    assert "loss.adversarial_weight  (float; default 0.1)" in text
    assert "model.padding  (reflect | zeros; default 'reflect')" in text
    assert "stages.NAME.program  (str; required)" in describe(LaunchConfig)


def test_help_prints_the_keys_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(WriteShardsConfig, ["--help"])
    assert end.value.code == 0
    assert "videos_per_shard  (int; default 64)" in capsys.readouterr().out


def test_show_config_prints_what_reads_back_equal_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "run.folder='r: 1e3'",
        "run.steps=10",
        "run.global_batch_size=4",
        "optim.learning_rate=1e-4",
        "clips.shards='1e3'",
    ]
    with pytest.raises(SystemExit) as end:
        parse(TrainVQGANConfig, [*argv, "--show-config"])
    assert end.value.code == 0
    shown = write(tmp_path / "shown.yaml", capsys.readouterr().out)
    assert load(TrainVQGANConfig, [shown]) == parse(TrainVQGANConfig, argv)
    assert load(TrainVQGANConfig, [shown]).optim.learning_rate == 1e-4


def test_show_config_refuses_what_the_program_would_refuse() -> None:
    with pytest.raises(Refusal, match="size_pix"):
        parse(WriteShardsConfig, [*COMPLETE, "--show-config", "size_pix=3"])


def test_a_file_in_the_folder_of_a_sweeps_point_is_no_override(tmp_path: Path) -> None:
    (tmp_path / "rate=0.1").mkdir()
    path = write(tmp_path / "rate=0.1" / "config.yaml", "manifest: m\noutput: o\nsize_px: 32\n")
    config = parse(WriteShardsConfig, [str(path), "output=a/b=c"])
    assert (config.size_px, config.output) == (32, "a/b=c")


def test_parse_takes_files_and_overrides_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "manifest: m\noutput: o\nsize_px: 32\n")
    assert parse(WriteShardsConfig, ["size_px=16", str(path)]).size_px == 16


@pytest.mark.parametrize("error", [Refusal("found a, expected b; do c"), OSError(28, "No space left on device")])
def test_bad_input_and_a_full_disk_end_a_program_with_one_line(error: Exception) -> None:
    with pytest.raises(SystemExit) as end, refusals_end_the_program("program"):
        raise error
    assert end.value.code == f"program: {error}"

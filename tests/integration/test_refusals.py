"""Bad input between the stages: one line that says what, where and what to do; what is made stays."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from magvit_scale import cli, generate, inflate, judge, precompute_tokens, report, train_commit, train_vqgan
from magvit_scale.config import Refusal
from magvit_scale.data.token_shards import TokenShards
from tests.integration.conftest import Road, bytes_of
from tests.integration.test_interruptions import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
Program = Callable[[Sequence[str]], None]


def refused(program: Program, arguments: Sequence[str]) -> str:
    with pytest.raises(Refusal) as refusal:
        program(arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_tokens_of_another_tokenizer(road: Road, tmp_path: Path) -> None:
    said = refused(train_commit.main, [*road.commit(tmp_path / "run"), f"tokenizer={road.inflated}"])
    assert said.startswith(f"{road.root}/tokens/train was written by tokenizer ")
    assert said.endswith("run magvit precompute-tokens again")
    assert not (tmp_path / "run").exists()


def test_validation_tokens_of_another_tokenizer(road: Road, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    precompute_tokens.main([*road.tokens("test"), f"tokenizer={road.inflated}", f"output={tokens}"])
    said = refused(train_commit.main, [*road.commit(tmp_path / "run"), f"validation_tokens={tokens}"])
    assert said.startswith(f"{tokens} was written by tokenizer ")


def test_tokens_without_the_canvas_of_a_task(road: Road, tmp_path: Path) -> None:
    """Only what the tasks need is tokenized; another task is refused by whoever would need it."""
    tokens = tmp_path / "tokens"
    arguments = [*road.tokens("test"), f"output={tokens}"]
    precompute_tokens.main([*arguments, "tasks=[CG,CFP]"])
    few, all_of_them = TokenShards.open(tokens), TokenShards.open(road.root / "tokens" / "test")
    assert few.canvases == ("z", "FP")
    assert all_of_them.canvases[:2] == ("z", "FP")
    for found, expected in zip(few.tokens, all_of_them.tokens, strict=True):
        assert np.array_equal(found, expected[:, :, :2])
    said = refused(precompute_tokens.main, [*arguments, "tasks=[CG]"])
    assert said.startswith(f"{tokens}/source.json has canvases=['z', 'FP'], this run canvases=['z']; give another")
    needed = "task OPC needs tokens of the canvas OPC, the token shards hold z, FP; run magvit precompute-tokens with"
    for key in ("tokens", "validation_tokens"):
        said = refused(train_commit.main, [*road.commit(tmp_path / "run"), f"{key}={tokens}", "tasks=[FP,OPC]"])
        assert said.startswith(needed)
    assert not (tmp_path / "run").exists()
    output = [f"test_tokens={tokens}", f"output={tmp_path / 'judgement'}"]
    assert refused(judge.main, [*road.judge(), *output, "tasks=[OPC]"]).startswith(needed)


@pytest.mark.parametrize(
    ("program", "run", "change", "said"),
    [
        (train_vqgan.main, "run_3d", "loss.r1_weight=1", "has loss.r1_weight=10.0, this run loss.r1_weight=1.0"),
        (train_vqgan.main, "run_3d", "run.steps=7", "has run.steps=6, this run run.steps=7"),
        (train_commit.main, "run_commit", "run.seed=3", "has run.seed=0, this run run.seed=3"),
    ],
)
def test_a_run_folder_of_another_config(road: Road, program: Program, run: str, change: str, said: str) -> None:
    folder, arguments = road.root / run, {"run_3d": road.vqgan_3d, "run_commit": road.commit}[run]()
    before = bytes_of(folder, without=())
    found = refused(program, [*arguments, change])
    assert found == f"{folder}/config.yaml {said}; give another run.folder or the same values"
    assert bytes_of(folder, without=()) == before


@pytest.mark.parametrize(
    ("program", "misspelt"),
    [
        (train_vqgan.main, "run.setps=3"),
        (train_commit.main, "model.num_layer=1"),
        (precompute_tokens.main, "view=1"),
        (inflate.main, "modus=central"),
        (generate.main, "decoding.steps=1"),
        (judge.main, "number=1"),
        (report.main, "gates=warn"),
    ],
)
def test_a_misspelt_key(program: Program, misspelt: str) -> None:
    said = refused(program, [misspelt])
    assert misspelt.split("=")[0].split(".")[-1] in said


def test_a_missing_folder_of_each_kind(road: Road, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    run = f"run.folder={tmp_path / 'run'}"
    assert f"{gone}" in refused(train_vqgan.main, [*road.vqgan_3d(), run, f"init={gone}"])
    assert f"{gone}: no dataset.json" in refused(train_commit.main, [*road.commit(), run, f"tokens={gone}"])
    assert f"{gone}: no config.json" in refused(precompute_tokens.main, [*road.tokens("test"), f"tokenizer={gone}",
                                                                         f"output={tmp_path / 'out'}"])  # fmt: skip
    assert f"{gone}: no config.json" in refused(inflate.main, [*road.inflate(), f"source={gone}", f"output={gone}"])
    assert f"{gone}" in refused(generate.main, [*road.generate(), f"transformer={gone}", f"output={tmp_path / 'g'}"])
    assert f"{gone}" in refused(judge.main, [*road.judge(), f"test_tokens={gone}", f"output={tmp_path / 'e'}"])
    assert f"{gone}: not there" in refused(report.main, [*road.report(), f"{gone}"])


def test_a_model_of_the_wrong_kind(road: Road, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'out'}"
    said = refused(precompute_tokens.main, [*road.tokens("test"), f"tokenizer={road.run_2d}/export", output])
    assert said == f"{road.run_2d}/export: is a 2D VQGAN, expected a 3D one"
    said = refused(inflate.main, [*road.inflate(), f"source={road.run_3d}/export", output])
    assert said == f"{road.run_3d}/export: is a 3D VQGAN, expected a 2D one"
    said = refused(generate.main, [*road.generate(), f"transformer={road.run_2d}/export", output])
    assert said == f"{road.run_2d}/export/config.json: is a VQGAN, expected a CommitTransformer"


def test_a_truncated_export(road: Road, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    for name in ("config.json", "model.safetensors"):
        (export / name).write_bytes((road.run_3d / "export" / name).read_bytes())
    path = export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    said = refused(precompute_tokens.main, [*road.tokens("test"), f"tokenizer={export}", f"output={tmp_path / 'out'}"])
    assert said.startswith(f"{path}: ")


def test_a_model_that_the_tokens_contradict(road: Road, tmp_path: Path) -> None:
    said = refused(train_commit.main, [*road.commit(tmp_path / "run"), "model.codebook_size=64"])
    assert said == "model.codebook_size=64, the token shards have 32; change it or leave it out"


def test_r1_under_zero_3(road: Road, tmp_path: Path) -> None:
    arguments = [*road.vqgan_3d(tmp_path / "run"), "run.deepspeed=configs/deepspeed/zero3.json"]
    said = refused(train_vqgan.main, arguments)
    assert said.startswith("configs/deepspeed/zero3.json: r1 differentiates the discriminator twice")
    assert "set discriminator_deepspeed=configs/deepspeed/zero2.json, or loss.r1_weight=0" in said
    assert not (tmp_path / "run").exists()


def test_the_command_ends_with_one_line_and_status_1(road: Road, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train-vqgan", *road.vqgan_3d(), "run.seed=5"])
    assert str(ended.value).startswith(f"magvit train-vqgan: {road.run_3d}/config.yaml has run.seed=0")
    command = [sys.executable, "-W", "ignore", "-m", "magvit_scale.cli", "report", *road.report(), "tilte=x"]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("magvit report: ")


def test_a_damaged_token_shard(road: Road, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for path in (road.root / "tokens" / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = sorted(folder.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-512])
    said = refused(train_commit.main, [*road.commit(tmp_path / "run"), f"tokens={folder}"])
    assert said.startswith(f"{shard}: ")
    assert said.endswith("delete it and run magvit precompute-tokens again")
    assert json.loads((folder / "dataset.json").read_text())["num_clips"] == 8


@pytest.mark.parametrize("change", ["tokenizer={inflated}", "seed=1"])
def test_a_token_folder_is_not_continued_by_another_tokenizer_or_seed(road: Road, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(road.root / "tokens" / "train", folder)
    arguments = [*road.tokens("train"), f"output={folder}", change.format(inflated=road.inflated)]
    with pytest.raises(Refusal, match=str(folder)):
        precompute_tokens.main(arguments)
    assert list(bytes_of(folder).values()) == list(bytes_of(road.root / "tokens" / "train").values())


def test_a_wrong_path_does_not_claim_the_run_folder(road: Road, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Refusal, match="gone"):
        train_vqgan.main([*road.vqgan_2d(run), f"clips.shards={tmp_path}/gone"])
    assert not (run / "config.yaml").exists()


@pytest.mark.parametrize("change", ["run.log_every=0", "run.checkpoint_every=0", "run.global_batch_size=0"])
def test_a_zero_that_cannot_be_is_refused(road: Road, tmp_path: Path, change: str) -> None:
    with pytest.raises(Refusal, match=change.split("=")[0]):
        train_vqgan.main([*road.vqgan_2d(tmp_path / "run"), change])


def test_keeping_no_checkpoint_is_refused(road: Road, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"run\.keep_checkpoints"):
        train_vqgan.main([*road.vqgan_2d(tmp_path / "run"), "run.keep_checkpoints=0"])

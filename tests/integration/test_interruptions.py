"""Training that is killed, meets a full disk and is started again ends as training that was left in peace."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from magvit_scale import precompute_tokens, train_commit, train_vqgan
from magvit_scale.training.retention import latest
from tests.integration.alike import assert_ends_alike, trained
from tests.integration.conftest import STEPS_3D, Road, bytes_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
REPOSITORY = Path(__file__).resolve().parents[2]


def struck(kind: str, value: int, verb: str, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a verb in a process of its own under a misfortune."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.misfortune", kind, str(value), verb, *arguments]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def assert_killed(ended: "subprocess.CompletedProcess[str]", run: Path, newest: int) -> None:
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    found = latest(run / "checkpoints")
    assert found is not None
    assert found.name == f"step_{newest:08d}"
    assert not (run / "export").exists()


def test_a_vqgan_killed_between_checkpoints_and_met_by_a_full_disk(road: Road, tmp_path: Path) -> None:
    run = tmp_path / "run_3d"
    arguments = road.vqgan_3d(run)
    assert_killed(struck("killed_at_step", 5, "train-vqgan", arguments), run, newest=4)
    assert [line["step"] for line in trained(run)] == [1, 2, 3, 4, 5]
    largest = (run / "checkpoints" / "step_00000004" / "rank_00000.safetensors").stat().st_size
    full = struck("file_size", largest - 1, "train-vqgan", arguments)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr, full.stderr[-3000:]
    said = full.stderr.splitlines()[-1]  # no progress bar draws itself once more below it
    assert said.startswith("magvit train-vqgan: "), full.stderr
    assert f"step_{STEPS_3D:08d}.tmp/rank_00000.safetensors" in said
    assert latest(run / "checkpoints") == run / "checkpoints" / "step_00000004"
    train_vqgan.main(arguments)
    assert_ends_alike(run, road.run_3d)


def test_a_transformer_killed_in_the_middle_of_a_checkpoint(road: Road, tmp_path: Path) -> None:
    run = tmp_path / "run_commit"
    assert_killed(struck("killed_in_checkpoint", 4, "train-commit", road.commit(run)), run, newest=2)
    assert (run / "checkpoints" / "step_00000004.tmp").is_dir()
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "time": 17')
    train_commit.main(road.commit(run))
    assert_ends_alike(run, road.run_commit)


def _remove_newest(run: Path) -> None:
    (run / "checkpoints" / f"step_{STEPS_3D:08d}" / "COMPLETE").unlink()


def _truncate_newest(run: Path) -> None:
    path = run / "checkpoints" / f"step_{STEPS_3D:08d}" / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [_remove_newest, _truncate_newest])
def test_a_finished_run_whose_last_checkpoint_was_damaged_makes_it_again(
    road: Road, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(road.run_3d, undisturbed)
    spoil(road.run_3d)
    assert latest(road.run_3d / "checkpoints") == road.run_3d / "checkpoints" / f"step_{STEPS_3D - 2:08d}"
    train_vqgan.main(road.vqgan_3d())
    assert_ends_alike(road.run_3d, undisturbed)


def test_a_token_writer_killed_between_a_shard_and_its_index_continues(road: Road, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(road.root / "tokens" / "test", folder)
    (folder / "dataset.json").unlink()
    (folder / "tokens-000001.json").unlink()
    precompute_tokens.main([*road.tokens("test"), f"output={folder}"])
    assert list(bytes_of(folder).values()) == list(bytes_of(road.root / "tokens" / "test").values())
